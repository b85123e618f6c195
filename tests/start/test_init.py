"""`lightning-vlm init`: from data to a config that runs."""

import csv
import json
import re
from pathlib import Path

import PIL.Image
import pytest

from lightning_vlm import VLMDataModule
from lightning_vlm.cli import main
from lightning_vlm.data.read.dialects import DIALECTS
from lightning_vlm.published import is_published
from lightning_vlm.start.models import BY_MEMORY
from tests.start.conftest import write

TURNS = {
    "messages": [
        {"role": "user", "content": "<image>What is this?"},
        {"role": "assistant", "content": "A cat."},
    ],
    "conversations": [{"from": "human", "value": "<image>What is this?"}, {"from": "gpt", "value": "A cat."}],
    "texts": [{"user": "What is this?", "assistant": "A cat."}],
    "answers": ["A cat.", "A cat.", "A dog."],
    "captions": ["A cat."],
    "sentences": ["the cat", "the animal"],
    "expressions": ["the cat"],
    "bbox": [10, 10, 30, 20],
    "objects": {"bbox": [[10, 10, 30, 20]], "category": ["cat"]},
}
TURNS["conversation"] = TURNS["conversations"]
ANSWERS = {
    "answer",
    "response",
    "completion",
    "output",
    "solution",
    "assistant",
    "label",
    "caption",
    "description",
}


def row_of(dialect):
    """A row of a dialect, with a picture."""
    row = {key: TURNS.get(key, "A cat." if key in ANSWERS else "What is this?") for key in dialect.needs}
    return {**row, "images" if "messages" in row else "image": "1.png"}


def picture(path, size=(64, 48)):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, "red").save(path)


QUESTIONS_ALONE = [dialect for dialect in DIALECTS if dialect.name.endswith("alone")]
ANSWERED = [dialect for dialect in DIALECTS if dialect not in QUESTIONS_ALONE]


@pytest.mark.parametrize("dialect", QUESTIONS_ALONE, ids=lambda dialect: dialect.name)
def test_questions_alone_teach_nothing(dialect, init, refused):
    picture("1.png")
    row = row_of(dialect)
    write([row] * 3)
    assert "found no assistant turn; expected at least one answer to learn from" in refused("shapes.jsonl")
    write([{**row, "reply": "A cat."}] * 3)
    config, _ = init("shapes.jsonl")
    assert config["data"]["columns"] == {"answer": "reply"}


@pytest.mark.parametrize("dialect", ANSWERED, ids=lambda dialect: dialect.name)
def test_every_dialect(dialect, init, processor_of):
    picture("pictures/1.png")
    write([row_of(dialect)] * 3, "data/shapes.jsonl")
    boxes = ["--box_format", "pixels xywh"] if "bbox" in str(row_of(dialect)) else []
    config, shown = init("data/shapes.jsonl", *boxes)
    assert f"format: {dialect.name}" in shown
    assert config["data"]["image_root"] == "pictures"
    given = {key: value for key, value in config["data"].items() if key not in ("max_tokens",)}
    data = VLMDataModule(**given, processor=processor_of("shipped"))
    example = data.renderer.example(data.source("train")[0])
    assert (len(data.source("train")), len(data.source("train")[0].images)) == (3, 1)
    assert (example.kinds > 3).any()


def test_the_config_runs_and_its_reasons_are_beside_its_lines(init, shapes, capsys):
    write(shapes())
    config, shown = init("shapes.jsonl")
    text = Path("my.yaml").read_text()
    for line in text.splitlines():
        assert len(line) <= 110
    assert config["data"]["image_root"] == "pictures"
    assert (config["data"]["val"], config["data"]["test"]) == ("15%", "15%")
    assert config["model"]["scores"].keys() == {"vqa", "caption"}
    assert set(re.findall(r"lightning-vlm (\w+) --config my.yaml", shown)) == {
        "lint",
        "preview",
        "plan",
        "fit",
    }
    assert max(map(len, shown.splitlines())) <= 80
    assert main(["preview", "--config", "my.yaml", "--samples", "2"]) == 0
    assert "14 samples" in capsys.readouterr().out
    assert main(["fit", "--config", "my.yaml", "--trainer.max_epochs", "1"]) == 0
    end = capsys.readouterr().out
    assert "before" in end
    assert "after" in end
    assert (Path("runs/my/version_0/checkpoints")).is_dir()
    assert (Path("runs/my/version_0/predictions.html")).is_file()


