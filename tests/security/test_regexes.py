"""Patterns that read strangers' text take time in proportion to it, whatever it says.

Each text is one that made a pattern try every way in which two of its repetitions can share some characters:
within `SECONDS` at a size at which the square of it takes minutes, and a power of it years.
"""

import json
import re
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from lightning_vlm_callbacks.selectors import SelectorError, select_modules
from torch import nn

from lightning_vlm.chat.line import paths, pieces
from lightning_vlm.data.read.markup import tokens
from lightning_vlm.data.read.markup.numbers import groups_in
from lightning_vlm.data.read.markup.objects import BOX
from lightning_vlm.data.read.readers import read
from lightning_vlm.data.render.markers import split_at_markers
from lightning_vlm.data.render.template_sizes import size_of_call, size_of_operation
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.export.serving import trained_sampling
from lightning_vlm.metrics.choices import choices_of, letter_of
from lightning_vlm.metrics.short_answers import anls
from lightning_vlm.migrate.shell import read_script
from lightning_vlm.migrate.theirs import plain
from lightning_vlm.outputs.secrets import without_credentials
from lightning_vlm.start.survey import survey

SECONDS = 4
N = 200_000
"""How often each text repeats something. The square of it takes minutes even at a nanosecond a step."""


class TooLongError(BaseException):
    """Nothing catches it but the test."""


@contextmanager
def within_seconds(seconds):
    """Ends what takes more seconds of processor time."""

    def ring(*_):
        raise TooLongError

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def turn(text, **more):
    """Reads a row with a text."""
    row = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}], **more}
    Path("d.jsonl").write_text(json.dumps(row))
    try:
        list(read("d.jsonl", box_format="0-1000"))
    except DataError:
        return


def look(question, answer):
    """What `init` does with a row."""
    Path("d.jsonl").write_text(json.dumps({"question": question, "answer": answer}))
    survey(read("d.jsonl"))


def select(selector):
    """Modules of a model that a stranger named."""
    with pytest.raises(SelectorError):
        select_modules(nn.ModuleDict({"a" * 2000: nn.Identity()}), selector)


EIGHTH = N // 8
LIST = "[11, 11, 11, 11]"
ATTACKS = {
    "lists of numbers that aren't closed": lambda: turn("[" + ", ".join([LIST] * 1000) + "x"),
    "long numbers": lambda: turn(f"[{', '.join(['1' * 4000] * 4)}x"),
    "numbers of points": lambda: turn(f'<point x{"1" * 5000}="1" y{"1" * 5000}="1">a</point>'),
    "spaces between tags": lambda: groups_in(" " * N),
    "spaces behind a tag": lambda: turn("<box>" + " " * N),
    "marks of answers": lambda: turn('"bbox":["' + "<|begin_of_box|>[1<|end_of_box|>" * EIGHTH),
    "JSON that isn't closed": lambda: turn('"bbox":[' + '[{"a' * 5000),
    "labels": lambda: turn("<ref>a</ref>" * 5000),
    "tags": lambda: turn("<box>" * 5000),
    "places in JSON": lambda: turn(f'{BOX} ":' + " " * N, objects={"bbox": [[1, 2, 3, 4]]}),
    "PaliGemma": lambda: tokens.labelled_tokens("<loc0001>" * 4 + " " * N + "<"),
    "PaliGemma's boxes": lambda: tokens.labelled_tokens(("<loc0001>" * 4 + " a;  ") * EIGHTH + "<"),
    "Florence's boxes": lambda: tokens.labelled_tokens("a  <loc_1><loc_1>" * EIGHTH + "<"),
    "pictures in a text": lambda: turn("\n<image>" * EIGHTH + "x", images=["a.png"]),
    "the number of a picture": lambda: turn(f"<image id={'1' * 5000}>", images=["a.png"]),
    "what might be base64": lambda: turn("<image>", images=["A" + " " * N + "!"]),
    "a choice": lambda: choices_of("A. a" + " " * N + "b"),
    "marks behind 'answer'": lambda: letter_of("answer" + "*" * N + "1"),
    "options": lambda: letter_of("option " * EIGHTH),
    "answers": lambda: letter_of("answer a " * EIGHTH),
    "a long right answer": lambda: anls("a" * 1000, ["b" * 100 * N]),
    "lines in a question": lambda: look("a" + "\n" * N + "a", "B"),
    "digits in an answer": lambda: look("a", "1" * N + "x"),
    "a line in a chat": lambda: pieces("a" * N),
    "a path in a chat": lambda: pieces("a.pngx" * EIGHTH + ".png"),
    "escapes in a chat": lambda: pieces("\\a" * N),
    "paths in a chat": lambda: paths("a'" * N),
    "a word in a config": lambda: without_credentials("a" * N),
    "video settings of a checkpoint": lambda: trained_sampling({"data.video": "a" * N}),
    "a format of a template": lambda: size_of_call(10**6, (":" * N).format, ([1],), {}),
    "a selector": lambda: select("*a" * 10 + "*b"),
    "marks of a template": lambda: split_at_markers("\ue002" * N),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ATTACKS)
def test_time_grows_with_the_text(name):
    with within_seconds(SECONDS):
        ATTACKS[name]()


def test_the_limit_finds_what_it_should(monkeypatch):
    """The pattern of PaliGemma as it once was: spaces belong to a box, or to the next one."""
    old = re.compile(rf"(?:\s*{tokens.PALIGEMMA}[^<;]*(?:;\s*|\Z))+")
    monkeypatch.setattr(tokens, "_ALL_OF_PALIGEMMA", old)
    with pytest.raises(TooLongError), within_seconds(0.2):
        ATTACKS["PaliGemma's boxes"]()


def test_numbers_that_python_refuses_to_read():
    """Whole numbers of more than 4,300 digits are no reason for a traceback."""
    digits = "1" * 5000
    assert plain(digits) == digits
    assert size_of_call(10**6, f"{{:{digits}}}".format, ([1],), {}) > 10**6
    turns = [{"from": "human", "value": f"<image id={digits}>"}, {"from": "gpt", "value": "a"}]
    Path("d.jsonl").write_text(json.dumps({"images": ["a.png"], "conversations": turns}))
    with pytest.raises(DataError, match=r"'<image 1+\.\.\.1+>', but 1 picture"):
        list(read("d.jsonl"))


def test_variables_that_fill_one_another():
    script = "A=aaaaaaaaaa\n" + "A=$A$A\n" * 60 + "swift sft --model $A\n"
    with pytest.raises(UserError, match="variables that make a word of more than"):
        read_script(script, "a.sh")


def test_widths_behind_many_others():
    """Each width of a format counts, not the first hundred alone."""
    form = "%0000001d" * 100 + "%99999999d" * 2
    assert size_of_operation(10**6, "%", form, (1,) * 102) > 10**8
