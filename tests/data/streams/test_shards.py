"""Shards of every kind as one source."""

import json
import pickle
import tarfile

import pytest

from lightning_vlm.data.read.readers import read
from lightning_vlm.data.streams.files import expand_braces
from lightning_vlm.data.streams.options import Streaming
from lightning_vlm.data.streams.source import Shards
from lightning_vlm.data.task_table import OTHER
from lightning_vlm.errors import DataError, UserError
from tests.support.shards import KINDS, picture, row, write_shard, write_tar


def questions(source):
    return [source[index].messages[0].parts[-1].text for index in range(len(source))]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_all_shards_in_their_order(tmp_path, kind):
    for number in range(3):
        write_shard(tmp_path / f"{number}.{kind}", range(7 * number, 7 * number + 7))
    source = Shards(f"{tmp_path}/*.{kind}")
    assert questions(source) == [row(number)["question"] for number in range(21)]
    assert source.task_table().names == ("default", OTHER)
    images = [source[index].images[0] for index in range(21)]
    if kind != "jsonl":
        assert [image.data for image in images] == [picture(number) for number in range(21)]
    again = pickle.loads(pickle.dumps(source))  # as for a worker that isn't forked
    assert again[20] == source[20]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_are_as_they_are_where_files_are_read_whole(tmp_path, kind):
    path = write_shard(tmp_path / f"a.{kind}", range(12), task="vqa")
    whole, streamed = read(path), Shards(path)
    assert [whole[index] for index in range(12)] == [streamed[index] for index in range(12)]


def test_lines_are_found_whatever_ends_them(tmp_path):
    rows = [json.dumps({"question": f"{number}?", "answer": "Yes."}) for number in range(5)]
    text = "\ufeff" + rows[0] + "\r\n\r\n" + rows[1] + "\n\n\n" + rows[2] + "\n" + rows[3] + "\n" + rows[4]
    (tmp_path / "a.jsonl").write_bytes(text.encode())
    source = Shards(f"{tmp_path}/a.jsonl")
    assert questions(source) == [f"{number}?" for number in range(5)]
    whole = read(f"{tmp_path}/a.jsonl")
    assert [source[index].source for index in range(5)] == [whole[index].source for index in range(5)]


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_are_read_as_tarfile_writes_them(tmp_path, layout):
    """Long names, folders, hidden files and links among the members."""
    folder = "a/" * 60
    names = [f"{folder}{number:05}" for number in range(3)] + ["ümläut", "0007"]
    members = []
    for number, name in enumerate(names):
        members += [(f"{name}.png", picture(number)), (f"{name}.json", json.dumps(row(number)).encode())]
    members.insert(2, ("._hidden.png", b"junk"))
    path = write_tar(tmp_path / "a.tar", members, format=layout)
    with tarfile.open(path, "a", format=layout) as archive:
        link = tarfile.TarInfo("0007.secret.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    source = Shards(path)
    assert questions(source) == [row(number)["question"] for number in range(5)]
    assert [source[number].images[0].data for number in range(5)] == [picture(n) for n in range(5)]
    assert source[3].source == f"{path}:ümläut"


def test_an_archive_says_which_picture_stands_where(tmp_path):
    content = [{"type": "text", "text": "First"}, {"type": "image", "path": "1.b.png"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "blue"}]
    members = [("1.a.png", picture(0)), ("1.b.png", picture(2)), ("1.txt", b"unused")]
    members += [("1.json", json.dumps({"messages": turns}).encode()), ("2.jpg", picture(1)), ("2.txt", b"Hi")]
    source = Shards(write_tar(tmp_path / "a.tar", members))
    assert [image.data for image in source[0].images] == [picture(2)]
    assert source[1].images[0].data == picture(1)
    assert source[1].messages[1].parts[0].text == "Hi"


@pytest.mark.parametrize("outside", ["/etc/passwd", "../secret.png", "2.png", "file:///etc/passwd"])
def test_an_archive_reads_nothing_but_the_members_of_a_sample(tmp_path, outside):
    (tmp_path / "secret.png").write_bytes(picture(0))
    words = json.dumps({"image": outside, "question": "What?", "answer": "A."}).encode()
    members = [("1.png", picture(0)), ("1.json", words), ("2.png", picture(0)), ("2.txt", b"Hi")]
    with pytest.raises(DataError, match=r"a\.tar:1: image: found .*member of its sample: '1.png', '1.json'"):
        Shards(write_tar(tmp_path / "a.tar", members))


def test_pictures_of_lines_stay_below_their_root(tmp_path):
    (tmp_path / "secret.png").write_bytes(picture(0))
    path = write_shard(tmp_path / "in" / "a.jsonl", range(3))
    with open(path, "a") as file:
        file.write(json.dumps({"image": "../secret.png", "question": "What?", "answer": "A."}) + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl:4: image: found .* outside"):
        Shards(path)


def test_parquet_behind_an_address(tmp_path):
    """Any file system of fsspec, as that of the hub, which can't be reached here."""
    import fsspec

    system = fsspec.filesystem("memory")
    for number in range(2):
        path = write_shard(tmp_path / f"{number}.parquet", range(4 * number, 4 * number + 4))
        system.put(path, f"/pets/{number}.parquet")
    source = Shards("memory://pets/*.parquet")
    assert questions(source) == [row(number)["question"] for number in range(8)]
    assert source[5].source == "memory:///pets/1.parquet:1"
    with pytest.raises(UserError, match=r"of files that aren't on this machine only parquet"):
        Shards("memory://pets/0.tar")


def test_folders_have_splits(tmp_path):
    write_shard(tmp_path / "data" / "train-0.parquet", range(4))
    write_shard(tmp_path / "data" / "train-1.parquet", range(4, 8))
    write_shard(tmp_path / "data" / "validation-0.parquet", range(8, 10))
    assert len(Shards(str(tmp_path))) == 8
    assert len(Shards(str(tmp_path), split="val")) == 2


def test_tasks_of_shards(tmp_path):
    write_shard(tmp_path / "vqa-0.jsonl", range(3))
    write_shard(tmp_path / "ocr-0.jsonl", range(3, 5), task="ocr")
    source = Shards(f"{tmp_path}/*.jsonl", streaming=Streaming(tasks={"vqa": "vqa-*", "ocr": "*/ocr-*"}))
    names, of = source.task_table()
    assert [names[task] for task in of] == ["ocr"] * 2 + ["vqa"] * 3
    assert [source[index].task for index in range(5)] == ["ocr"] * 2 + ["vqa"] * 3
    for tasks, message in (
        ({"vqa": "vqa-*"}, "found no task for .*ocr-0"),
        ({"vqa": "*", "ocr": "ocr-*"}, "found vqa and ocr for .*ocr-0"),
        ({"vqa": "vqa-*", "ocr": "ocr-*", "text": "x*"}, r"tasks.text: found 'x\*', which fits no shard"),
    ):
        with pytest.raises(UserError, match=message):
            Shards(f"{tmp_path}/*.jsonl", streaming=Streaming(tasks=tasks))
    with pytest.raises(DataError, match=r"task: found 'ocr'; expected 'vqa', which data.streaming.tasks"):
        Shards(f"{tmp_path}/*.jsonl", streaming=Streaming(tasks={"vqa": "*"}))


def test_braces_are_as_those_of_a_shell():
    assert expand_braces("a{9..11}{,b}") == ["a9", "a9b", "a10", "a10b", "a11", "a11b"]
    with pytest.raises(UserError, match="more than 1,000,000 names"):
        expand_braces("{0..9999999999}")