def test_numbers_in_comments_are_true(init, shapes):
    """Each number that is said of answers and lengths is that of the rendered data."""
    write(shapes(size=40))
    config, shown = init("shapes.jsonl")
    text = Path("my.yaml").read_text()
    data = VLMDataModule(train="shapes.jsonl", image_root="pictures", processor=_processor())
    examples = [data.renderer.example(sample) for sample in data.source("train")]
    longest = max(len(example.input_ids) for example in examples)
    answers = max(int((example.kinds > 3).sum()) for example in examples)  # one answer each
    assert f"the longest of 40 samples has {longest} tokens" in text
    assert f"has {answers} tokens" in text
    assert config["model"]["generation"]["max_new_tokens"] >= answers
    assert config["data"]["max_length"] >= longest
    assert f"to {longest} tokens" in shown


def _processor():
    from lightning_vlm.models.loading.load import load_processor

    return load_processor("drawn-vlm")


def test_the_same_data_gives_the_same_config_and_nothing_is_overwritten(init, refused, shapes):
    rows = shapes()
    write(rows)
    init("shapes.jsonl")
    before = Path("my.yaml").read_text()
    _, shown = init("shapes.jsonl")
    assert "it was there already" in shown
    assert Path("my.yaml").read_text() == before
    write(rows[:10])
    assert "found my.yaml already there; init overwrites nothing" in refused(
        "shapes.jsonl", "--out", "my.yaml"
    )
    assert Path("my.yaml").read_text() == before


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"question": "frage", "answer": "antwort", "image": "bild"}, None),
        ({"question": "qestion", "image": "picture"}, {"question": "qestion", "image": "picture"}),
        ({"question": "in", "answer": "out"}, None),
        ({"task": "task_type"}, {"task": "task_type"}),
        ({"image": "photo"}, {"image": "photo"}),
    ],
)
def test_other_names_of_columns(names, expected, init, shapes):
    rows = [{names.get(key, key): value for key, value in row.items()} for row in shapes()]
    write(rows)
    config, shown = init("shapes.jsonl")
    assert config["data"]["columns"] == (expected or names)
    assert "a guess by names and contents" in shown
    data = VLMDataModule(train="shapes.jsonl", image_root="pictures", columns=config["data"]["columns"])
    sample = data.source("train")[0]
    assert (len(sample.images), sample.task) == (1, "vqa" if "vqa" in sample.task else "caption")


def test_where_pictures_lie(init, shapes):
    rows = shapes("far/away/train")
    for prefix in ("", "train/", "away/train/"):
        path = write([{**row, "image": prefix + row["image"]} for row in rows], "far/list/shapes.jsonl")
        config, _ = init(path, out=f"{len(prefix)}.yaml")
        root = Path(config["data"]["image_root"])
        assert (root / prefix / "00.png").is_file()
    whole = str(Path("far/away/train").resolve())
    path = write([{**row, "image": f"{whole}/{row['image']}"} for row in rows], "far/list/absolute.jsonl")
    config, _ = init(path, out="absolute.yaml")
    assert config["data"]["image_root"] == whole
    path = write(rows, "far/away/train/beside.jsonl")
    config, _ = init(path, out="beside.yaml")
    assert "image_root" not in config["data"]


def test_faults_are_counted_and_do_not_stop_it(init, shapes):
    rows = shapes()
    rows[3]["image"] = "gone.png"
    del rows[5]["answer"], rows[5]["question"]
    write(rows)
    config, shown = init("shapes.jsonl")
    assert "18 samples, and 2 that can't be read: lint names all" in shown
    assert "1 missing, such as gone.png" in shown
    assert "on_bad_sample" not in config["data"]
    assert "# on_bad_sample: skip" in Path("my.yaml").read_text()


def boxes(count, box, key="bbox"):
    rows = []
    for number in range(count):
        picture(f"{number}.png", (200, 100))
        rows.append({"image": f"{number}.png", "sentence": "the cat", key: box(number)})
    return rows


@pytest.mark.usefixtures("once_per_model")
@pytest.mark.parametrize(
    ("box", "format"),
    [
        (lambda n: [150 - n, 60, 40, 30], "pixels xywh"),  # as corners, inverted
        (lambda n: [10, 10, 190 - n, 95], "pixels xyxy"),  # as width and height, outside
        (lambda n: [0.4, 0.5, 0.9 - n / 100, 0.9], "fractions xyxy"),
        (lambda n: [0.9 - n / 100, 0.5, 0.05, 0.3], "fractions xywh"),
        (lambda n: [200, 300, 900 - n, 990], "0-1000 xyxy"),
    ],
)
def test_the_unit_of_boxes_where_numbers_prove_it(box, format, init, capsys):
    rows = boxes(12, box)
    rows[7]["bbox"] = [1e6, 1, 1e6 + 1, 2]  # a mistake proves nothing
    write([*rows, *rows[:6], *rows[8:]] * 2)
    config, shown = init("shapes.jsonl")
    assert config["data"]["box_format"] == format
    assert config["model"]["scores"] == ["acc@0.5", "miou", "parse_failures"]
    assert format in shown
    assert main(["preview", "--config", "my.yaml", "--samples", "1", "--data.on_bad_sample", "skip"]) == 0


