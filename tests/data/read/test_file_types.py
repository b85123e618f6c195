"""The same rows in every type of file and folder: one reader, one table of dialects."""

import csv
import gzip
import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest

from lightning_vlm.data.images import load_image
from lightning_vlm.data.read.readers import DataFile, HFDataset, read
from lightning_vlm.errors import DataError, UserError

pytestmark = pytest.mark.usefixtures("folder")

ROWS = [
    {"question": 'What,\n"now"?', "answer": "A cat.", "image": "cat.png", "id": "1"},
    {"question": "Ä\u2028\U0001f600?", "answer": "A; dog", "image": "pictures/dog.png", "id": "2"},
]
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]


def lines(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def table(delimiter):
    def write(rows, path):
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)

    return write


def parquet(rows, path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(rows)
    data.to_parquet(path) if path.endswith("parquet") else data.save_to_disk("stored")
    if path.endswith("arrow"):
        shutil.copy(next(Path("stored").glob("*.arrow")), path)


def feather(rows, path):
    pytest.importorskip("datasets")
    import pyarrow
    import pyarrow.feather

    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), path)


def json_text(make):
    return lambda rows, path: Path(path).write_text(make(rows), "utf-8")


FILES = {
    "data.jsonl": json_text(lines),
    "lines.json": json_text(lines),
    "array.json": json_text(json.dumps),
    "pretty.json": json_text(lambda rows: json.dumps(rows, indent=2)),
    "object.json": json_text(
        lambda rows: json.dumps({"version": "1.0", "data": rows, "licences": [], "info": {"a": [1]}})
    ),
    "pretty object.json": json_text(
        lambda rows: "\ufeff" + json.dumps({"größe": 2, "description": "ä", "train": rows}, indent=1)
    ),
    "data.csv": table(","),
    "semicolons.csv": table(";"),
    "data.tsv": table("\t"),
    "data.parquet": parquet,
    "data.arrow": parquet,
    "data.feather": feather,
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if "datasets" in sys.modules:
        monkeypatch.setattr(sys.modules["datasets"].config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def check(source, words):
    expected = [
        [("user", [Path(row["image"]), row["question"]]), ("assistant", [row["answer"]])] for row in ROWS
    ]
    assert [words(conversation) for conversation in source] == expected
    colours = [load_image(sample.images[0], sample.source, "image").getpixel((0, 0)) for sample in source]
    assert colours == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", FILES)
def test_the_same_rows_in_every_type_of_file(name, packed, words):
    FILES[name](ROWS, name)
    if packed and name.endswith(("parquet", "arrow", "feather")):
        pytest.skip("they are compressed inside")
    if packed:
        with gzip.open(f"{name}.gz", "wb") as file:
            file.write(Path(name).read_bytes())
        Path(name).unlink()
        name = f"{name}.gz"
    source = read(name)
    check(source, words)
    assert source.notes == []
    assert [sample.id for sample in source] == ["1", "2"]
    assert all(conversation.source.startswith(f"{name}:") for conversation in source)
    assert list(pickle.loads(pickle.dumps(source))) == list(source)


def test_lines_of_rows_are_right_where_cells_have_several(write):
    table(",")([*ROWS, {"question": "a", "answer": "b", "image": "no.png", "id": "3"}], "data.csv")
    with pytest.raises(DataError) as caught:
        read("data.csv")
    assert caught.value.source == "data.csv:5"  # the first row has two lines
    assert "no.png" in Path("data.csv").read_text("utf-8").split("\n")[4]


@pytest.mark.parametrize(
    ("content", "source", "expected"),
    [
        (b"image,caption\ncat.png\ncat.png,a,b\n", "a.csv:2", "found 1 cell; expected 2, one for each"),
        (b'image,caption\ncat.png,"a\n', "a.csv:2", "unexpected end of data"),
        (b"image,caption\ncat.png,\xff\n", "a.csv:2", "the byte 0xff, which is not UTF-8"),
        (b"image,image\n", "a.csv:1", "a column that stands there twice"),
        (b"image,caption\n", "a.csv", "no samples"),
        (b"", "a.csv", "no column names"),
        (b"image,caption,weight\ncat.png,a,much\n", "a.csv:2", "weight: found 'much'; expected a number"),
        (b"image,caption,weight\ncat.png,a,1e38\n", "a.csv:2", "weight: found 1e+38; expected at most"),
    ],
)
def test_bad_tables(content, source, expected):
    Path("a.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read("a.csv")
    assert caught.value.source == source
    assert expected in str(caught.value)


def test_files_that_cannot_be_read():
    Path("cut.jsonl.gz").write_bytes(gzip.compress(lines(ROWS).encode())[:40])
    Path("text.jsonl.gz").write_text("hello")
    Path("data.tar").touch()
    for name, expected in {
        "cut.jsonl.gz": "a broken gzip file",
        "text.jsonl.gz": "a broken gzip file",
        "data.tar": "a file of the type .tar; expected one of .jsonl",
        "none.csv": "no such file",
        "none.parquet": "no such file",
    }.items():
        with pytest.raises(DataError) as caught:
            read(name)
        assert str(caught.value).startswith(f"{name}: found {expected}")


def test_a_broken_first_line_is_not_taken_for_an_object():
    """Else one broken line would cost the memory of the whole file, and hide the faults of the others."""
    Path("data.json").write_text("{\n" + lines(ROWS) + "\n}")
    with pytest.raises(DataError, match=r"data.json:1: column 2: .*\n.*data.json:4: column 1"):
        read("data.json")
    Path("data.json").write_text(json.dumps(ROWS[0], indent=2))
    assert len(read("data.json")) == 1


class TestDataSets:
    @pytest.fixture
    def data(self):
        datasets = pytest.importorskip("datasets")
        features = {name: datasets.Value("string") for name in ("question", "answer")}
        features = datasets.Features({**features, "image": datasets.Image()})
        rows = [{name: row[name] for name in features} for row in ROWS]
        return datasets.Dataset.from_list(rows, features=features)

    def check(self, source):
        colours = [load_image(sample.images[0], sample.source, "image").getpixel((0, 0)) for sample in source]
        assert colours == [(255, 0, 0), (0, 0, 255)][: len(colours)]

    def test_a_copy_of_a_repository_of_the_hub(self, data, capsys):
        for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
            Path("copy/data").mkdir(parents=True, exist_ok=True)
            data.to_parquet(f"copy/data/{name}.parquet")
        Path("copy/README.md").write_text("---\nlicense: mit\n---\n# Pictures\n")
        assert len(read("copy", image_root=".")) == 4
        validation = read("copy", image_root=".", split="val")
        assert [sample.source for sample in validation] == ["copy/validation:0", "copy/validation:1"]
        self.check(validation)
        with pytest.raises(
            UserError, match=r"copy: found the splits 'train', 'validation'; expected one of 'odd'"
        ):
            read("copy", image_root=".", split="odd")

    def test_several_configurations(self, data):
        for name in ("one", "two"):
            Path("copy", name).mkdir(parents=True)
            data.to_parquet(f"copy/{name}/train.parquet")
        configs = "\n".join(
            f"- config_name: {name}\n  data_files: {name}/*.parquet" for name in ("one", "two")
        )
        Path("copy/README.md").write_text(f"---\nconfigs:\n{configs}\n---\n")
        with pytest.raises(
            UserError, match=r"copy: found several configurations, \['one', 'two'\]; name one with"
        ):
            read("copy")
        self.check(HFDataset("copy", config="two", image_root="."))

    def test_splits_that_were_saved(self, data):
        datasets = pytest.importorskip("datasets")
        datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk("saved")
        assert [sample.source for sample in read("saved")] == ["saved/train:0", "saved/train:1"]
        assert [sample.source for sample in read("saved", split="test")] == ["saved/test:0"]

    def test_pictures_inside_messages(self, words):
        """As Unsloth makes them; arrow fills the keys of parts with null."""
        datasets = pytest.importorskip("datasets")
        value = datasets.Value("string")
        part = {"type": value, "text": value, "image": datasets.Image()}
        features = datasets.Features({"messages": [{"role": value, "content": [part]}]})
        asked = [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What?"}]
        turns = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        ]
        datasets.Dataset.from_dict({"messages": [turns, turns]}, features).save_to_disk("saved")
        source = read("saved")
        stored = [row["messages"][0]["content"][0]["image"]["bytes"] for _, row in source._records()]
        assert stored == [b"", b""]  # opening it read no picture
        assert [words(sample)[0][1][1:] for sample in source] == [["What?"], ["What?"]]
        assert load_image(source[1].images[0], "a", "b").getpixel((0, 0)) == (255, 0, 0)

    def test_numbers_of_classes_are_their_names(self, words):
        datasets = pytest.importorskip("datasets")
        names = datasets.ClassLabel(names=["cat", "dog"])
        features = datasets.Features({"query": datasets.Value("string"), "label": names})
        datasets.Dataset.from_dict({"query": ["What?"], "label": [1]}, features).to_parquet("a.parquet")
        assert words(read("a.parquet")[0]) == [("user", ["What?"]), ("assistant", ["dog"])]

    def test_a_name_on_the_hub_that_cannot_be_loaded(self):
        pytest.importorskip("datasets")
        with pytest.raises(
            DataError, match=r"^someone/nothing: found no such file or folder, and no data set"
        ):
            read("someone/nothing")
        Path("broken.parquet").write_text("hello")
        with pytest.raises(DataError, match=r"^broken.parquet: found a file that can't be read as parquet"):
            read("broken.parquet")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_an_image_folder(kind, words):
    Path("animals/train").mkdir(parents=True)
    shutil.copy("cat.png", "animals/train")
    row = {"file_name": "cat.png", "text": "A cat."}
    (table(",") if kind == "csv" else json_text(lines))([row], f"animals/train/metadata.{kind}")
    source = read("animals")
    assert type(source) is DataFile
    assert words(source[0]) == [("user", [Path("cat.png")]), ("assistant", ["A cat."])]
    assert load_image(source[0].images[0], "a", "b").getpixel((0, 0)) == (255, 0, 0)


def test_a_snapshot_in_the_cache_of_the_hub_holds_links(words):
    """`snapshot_download` writes files into `blobs` and links to them from `snapshots`."""
    snapshot = Path("datasets--pets/snapshots/12ab")
    (snapshot / "images").mkdir(parents=True)
    Path("datasets--pets/blobs").mkdir()
    rows = json.dumps({"image": "images/cat.png", "caption": "A cat."})
    Path("datasets--pets/blobs/1").write_text(rows)
    shutil.copy("cat.png", "datasets--pets/blobs/2")
    (snapshot / "train.jsonl").symlink_to("../../blobs/1")
    (snapshot / "images/cat.png").symlink_to("../../../blobs/2")
    (snapshot / "images/dog.png").symlink_to(Path("pictures/dog.png").resolve())
    (conversation,) = read(str(snapshot))
    assert load_image(conversation.images[0], "a", "b").getpixel((0, 0)) == (255, 0, 0)
    Path("datasets--pets/blobs/1").write_text(rows.replace("cat.png", "dog.png"))
    with pytest.raises(DataError, match="outside"):
        read(str(snapshot))


def test_a_folder_of_files():
    for name in ("train_0.jsonl", "train_1.jsonl", "dev.jsonl", "dataset_info.json", ".hidden.jsonl"):
        Path("texts").mkdir(exist_ok=True)
        Path("texts", name).write_text(json.dumps({"messages": TURNS}))
    assert [sample.source for sample in read("texts")] == ["texts/train_0.jsonl:1", "texts/train_1.jsonl:1"]
    assert [sample.source for sample in read("texts", split="val")] == ["texts/dev.jsonl:1"]
    with pytest.raises(
        UserError, match=r"texts: found the splits 'validation', 'train'; expected one of 'odd'"
    ):
        read("texts", split="odd")
