"""Tables that are broken or odd: CSV, TSV, parquet and arrow."""

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.corpus.case import GOOD, GOOD_TEXTS, Case, Right, file_of, texts_of

take = texts_of

TWO = Right([GOOD_TEXTS])


def csv(text: str | bytes, name: str = "data.csv") -> Callable[[], str]:
    """A file with this text."""
    return file_of(text, name)


def parquet(rows: Any, name: str = "data.parquet", **options: Any) -> Callable[[], str]:
    """Writes rows, or columns, as parquet."""

    def make() -> str:
        table = pa.Table.from_pylist(rows) if isinstance(rows, list) else pa.table(rows)
        pq.write_table(table, name, **options)
        return name

    return make


def changed(change: Callable[[bytes], bytes], rows: Any = None) -> Callable[[], str]:
    """A parquet file whose bytes are changed."""

    def make() -> str:
        name = parquet(rows or 50 * [GOOD])()
        Path(name).write_bytes(change(Path(name).read_bytes()))
        return name

    return make


def arrow(rows: list[Any], cut: int | None = None, name: str = "data.arrow") -> Callable[[], str]:
    """Writes rows as a stream of arrow."""

    def make() -> str:
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(name, "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        Path(name).write_bytes(Path(name).read_bytes()[:cut])
        return name

    return make


def of(question: Any, answer: Any = "Yes.", **more: Any) -> dict[str, Any]:
    """A row of a question and its answer."""
    return {"question": question, "answer": answer, **more}


HEAD = "question,answer\n"
GOOD_CSV = f"{HEAD}Hi?,Yes.\n"

CASES = {
    # CSV
    "an empty CSV": Case(
        csv(""), "data.csv: found no column names; expected a line of column names and a row a line"
    ),
    "only a head": Case(csv(HEAD), "data.csv: found no samples; expected at least one"),
    "a head of white space": Case(
        csv("  \n"), "data.csv: found no column names; expected a line of column names and a row a line"
    ),
    "no head": Case(csv("Hi?,Yes.\nHo?,No.\n"), "data.csv:2: found a row with the keys 'Hi?', 'Yes.'"),
    "a column twice": Case(
        csv("question,answer,answer\nHi?,Yes.,No.\n"),
        "data.csv:1: answer: found a column that stands there twice; expected each column once",
    ),
    "a column twice but for spaces": Case(
        csv("question,answer, answer\nHi?,Yes.,No.\n"),
        "data.csv:1: answer: found a column that stands there twice; expected each column once",
    ),
    "a cell too few": Case(
        csv(f"{GOOD_CSV}Ho?\n"), "data.csv:3: found 1 cell; expected 2, one for each of 'question', 'answer'"
    ),
    "a cell too many": Case(
        csv(f"{GOOD_CSV}Ho?,No.,Maybe.\n"),
        "data.csv:3: found 3 cells; expected 2, one for each of 'question', 'answer'",
    ),
    "an unclosed quote": Case(
        csv(f'{GOOD_CSV}"Ho?,No.\nHe?,No.\n'),
        "data.csv:3: found what is no row (unexpected end of data); expected a line of column",
    ),
    "a quote within a cell": Case(
        csv(f'{GOOD_CSV}Ho "you"?,"No" way.\n'),
        "data.csv:3: found what is no row (',' expected after '\"'); expected a line of column",
    ),
    "a bad quote": Case(
        csv(f'{GOOD_CSV}"Ho"x?,No.\n'),
        "data.csv:3: found what is no row (',' expected after '\"'); expected a line of column",
    ),
    "an open quote in the head": Case(
        csv('"question,answer\nHi?,Yes.\n'),
        "data.csv:2: found 2 cells; expected 1, one for each of 'question,answer'",
    ),
    "CSV with a byte order mark": Case(csv(codecs.BOM_UTF8 + GOOD_CSV.encode()), TWO),
    "CSV in UTF-16": Case(
        csv(GOOD_CSV.encode("utf-16")), "data.csv: found text in UTF-16 or UTF-32; expected text in UTF-8"
    ),
    "CSV in Latin-1": Case(
        csv(f"{GOOD_CSV}Où?,Là.\n".encode("latin-1")),
        "data.csv:3: byte 2: found the byte 0xf9, which is not UTF-8; expected text in UTF-8",
    ),
    "a head in Latin-1": Case(
        csv("question,réponse\nHi?,Yes.\n".encode("latin-1")),
        "data.csv:1: byte 11: found the byte 0xe9, which is not UTF-8; expected text in UTF-8",
    ),
    "CSV with null bytes": Case(csv(f"{GOOD_CSV}a\0b,No.\n"), Right([["Hi?", "Yes."], ["a\x00b", "No."]])),
    "semicolons": Case(csv("question;answer\nHi?;Yes.\n"), TWO),
    "TSV with commas": Case(
        csv(GOOD_CSV, "data.tsv"), "data.tsv:2: found a row with the keys 'question,answer'"
    ),
    "CSV with the line ends of the old Mac": Case(
        csv("question,answer\rHi?,Yes.\r"),
        "data.csv:1: found what is no table (new-line character seen in unquoted field - do you",
    ),
    "line ends of all kinds in CSV": Case(csv("question,answer\r\nHi?,Yes.\r\n\n"), TWO),
    "an empty answer in CSV": Case(csv(f"{GOOD_CSV}Ho?,\n"), "data.csv:3: messages: found no assistant turn"),
    "a weight that is a word in CSV": Case(
        csv("question,answer,weight\nHi?,Yes.,much\n"), "data.csv:2: weight: found 'much'; expected a number"
    ),
    "a weight that is NaN in CSV": Case(
        csv("question,answer,weight\nHi?,Yes.,nan\n"),
        "data.csv:2: weight: found nan; expected a finite number >= 0",
    ),
    "100,000 columns": Case(
        csv(",".join(map(str, range(100_000))) + "\n1\n"),
        "data.csv:2: found 1 cell; expected 100000, one for each of '0', '1', '2', '3', '4',",
    ),
    "a head of 300,000 letters": Case(
        csv("q" * 300_000 + "\n1\n"),
        "data.csv:2: found a row with the keys 'qqqqqqqqqqqqqqqqqq...qqqqqqqqqqqqqqqqqq'",
    ),
    "JSON named as CSV": Case(
        csv('[{"question": "Hi?", "answer": "Yes."}]'), "data.csv: found no samples; expected at least one"
    ),
    "CSV named as JSON lines": Case(
        csv(GOOD_CSV, "data.jsonl"),
        "data.jsonl:1: column 1: found broken JSON (Expecting value) at 'question,answer'",
    ),
    # Parquet
    "parquet of 0 bytes": Case(
        changed(lambda data: b""),
        "data.parquet: found a file that can't be read as parquet (Parquet file size is 0 bytes)",
    ),
    "parquet that is text": Case(
        changed(lambda data: b"hello"),
        "data.parquet: found a file that can't be read as parquet (Parquet file size is 5 bytes,",
    ),
    "parquet without its end": Case(
        changed(lambda data: data[:-40]),
        "data.parquet: found a file that can't be read as parquet (Parquet magic bytes not found",
    ),
    "parquet without its beginning": Case(
        changed(lambda data: data[40:]),
        "data.parquet: found a file that can't be read as parquet (Couldn't deserialize thrift:",
    ),
    "parquet with a broken footer": Case(
        changed(lambda data: data[:-60] + b"\xff" * 50 + data[-10:]),
        "data.parquet: found a file that can't be read as parquet (Couldn't deserialize thrift:",
    ),
    "parquet with an absurd footer length": Case(
        changed(lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1"),
        "data.parquet: found a file that can't be read as parquet (Parquet file size is 971",
    ),
    "parquet with broken pages": Case(
        changed(lambda data: data[:8] + b"\xff" * 60 + data[68:]),
        "data.parquet: found a file that can't be read as parquet (Couldn't deserialize thrift:",
    ),
    "parquet of no rows": Case(
        parquet({"question": pa.array([], pa.string()), "answer": pa.array([], pa.string())}),
        "data.parquet: found no samples; expected at least one",
    ),
    "parquet of no columns": Case(
        parquet(pa.table({})), "data.parquet: found no samples; expected at least one"
    ),
    "parquet of numbers": Case(parquet([of(1, 2)]), Right([["1", "2"]])),
    "parquet with null answers": Case(
        parquet([of("Hi?"), of("Ho?", None)]), "data.parquet:1: messages: found no assistant turn"
    ),
    "parquet with null turns": Case(
        parquet([GOOD, {"messages": [None, GOOD["messages"][1]]}]), "data.parquet:1: messages[0]: found null"
    ),
    "parquet with null messages": Case(
        parquet([GOOD, {"messages": None}]), "data.parquet:1: found a row without keys"
    ),
    "parquet with null roles": Case(
        parquet([GOOD, {"messages": [{"role": None, "content": "x"}]}]),
        "data.parquet:1: messages[0]: found an object with the keys 'content'; expected the key",
    ),
    "parquet of bytes as texts": Case(
        parquet([of(b"Hi?", b"\xff\xfe")]), "data.parquet:0: question: found b''; expected a text"
    ),
    "parquet with a column twice": Case(
        parquet(pa.table([["Hi?"], ["Yes."], ["No."]], ["question", "answer", "answer"])),
        "data.parquet: found a file that can't be read as parquet (Multiple matches for",
    ),
    "parquet with pictures that are none": Case(
        parquet([of("Hi?", image={"bytes": b"no", "path": None})]),
        "data.parquet:0: messages[0].content[0]: found 2 bytes, which is not a picture",
    ),
    "parquet with pictures of no bytes": Case(
        parquet([of("Hi?", image={"bytes": None, "path": None})]), Right([["Hi?", "Yes."]])
    ),
    "parquet with infinite weights": Case(
        parquet([of("Hi?", weight=1.0), of("Ho?", weight=float("inf"))]),
        "data.parquet:1: weight: found inf; expected a finite number >= 0",
    ),
    "JSON named as parquet": Case(
        file_of("[]", "data.parquet"),
        "data.parquet: found a file that can't be read as parquet (Parquet file size is 2 bytes,",
    ),
    # Arrow
    "arrow that breaks off": Case(
        arrow(50 * [GOOD], -300),
        "data.arrow: found a file that can't be read as arrow (Expected to be able to read 2032",
    ),
    "arrow of 0 bytes": Case(
        arrow([GOOD], 0),
        "data.arrow: found a file that can't be read as arrow (File is too small: 0); expected a",
    ),
    "arrow without rows": Case(
        arrow([GOOD], 400),
        "data.arrow: found a file that can't be read as arrow (Expected to read 296 metadata",
    ),
    "arrow of other columns": Case(
        arrow([{"a": 1, "b": 2}]), "data.arrow:0: found a row with the keys 'a', 'b'"
    ),
    "text named as arrow": Case(
        file_of("hello", "data.arrow"),
        "data.arrow: found a file that can't be read as arrow (File is too small: 5); expected a",
    ),
    "text named as feather": Case(
        file_of("hello", "data.feather"),
        "data.feather: found a file that can't be read as arrow (File is too small: 5); expected",
    ),
}
