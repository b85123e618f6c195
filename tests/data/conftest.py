import json
from pathlib import Path

import PIL.Image
import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Work in a folder with cat.png (red) and pictures/dog.png (blue)."""
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for name, colour in (("cat.png", "red"), ("pictures/dog.png", "blue")):
        PIL.Image.new("RGB", (4, 3), colour).save(name)
    return tmp_path


@pytest.fixture
def write(folder):
    """Write records, or lines as they are, to a file, and give its path."""

    def write_lines(*records, path="data.jsonl"):
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        Path(path).write_text("\n".join(lines) + "\n", "utf-8")
        return path

    return write_lines


@pytest.fixture
def words():
    """A conversation in short: (role, parts), a text for a text, a path or bytes for a picture."""

    def short(part):
        return next(
            getattr(part, name) for name in ("text", "xyxy", "path", "data") if getattr(part, name, None)
        )

    return lambda conversation: [
        (turn.role, [short(part) for part in turn.parts]) for turn in conversation.messages
    ]


@pytest.fixture(scope="module")
def renderer_of(processor_of):
    """The renderer of a model and a template; each is made once."""
    from lightning_vlm.data.render.renderer import Renderer

    made = {}

    def renderer(model, template=None):
        if (model, template) not in made:
            made[model, template] = Renderer(processor_of(model, template))
        return made[model, template]

    return renderer
