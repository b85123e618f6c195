"""The pages of the notebooks, with the outputs and pictures that are saved in them."""

import base64
import json
import re
from pathlib import Path
from typing import Any

from tools.docs_site.links import NOTEBOOKS

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PICTURES = {"image/png": "png", "image/jpeg": "jpg"}


def pages(root: Path) -> dict[str, str | bytes]:
    """Pages and pictures, by their places in the site."""
    made: dict[str, str | bytes] = {}
    for file in sorted((root / "notebooks").glob("*.ipynb")):
        made |= _page(file)
    return made


def _page(file: Path) -> dict[str, str | bytes]:
    made: dict[str, str | bytes] = {}
    notebook = json.loads(file.read_text("utf-8"))
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(text)
        elif cell["cell_type"] == "code":
            if text:
                parts.append(f"```python\n{text}\n```")
            for output in cell.get("outputs", []):
                parts.append(_output(output, file.stem, made))
    if not parts or not parts[0].startswith("# "):
        parts.insert(0, f"# {file.stem.replace('-', ' ').capitalize()}")
    parts.insert(
        1, f"This page is the notebook `notebooks/{file.name}`, with what it printed when it last ran."
    )
    made[f"{NOTEBOOKS}/{file.stem}.md"] = "\n\n".join(part for part in parts if part) + "\n"
    return made


def _output(output: dict[str, Any], name: str, made: dict[str, str | bytes]) -> str:
    """An output as Markdown; its picture goes into `made`."""
    if output["output_type"] == "stream":
        return _text("".join(output["text"]))
    data = output.get("data", {})
    for kind, ending in _PICTURES.items():
        if kind in data:
            picture = f"{name}_{len(made) + 1}.{ending}"
            made[f"{NOTEBOOKS}/{picture}"] = base64.b64decode("".join(data[kind]))
            return f"![what the cell shows]({picture})"
    if "text/markdown" in data:
        return re.sub(r"^#", "###", "".join(data["text/markdown"]), flags=re.MULTILINE)
    if "text/html" in data:
        html = "".join(data["text/html"])
        return f'<div class="notebook-html">{_one_block(html)}</div>'
    return _text("".join(data.get("text/plain", "")))


def _text(text: str) -> str:
    plain = _COLOURS.sub("", text).rstrip()
    plain = "\n".join(line.rpartition("\r")[2] for line in plain.split("\n"))
    return f"```text\n{plain}\n```" if plain else ""


def _one_block(html: str) -> str:
    """HTML without empty lines, which would end the block."""
    return re.sub(r"\n\s*\n", "\n", html.strip())