@pytest.mark.usefixtures("once_per_model")
def test_the_unit_of_boxes_where_nothing_proves_it(init, capsys):
    write(boxes(12, lambda n: [10, 10, 30 + n, 20]))
    config, shown = init("shapes.jsonl")
    assert "box_format" not in config["data"]
    assert "CHOOSE their unit" in shown
    assert "# box_format: pixels xyxy" in Path("my.yaml").read_text()
    assert main(["preview", "--config", "my.yaml"]) == 2
    assert "data.box_format" in capsys.readouterr().err
    config, shown = init("shapes.jsonl", "--box_format", "pixels xywh", out="chosen.yaml")
    assert config["data"]["box_format"] == "pixels xywh"
    assert main(["preview", "--config", "chosen.yaml", "--samples", "1"]) == 0


@pytest.mark.usefixtures("once_per_model")
def test_files_beside_and_several_files(init, shapes):
    rows = shapes()
    for name in ("pets_train", "pets_val", "dogs_val", "test"):
        write(rows, f"{name}.jsonl")
    config, _ = init("pets_train.jsonl")
    assert config["data"]["val"] == "pets_val.jsonl"
    assert config["data"]["test"] == "test.jsonl"
    config, _ = init("dogs_val.jsonl", "pets_train.jsonl", out="two.yaml")
    assert (config["data"]["train"], config["data"]["val"]) == ("dogs_val.jsonl", "pets_train.jsonl")
    assert "test" not in config["data"]  # what weights are chosen by is no test
    assert "scores the validation data" in Path("two.yaml").read_text()


