"""What `tools.reliability.fuzz` tries: each target takes input of one kind, and says what must hold for any.

A target may raise `UserError` and the like, which a person reads; any other exception is a finding.
"""

import functools
import json
import tempfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st
from jinja2 import TemplateError
from lightning_vlm_callbacks.selectors import SelectorError, select_modules
from torch import nn

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.config.yaml_file import read_config
from lightning_vlm.data.boxes.codecs import CODECS
from lightning_vlm.data.boxes.view import View
from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.data.read.readers import read
from lightning_vlm.data.render.bounded_template import BoundedTemplate, TemplateLimit
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import UserError
from lightning_vlm.inspect.page import page
from lightning_vlm.inspect.scan import scan_data
from lightning_vlm.kinds import Kind
from lightning_vlm.models.loading.load import load_processor
from tools.reliability.fuzz_inputs import BOXES, JINJA, MARKUP, SELECTORS, TALK, YAML, rows

REFUSALS = (UserError, SelectorError)
"""The errors that people read."""


class Target(NamedTuple):
    """What is tried, and how each of its arguments is drawn."""

    function: Callable[..., Any]
    arguments: dict[str, st.SearchStrategy[Any]]


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def _readers(rows_of_file: list[dict[str, Any]], noise: bytes, place: int) -> None:
    """A file of rows with some bytes changed: what is read, is read again as the same."""
    lines = b"\n".join(json.dumps(row).encode() for row in rows_of_file)
    at = place % (len(lines) + 1)
    path = _folder() / "rows.jsonl"
    path.write_bytes(lines[:at] + noise + lines[at + len(noise) :])
    source = read(str(path), on_bad_sample="skip")
    for index, sample in enumerate(source):
        assert sample == source[index]
        assert sample.source.startswith(f"{path}:")


def _boxes(text: str) -> None:
    """What a model wrote, and an answer of the data: boxes of numbers are read, or it is refused."""
    views = [View((640, 480), (644, 476))]
    for codec in CODECS.values():
        for item in codec.read(text, views).items:
            assert all(number == number for number in item.numbers), codec.name
    path = _folder() / "boxes.jsonl"
    path.write_text(json.dumps({"question": "Hi?", "answer": text}))
    for box_format in (None, "0-1000", "text"):
        read(str(path), box_format=box_format, on_bad_sample="skip")


@functools.cache
def _renderer() -> Renderer:
    return Renderer(load_processor("drawn-vlm"))


def _render(talk: list[tuple[str, str]]) -> None:
    """Turns of any words: what is learned is the answers and their ends, and nothing else."""
    renderer = _renderer()
    messages = []
    for question, answer in talk:
        messages += [Message("user", (Text(question),)), Message("assistant", (Text(answer),))]
    example = renderer.example(Conversation(tuple(messages), source="fuzz:1"))
    taught = example.input_ids[example.kinds >= Kind.RESPONSE]
    answers = "".join(f"{answer}<|im_end|>" for _, answer in talk)
    assert renderer.tokenizer.decode(taught, clean_up_tokenization_spaces=False) == answers


@functools.cache
def _tree() -> nn.Module:
    layers = nn.ModuleList(nn.ModuleDict({"lora_A": nn.Linear(1, 1)}) for _ in range(3))
    return nn.ModuleDict({"language": nn.ModuleDict({"layers": layers}), "head": nn.Linear(1, 1)})


def _selectors(written: list[str]) -> None:
    """Selectors: each names modules of the tree."""
    modules = set(map(id, _tree().modules()))
    assert all(id(module) in modules for module in select_modules(_tree(), written).values())


class _Tags(HTMLParser):
    """The tags of a page, none of which may run anything."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the tag."""
        self.tags.append(tag)
        assert not any(name.startswith("on") or name == "href" for name, _ in attrs)


@functools.cache
def _module() -> VLMModule:
    module = VLMModule("drawn-vlm", adapt={"projector": "full"})
    module.configure_model()
    return module


def _preview(words: str, task: str) -> None:
    """A page about any words and any task: they are on it as words, never as tags."""
    path = _folder() / "preview.jsonl"
    path.write_text(json.dumps({"question": words, "answer": words, "task": task}))
    html = page(scan_data(_module(), VLMDataModule(train=str(path)), 1, 1))
    assert not {"script", "img", "iframe", "object", "link", "a"} & set(_Tags(html).tags)


def _config(text: str) -> None:
    """A file of a config."""
    path = _folder() / "config.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    read_config(str(path))


_OWN_MISTAKES = (
    *(TypeError, ValueError, ZeroDivisionError, OverflowError, RecursionError, LookupError, AttributeError),
)
"""What operators and filters of a template raise, which the renderer reports as the template's."""


def _templates(text: str) -> None:
    """A chat template: it writes a text, or fails as templates do."""
    try:
        written = BoundedTemplate(text).render([{"role": "user", "content": "Hi?"}])
    except (TemplateError, TemplateLimit, *_OWN_MISTAKES) as error:
        raise UserError(str(error)) from error
    assert isinstance(written, str)


TARGETS = {
    "readers": Target(
        _readers,
        {
            "rows_of_file": st.lists(rows(), min_size=1, max_size=3),
            "noise": st.binary(max_size=3),
            "place": st.integers(0, 10**6),
        },
    ),
    "boxes": Target(_boxes, {"text": BOXES}),
    "render": Target(_render, {"talk": TALK}),
    "selectors": Target(_selectors, {"written": st.lists(SELECTORS, min_size=1, max_size=2)}),
    "preview": Target(_preview, {"words": MARKUP, "task": MARKUP}),
    "config": Target(_config, {"text": YAML}),
    "templates": Target(_templates, {"text": JINJA}),
}
"""By name."""
