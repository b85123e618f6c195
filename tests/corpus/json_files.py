"""Files of JSON and of JSON lines that are broken, odd, or too large."""

import codecs
import json
from collections.abc import Callable

from tests.corpus.case import GOOD, GOOD_TEXTS, Case, Right, file_of, row_of, texts_of

take = texts_of

LINE = json.dumps(GOOD)
CHAT = '{"messages": [{"role": "user", "content": %s}, {"role": "assistant", "content": "Yes."}]}'
ONE = Right([GOOD_TEXTS])


def said(content: str) -> Callable[[], str]:
    """A second row whose question is written so."""
    return row_of((CHAT % content).encode("utf-8", "surrogatepass"))


CASES = {
    # Encodings
    "UTF-8 with a byte order mark": Case(file_of(codecs.BOM_UTF8 + LINE.encode()), ONE),
    "an array behind a byte order mark": Case(
        file_of(codecs.BOM_UTF8 + f"[{LINE}]".encode(), "data.json"), ONE
    ),
    "two byte order marks": Case(
        file_of(2 * codecs.BOM_UTF8 + LINE.encode()),
        "data.jsonl:1: column 1: found broken JSON (Unexpected UTF-8 BOM (decode using",
    ),
    "UTF-16": Case(
        file_of(LINE.encode("utf-16")), "data.jsonl: found text in UTF-16 or UTF-32; expected text in UTF-8"
    ),
    "UTF-16 without a mark": Case(
        file_of(LINE.encode("utf-16-le")),
        "data.jsonl:1: column 2: found broken JSON (Expecting property name enclosed in double",
    ),
    "UTF-32": Case(
        file_of(LINE.encode("utf-32")), "data.jsonl: found text in UTF-16 or UTF-32; expected text in UTF-8"
    ),
    "UTF-16, an array": Case(
        file_of(f"[{LINE}]".encode("utf-16"), "data.json"),
        "data.json: found text in UTF-16 or UTF-32; expected text in UTF-8",
    ),
    "Latin-1": Case(
        row_of((CHAT % '"Où?"').encode("latin-1")),
        "data.jsonl:2: byte 45: found the byte 0xf9, which is not UTF-8; expected text in UTF-8",
    ),
    "Latin-1, an array": Case(
        file_of(("[" + CHAT % '"Où?"' + "]").encode("latin-1"), "data.json"),
        "data.json:1: byte 46: found the byte 0xf9, which is not UTF-8; expected text in UTF-8",
    ),
    "half a UTF-8 character": Case(
        row_of((CHAT % '"é').encode()[:46]),
        "data.jsonl:2: column 43: found broken JSON (Unterminated string starting at) at '\"é}'",
    ),
    "an overlong encoding": Case(
        row_of((CHAT % '"X"').encode().replace(b"X", b"\xc0\xaf")),
        "data.jsonl:2: byte 44: found the byte 0xc0, which is not UTF-8; expected text in UTF-8",
    ),
    "a surrogate in UTF-8": Case(
        row_of((CHAT % '"X"').encode().replace(b"X", b"\xed\xa0\x80")),
        "data.jsonl:2: byte 44: found the byte 0xed, which is not UTF-8; expected text in UTF-8",
    ),
    # Characters
    "half a surrogate pair": Case(
        said('"\\ud83d"'), "data.jsonl:2: messages[0].content: found half a surrogate pair in '\\ud83d'"
    ),
    "surrogates the wrong way round": Case(
        said('"\\ude00\\ud83d"'),
        "data.jsonl:2: messages[0].content: found half a surrogate pair in '\\ude00\\ud83d'",
    ),
    "half a surrogate pair as a key": Case(
        row_of({**GOOD, "\ud83d": 1}), Right([["Hi?", "Yes."], ["Hi?", "Yes."]])
    ),
    "a null byte in a text": Case(
        said('"a\0b"'),
        "data.jsonl:2: column 45: found broken JSON (Invalid control character at) at '\\x00b\"},",
    ),
    "an escaped null in a text": Case(said('"a\\u0000b"'), Right([GOOD_TEXTS, ["a\0b", "Yes."]])),
    "a line break in a text": Case(
        row_of((CHAT % '"a\nb"').encode()),
        "data.jsonl:2: column 43: found broken JSON (Unterminated string starting at) at '\"a'",
    ),
    "a tab in a text": Case(
        said('"a\tb"'),
        "data.jsonl:2: column 45: found broken JSON (Invalid control character at) at '\\tb\"},",
    ),
    "an unknown escape": Case(
        said('"a\\x41"'),
        'data.jsonl:2: column 45: found broken JSON (Invalid \\escape) at \'\\\\x41"}, {"role":',
    ),
    "a cut escape": Case(
        said('"\\u12"'),
        'data.jsonl:2: column 45: found broken JSON (Invalid \\uXXXX escape) at \'u12"}, {"role":',
    ),
    "a byte order mark within a line": Case(
        row_of(codecs.BOM_UTF8 + LINE.encode()),
        "data.jsonl:2: column 1: found broken JSON (Unexpected UTF-8 BOM (decode using",
    ),
    "only null bytes": Case(
        file_of(b"\0" * 4096), "data.jsonl:1: column 1: found broken JSON (Expecting value) at"
    ),
    "only white space": Case(file_of(" \t\r\n\n  \n"), "data.jsonl: found no samples; expected at least one"),
    "an empty file": Case(file_of(""), "data.jsonl: found no samples; expected at least one"),
    "only a byte order mark": Case(
        file_of(codecs.BOM_UTF8), "data.jsonl: found no samples; expected at least one"
    ),
    # Line ends
    "line ends of Windows": Case(file_of(f"{LINE}\r\n{LINE}\r\n"), Right(2 * [GOOD_TEXTS])),
    "line ends of all kinds": Case(file_of(f"{LINE}\n{LINE}\r\n\r\n\n{LINE}"), Right(3 * [GOOD_TEXTS])),
    "line ends of the old Mac": Case(
        file_of(f"{LINE}\r{LINE}\r"),
        'data.jsonl:1: column 94: found broken JSON (Extra data) at \'{"messages": [{"role":',
    ),
    "a line separator of Unicode in a text": Case(
        said('"a\u2028b"'), Right([GOOD_TEXTS, ["a\u2028b", "Yes."]])
    ),
    "two rows on a line": Case(
        row_of(f"{LINE}{LINE}".encode()),
        'data.jsonl:2: column 93: found broken JSON (Extra data) at \'{"messages": [{"role":',
    ),
    "commas between lines": Case(
        file_of(f"{LINE},\n{LINE}\n"), "data.jsonl:1: column 93: found broken JSON (Extra data) at ','"
    ),
    "a row over several lines": Case(
        file_of(json.dumps(GOOD, indent=1)), "data.jsonl: found an object over several lines"
    ),
    # Syntax
    "a cut line": Case(
        row_of(LINE[:-9].encode()), "data.jsonl:2: column 83: found broken JSON (Expecting value) at ''"
    ),
    "single quotes": Case(
        row_of(str(GOOD).encode()),
        "data.jsonl:2: column 2: found broken JSON (Expecting property name enclosed in double",
    ),
    "a comma too many": Case(
        row_of(LINE.replace("}]}", "},]}").encode()),
        "data.jsonl:2: column 92: found broken JSON (Expecting value) at ']}'",
    ),
    "a comment": Case(
        file_of(f"// rows\n{LINE}\n"),
        "data.jsonl:1: column 1: found broken JSON (Expecting value) at '// rows'",
    ),
    "keys without quotes": Case(
        row_of(b"{messages: []}"),
        "data.jsonl:2: column 2: found broken JSON (Expecting property name enclosed in double",
    ),
    "True for true": Case(
        row_of(b'{"messages": [], "train": True}'),
        "data.jsonl:2: column 27: found broken JSON (Expecting value) at 'True}'",
    ),
    "a key twice": Case(
        row_of(LINE.replace('"content": "Yes."', '"content": "No.", "content": "Y"').encode()),
        "data.jsonl:2: content: found a key that stands there twice; expected each key of an",
    ),
    "a key twice in an array": Case(
        file_of(f'[{{"task": "a", {LINE[1:-1]}, "task": "b"}}]', "data.json"),
        "data.json:1[0]: task: found a key that stands there twice; expected each key of an",
    ),
    "a text": Case(
        row_of(b'"hello"'), "data.jsonl:2: found 'hello'; expected an object with keys such as 'messages' or"
    ),
    "null": Case(
        row_of(b"null"),
        "data.jsonl:2: found null; expected an object with keys such as 'messages' or 'question'",
    ),
    "a number": Case(
        row_of(b"12"), "data.jsonl:2: found 12; expected an object with keys such as 'messages' or 'question'"
    ),
    "a list": Case(
        row_of(b"[1, 2]"),
        "data.jsonl:2: found a list of 2; expected an object with keys such as 'messages' or",
    ),
    "an array that breaks off": Case(
        file_of(f"[{LINE}, ", "data.json"),
        "data.json:1: column 96: found broken JSON (Expecting value) at ''",
    ),
    "an array with more behind it": Case(
        file_of(f"[{LINE}] {LINE}", "data.json"),
        "data.json:1: column 96: found broken JSON (Expecting nothing after the array) at",
    ),
    "an array of arrays": Case(
        file_of(f"[[{LINE}]]", "data.json"),
        "data.json:1[0]: found a list of 1; expected an object with keys such as 'messages' or",
    ),
    "an empty array": Case(file_of("[]", "data.json"), "data.json: found no samples; expected at least one"),
    "an empty object": Case(file_of("{}", "data.json"), "data.json:1: found a row without keys"),
    "two lists of rows": Case(
        file_of(f'{{"a": [{LINE}], "b": [{LINE}]}}', "data.json"),
        "data.json:1: found a row with the keys 'a', 'b'",
    ),
    # Numbers
    "NaN as a weight": Case(
        row_of(LINE.replace("{", '{"weight": NaN, ', 1).encode()),
        "data.jsonl:2: weight: found nan; expected a finite number >= 0",
    ),
    "-Infinity as a weight": Case(
        row_of(LINE.replace("{", '{"weight": -Infinity, ', 1).encode()),
        "data.jsonl:2: weight: found -inf; expected a finite number >= 0",
    ),
    "an exponent out of range": Case(
        row_of(LINE.replace("{", '{"weight": 1e999, ', 1).encode()),
        "data.jsonl:2: weight: found inf; expected a finite number >= 0",
    ),
    "a number of 400 digits": Case(
        row_of(LINE.replace("{", '{"weight": 1%s, ' % ("0" * 400), 1).encode()),
        "data.jsonl:2: weight: found inf; expected a finite number >= 0",
    ),
    "a number of a million digits": Case(
        row_of(b'{"weight": ' + b"9" * 1_000_000 + b"}"),
        "data.jsonl:2: found a number with too many digits; expected a conversation",
    ),
    "a number that begins with 0": Case(
        row_of(LINE.replace("{", '{"weight": 01, ', 1).encode()),
        "data.jsonl:2: column 13: found broken JSON (Expecting ',' delimiter) at '1, \"messages\":",
    ),
}
