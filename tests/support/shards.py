"""Shards of questions about small drawn pictures, of every kind that is streamed."""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image

COLOURS = ("red", "green", "blue", "yellow")
KINDS = ("jsonl", "parquet", "arrow", "tar")


def picture(number: int) -> bytes:
    """The file of a picture of one colour."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (32, 32), COLOURS[number % 4]).save(file, "PNG")
    return file.getvalue()


def row(number: int, task: str | None = None) -> dict[str, Any]:
    """A row without its picture. Each has another question."""
    words = {"question": f"Which colour has picture {number}?", "answer": COLOURS[number % 4]}
    return {**words, "task": task} if task else words


def write_shard(path: Path, numbers: range, task: str | None = None, group: int = 5) -> str:
    """Write some rows as a shard, whose kind its name says.

    Args:
        path: Of the file.
        numbers: Of the rows.
        task: Of all of them; None says none.
        group: Rows of a row group or a record batch.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        for colour in range(4):
            (path.parent / f"{COLOURS[colour]}.png").write_bytes(picture(colour))
        rows = [{"image": f"{COLOURS[number % 4]}.png", **row(number, task)} for number in numbers]
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    elif path.suffix == ".tar":
        members: list[tuple[str, bytes]] = []
        for number in numbers:
            words = json.dumps(row(number, task)).encode()
            members += [(f"{number:06}.png", picture(number)), (f"{number:06}.json", words)]
        write_tar(path, members)
    else:
        write_table(path, numbers, task, group)
    return str(path)


def write_tar(path: Path, members: list[tuple[str, bytes]], **options: Any) -> str:
    """Write an archive of some files."""
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def write_table(path: Path, numbers: range, task: str | None, group: int) -> None:
    """Write a parquet or an arrow file as `datasets` does, which stores what columns are beside them."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    rows = [{"image": {"bytes": picture(number), "path": None}, **row(number, task)} for number in numbers]
    columns = {"image": datasets.Image(), "question": datasets.Value("string")}
    columns |= {name: datasets.Value("string") for name in ("answer", "task") if name in rows[0]}
    table = datasets.Dataset.from_list(rows, datasets.Features(columns)).data.table
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=group)
        return
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=group)


def archive_bytes(members: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """The pieces of an archive of many small files, whose headers `tarfile` would be slow to write."""
    blank = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    for name, content in members:
        header = bytearray(blank)
        header[:100] = name.encode().ljust(100, b"\0")
        header[124:136] = b"%011o\0" % len(content)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        yield bytes(header)
        yield content
        yield bytes(-len(content) % 512)
    yield bytes(1024)
