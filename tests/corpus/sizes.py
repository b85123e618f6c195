"""Files that are too large, nested too deep, compressed wrongly, or not there at all."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

from tests.corpus.case import GOOD, Case, file_of, row_of, texts_of
from tests.corpus.json_files import LINE, said

take = texts_of

ONES = "1," * 1_100_000


def sparse(size: int, start: str = "", name: str = "data.jsonl") -> Callable[[], str]:
    """A file that ends with a long line of null bytes, which takes no room on the disk."""

    def make() -> str:
        with open(name, "wb") as file:
            file.write(start.encode())
            file.truncate(size)
        return name

    return make


def packed(content: bytes, name: str = "data.jsonl.gz", cut: int | None = None) -> Callable[[], str]:
    """A file that is compressed."""

    def make() -> str:
        Path(name).write_bytes(gzip.compress(content, 1)[:cut])
        return name

    return make


def folder(name: str = "data.jsonl") -> Callable[[], str]:
    """A folder with the name of a file."""

    def make() -> str:
        Path(name).mkdir()
        return name

    return make


CASES = {
    # Depth and size
    "lists nested 100,000 deep": Case(
        said("[" * 100_000 + "]" * 100_000),
        "data.jsonl:2: found JSON nested too deep; expected a conversation",
    ),
    "objects nested 100,000 deep": Case(
        said('{"a":' * 100_000 + "1" + "}" * 100_000),
        "data.jsonl:2: found JSON nested too deep; expected a conversation",
    ),
    "lists nested 200 deep": Case(
        said("[" * 200 + "]" * 200),
        "data.jsonl:2: found values nested more than 100 deep; expected a conversation",
    ),
    "an array nested 100,000 deep": Case(
        file_of("[" * 100_000, "data.json"),
        "data.json:1: found JSON nested too deep; expected a conversation",
    ),
    "tools nested 300 deep": Case(
        row_of({**GOOD, "tools": json.loads("[" * 300 + "]" * 300)}),
        "data.jsonl:2: found values nested more than 100 deep; expected a conversation",
    ),
    "a million values": Case(said(f"[{ONES}1]"), "data.jsonl:2: found a row of 1,100,0"),
    "a million values in an array": Case(
        file_of(f'[{LINE}, {{"messages": [{ONES}1]}}]', "data.json"),
        "data.json:1[1]: found a row of 1,100,0",
    ),
    "a line of 200 MB": Case(
        sparse(200_000_000, f"{LINE}\n"), "data.jsonl:2: found a row of more than 128 MiB"
    ),
    "a file of a terabyte in one array": Case(
        sparse(2**40, "[", "data.json"),
        "data.json: found 1,099.5 GB of JSON in one value, which takes about 3,299 GB of memory",
    ),
    # Compression
    "a .gz that isn't compressed": Case(
        file_of(LINE, "data.jsonl.gz"),
        "data.jsonl.gz: found a broken gzip file (Not a gzipped file (b'{\"')); expected a whole",
    ),
    "a compressed file without .gz": Case(
        packed(LINE.encode(), "data.jsonl"),
        "data.jsonl: found a compressed file; expected the name to end in .gz",
    ),
    "a .gz that breaks off": Case(
        packed(LINE.encode(), cut=-12),
        "data.jsonl.gz: found a broken gzip file (Compressed file ended before the end-of-stream",
    ),
    "an empty .gz": Case(packed(b""), "data.jsonl.gz: found no samples; expected at least one"),
    "a .gz of 0 bytes": Case(
        file_of(b"", "data.jsonl.gz"), "data.jsonl.gz: found no samples; expected at least one"
    ),
    "a .gz that grows a thousand times": Case(
        packed(b"\n" * (300 << 20)),
        "data.jsonl.gz: found a .gz file of 1,372,719 bytes that holds more than 274,543,800",
    ),
    "a .gz in a .gz": Case(
        packed(gzip.compress(LINE.encode())),
        "data.jsonl.gz: found a compressed file; expected the name to end in .gz",
    ),
    # Names
    "no such file": Case(
        lambda: "nothing.jsonl",
        "nothing.jsonl: found no such file; expected a file with one JSON object a line, or one",
    ),
    "a folder named as a file": Case(
        folder(), "data.jsonl: found a folder that can't be read (The directory at "
    ),
    "another type": Case(file_of(LINE, "data.xlsx"), "data.xlsx: found a file of the type .xlsx"),
    "a null byte in the name": Case(lambda: "a\0b.jsonl", "found what can't be opened (embedded null byte)"),
    "a name of 5,000 letters": Case(
        lambda: "a" * 5000 + ".jsonl",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ),
}
