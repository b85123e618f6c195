"""What is said of shards that are broken, empty or aren't there."""

import json
import re
from pathlib import Path

import pytest

from lightning_vlm.data.streams import tables
from lightning_vlm.data.streams.options import Streaming
from lightning_vlm.data.streams.source import Shards
from lightning_vlm.errors import DataError, UserError
from tests.support.shards import picture, write_shard, write_tar


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "*.jsnl",
            r"found no file that fits; expected shards, such as a0.jsonl, a1.jsonl, d.jsonl.gz, which are in",
        ),
        ("a{0..2}.jsonl", r"a2.jsonl: found no such file; expected the files of .*; did you mean a[01]"),
        ("b/*.jsonl", r"but the folder .*/b isn't there"),
        ("a.jsonl", r"no such file; expected a shard; did you mean a[01].jsonl"),
        ("*.csv", r"c.csv; expected shards that end in .jsonl"),
        ("*.gz", r"found a packed file, which can only be read from its beginning; unpack it"),
    ],
)
def test_what_is_not_there(tmp_path, pattern, message):
    for number in range(2):
        write_shard(tmp_path / f"a{number}.jsonl", range(3))
    (tmp_path / "c.csv").write_text("question,answer\n")
    (tmp_path / "d.jsonl.gz").write_bytes(b"")
    with pytest.raises(UserError, match=message):
        Shards(f"{tmp_path}/{pattern}")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tar"])
def test_empty_shards_are_named_together_or_left_out(tmp_path, kind, capsys):
    write_shard(tmp_path / f"0.{kind}", range(4))
    for number in (1, 2):
        if kind == "parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(
                pyarrow.table({"question": pyarrow.array([], "string")}), tmp_path / f"{number}.{kind}"
            )
        elif kind == "tar":
            write_tar(tmp_path / f"{number}.{kind}", [])
        else:
            (tmp_path / f"{number}.{kind}").write_text("\n")
    with pytest.raises(DataError, match=rf"1\.{kind}: found an empty shard; .*also .*2\.{kind}"):
        Shards(f"{tmp_path}/*.{kind}")
    source = Shards(f"{tmp_path}/*.{kind}", on_bad_sample="skip")
    assert len(source) == 4
    assert len(source.skipped) == 2


def test_a_broken_archive_is_named_with_its_place(tmp_path):
    path = write_shard(tmp_path / "a.tar", range(10))
    data = Path(path).read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[:5200])
    with pytest.raises(DataError, match=r"cut\.tar: byte [\d,]+: found an archive that breaks off"):
        Shards(f"{tmp_path}/cut.tar")
    for size, found in ((b"-0000000777", "an archive that breaks off"), (b"lots of it!", "a broken header")):
        header = bytearray(data)
        header[1024 + 124 : 1024 + 135] = size
        (tmp_path / "size.tar").write_bytes(header)
        with pytest.raises(DataError, match=rf"size\.tar: byte 1,024: found {found}"):
            Shards(f"{tmp_path}/size.tar")
    (tmp_path / "junk.tar").write_bytes(b"junk" * 1000)
    with pytest.raises(DataError, match=r"junk\.tar: byte 0: found what is no header of a tar archive"):
        Shards(f"{tmp_path}/junk.tar")


def test_members_that_do_not_follow_each_other(tmp_path):
    members = [(f"{number}.png", picture(number)) for number in range(3)]
    members += [(f"{number}.json", b"{}") for number in range(3)]
    with pytest.raises(DataError, match=r"found a sample of '0.png'; expected a .json .*tar --sort=name"):
        Shards(write_tar(tmp_path / "a.tar", members))


def test_a_json_array_is_no_shard(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"question": "What?", "answer": "A."}]))
    with pytest.raises(DataError, match=r"found one JSON array; expected one JSON object a line, such as"):
        Shards(f"{tmp_path}/a.json")


def test_a_row_group_that_breaks_while_it_is_read(tmp_path):
    """The footer is whole, so that opening finds nothing, if the rows that are looked at are others."""
    path = write_shard(tmp_path / "a.parquet", range(100), group=5)
    source = Shards(path)
    import pyarrow.parquet

    column = pyarrow.parquet.ParquetFile(path).metadata.row_group(4).column(0)
    data = bytearray(Path(path).read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 40] = b"\xff" * 40
    Path(path).write_bytes(data)
    with pytest.raises(DataError, match=re.escape(f"{path}:22: found the row group 4, which can't be read")):
        source[22]
    assert source[50].source == f"{path}:50"


def test_a_row_group_that_becomes_larger_than_memory_is_refused(tmp_path, monkeypatch):
    """Of 20,000 equal texts the file has one; as a whole they are 200 MB, which its footer doesn't say."""
    import pyarrow.parquet

    path = tmp_path / "bomb.parquet"
    text = "long " * 2000
    pyarrow.parquet.write_table(pyarrow.table({"question": [text] * 20_000, "answer": ["A."] * 20_000}), path)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(tables, "available_memory", lambda: 60_000_000)
    with pytest.raises(DataError, match=r"row group 0, which can't be read \(it takes more than half of the"):
        Shards(path)[7]


def test_a_bad_row_is_named_when_it_is_read(tmp_path):
    path = write_shard(tmp_path / "a.jsonl", range(1000))
    lines = Path(path).read_text().splitlines()
    lines[500] = '{"question": "What?", "answer": '
    lines[501] = "   "
    Path(path).write_text("\n".join(lines))
    source = Shards(path)  # which looks at others
    with pytest.raises(DataError, match=r"a\.jsonl:501: column \d+: found broken JSON"):
        source[500]
    with pytest.raises(DataError, match=r"a\.jsonl:502: found an empty row"):
        source[501]


def test_other_formats_fail_at_once(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"rating": number}) + "\n" for number in range(9)))
    with pytest.raises(DataError, match="found a row with the keys 'rating'"):
        Shards(str(path))
    with pytest.raises(UserError, match="all 8 rows that were looked at are bad"):
        Shards(str(path), on_bad_sample="skip")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shufle_window": 3}, "there is no key shufle_window; did you mean shuffle_window?"),
        ({"shuffle_window": 0}, "shuffle_window: found 0; expected a number of samples, at least 1"),
    ],
)
def test_wrong_options(given, message):
    with pytest.raises(UserError, match=message):
        Streaming.read(given)