@pytest.mark.usefixtures("once_per_model")
def test_a_folder(init, shapes):
    rows = shapes("pets/pictures")
    write(rows, "pets/train.jsonl")
    write(rows[:5], "pets/dev.jsonl")
    Path("pets/classes.json").write_text('{"cat": 1, "dog": 2}')
    config, shown = init("pets")
    assert (config["data"]["train"], config["data"]["val"]) == ("pets/train.jsonl", "pets/dev.jsonl")
    assert "classes.json" in shown
    with open("pets/more.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows[:3])
    config, shown = init("pets", out="more.yaml")
    sources = config["data"]["train"]["init_args"]["sources"]
    assert [source["init_args"]["path"] for source in sources] == ["pets/more.csv", "pets/train.jsonl"]
    assert main(["preview", "--config", "more.yaml", "--samples", "1"]) == 0


def test_coco(init):
    for split, number in (("train", 9), ("val", 3)):
        images, annotations = [], []
        for place in range(number):
            picture(f"coco/{split}2017/{split}{place}.jpg")
            images.append({"id": place, "file_name": f"{split}{place}.jpg", "width": 64, "height": 48})
            box = {"id": place, "image_id": place, "category_id": 1, "bbox": [5, 5, 20, 20], "iscrowd": 0}
            annotations.append(box)
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
        Path("coco/annotations").mkdir(exist_ok=True)
        Path(f"coco/annotations/instances_{split}2017.json").write_text(json.dumps(content))
        Path(f"coco/annotations/captions_{split}2017.json").write_text(json.dumps(content))
    config, shown = init("coco")
    train, val = config["data"]["train"], config["data"]["val"]
    assert train["class_path"] == val["class_path"] == "COCO"
    assert train["init_args"]["image_root"] == "coco/train2017"
    assert val["init_args"]["image_root"] == "coco/val2017"
    assert "map" in config["model"]["scores"]
    assert "captions_train2017.json" in shown
    assert main(["preview", "--config", "my.yaml", "--samples", "1"]) == 0


def test_data_sets_of_datasets(init, shapes):
    datasets = pytest.importorskip("datasets")
    rows = shapes()
    for row in rows:
        row["image"] = {"bytes": Path("pictures", row["image"]).read_bytes(), "path": None}
    table = datasets.Dataset.from_list(rows)
    table.to_parquet("shapes.parquet")
    config, _ = init("shapes.parquet")
    assert config["data"]["train"] == "shapes.parquet"
    table.train_test_split(5, seed=0).save_to_disk("stored")
    config, _ = init("stored", out="stored.yaml")
    assert (config["data"]["train"], config["data"]["test"], config["data"]["val"]) == (
        "stored",
        "stored",
        "20%",
    )
    assert main(["preview", "--config", "stored.yaml", "--samples", "1"]) == 0


def test_pictures_in_folders_of_classes(init, here, capsys):
    for name in ("train/black_cat/1.png", "train/black_cat/2.png", "train/dog/3.png", "val/dog/4.png"):
        picture(f"animals/{name}")
    config, shown = init("animals")
    assert (config["data"]["train"], config["data"]["val"]) == ("my-train.jsonl", "my-val.jsonl")
    rows = [json.loads(line) for line in Path("my-train.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == ["black cat", "black cat", "dog"]
    assert rows[0]["question"] == "What is this: black cat or dog?"
    _, shown = init("animals")
    assert "it was there already" in shown
    assert main(["preview", "--config", "my.yaml", "--samples", "1"]) == 0


def test_pictures_with_texts_beside_them(init):
    for number in range(4):
        picture(f"animals/{number}.png")
        Path(f"animals/{number}.txt").write_text(f"A cat, the {number}th.\n")
    config, _ = init("animals")
    assert config["data"]["train"] == "my-train.jsonl"
    assert config["data"]["image_root"] == "animals"
    assert "val" not in config["data"]
    assert config["report"] is False
    assert main(["fit", "--config", "my.yaml", "--trainer.max_steps", "1"]) == 0


def test_addresses(init):
    """No model can be reached, so that no picture is fetched to measure it."""
    write([{"question": "a", "answer": "b", "image": "https://example.org/1.png"}] * 3)
    config, shown = init("shapes.jsonl", model="Qwen/Qwen2.5-VL-3B-Instruct")
    assert config["data"]["allow_urls"] is True
    assert "fetched from addresses in the data" in shown


def test_a_model_that_cannot_be_reached(init, shapes):
    write(shapes())
    config, shown = init("shapes.jsonl", "--memory", "24GiB", model=None)
    assert is_published(config["model"]["name_or_path"])
    assert "which can't be reached from here" in shown
    assert "--model drawn-vlm tries all of this without a download" in shown
    assert config["model"]["adapt"] == "lora"


def test_models_to_begin_with_are_proved():
    assert all(is_published(name) for _, name in BY_MEMORY)


@pytest.mark.parametrize(
    ("words", "model", "expected"),
    [
        (
            ["shape.jsonl"],
            "drawn-vlm",
            "shape.jsonl: found no such file or folder; expected data to learn from; did",
        ),
        (["pictures"], "drawn-vlm", "a folder with 20 pictures and no texts; expected a JSONL"),
        (["pictures/00.png"], "drawn-vlm", "a file of the type .png; expected one of .jsonl"),
        (
            ["odd.jsonl"],
            "drawn-vlm",
            "odd.jsonl:1: found a row with the keys 'foo', 'baar'; expected a known format",
        ),
        (["gone.jsonl"], "drawn-vlm", "20 pictures that aren't there: 'x00.png', 'x01.png', 'x02.png', ..."),
        (["empty.jsonl"], "drawn-vlm", "empty.jsonl: found no samples"),
        (["shapes.jsonl"], "drawn-vml", "did you mean drawn-vlm?"),
        (["shapes.jsonl"], "Qwen/Qwen2.5-VL-3B", "did you mean Qwen/Qwen2.5-VL-3B-Instruct?"),
        (["shapes.jsonl", "--memory", "24"], "drawn-vlm", "found '24' without a unit; did you mean 24GiB?"),
        (["shapes.jsonl", "--image_root", "nowhere"], "drawn-vlm", "image_root: found no folder nowhere"),
        (["shapes.jsonl", "--box_format", "pixel"], "drawn-vlm", "did you mean pixels?"),
        (["a", "b", "c", "d"], "drawn-vlm", "found 4 files; expected one, or those of train, val and test"),
        ([], "drawn-vlm", "DATA"),
    ],
)
def test_what_is_refused(words, model, expected, refused, shapes):
    rows = shapes()
    write(rows)
    write([{"foo": 1, "baar": 2}], "odd.jsonl")
    write([{**row, "image": f"x{row['image']}"} for row in rows], "gone.jsonl")
    Path("empty.jsonl").write_text("")
    assert expected in refused(*words, model=model)
