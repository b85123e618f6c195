"""Run the notebooks and store what they show: `make notebooks`, or `python -m tools.notebooks [NAME ...]`."""

import argparse
import base64
import io
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).parent.parent / "notebooks"
MOST_BYTES = 400_000
"""How large a notebook may be with all that it shows."""
COLOURS = 128
"""How many colours a stored picture has."""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_OF_MACHINE = re.compile(
    r"(?<![\w./:])/(?:home|root|tmp|var|usr|opt|work|mnt|Users|private)/[\w./-]*|\b0x[0-9a-f]{6,}"
)
"""Absolute paths, and addresses of objects."""
_OF_RUN = {
    re.compile(r"\x1b\[[0-9;]*m"): "",
    re.compile(rf"{re.escape(tempfile.gettempdir())}/tmp\w{{8}}/"): "",  # what the notebook has made
    re.compile(re.escape(str(FOLDER.parent / "lightning_vlm"))): ".../lightning_vlm",
    re.compile(r"</pre>\s*<pre[^>]*>"): "",  # between lines of rich
    re.compile(r"in [\d.]+ s \([\d,]+ a second\)"): "in ... s",
    re.compile(r"( MB +)[\d.,]+( +)[\d.,]+(?= *\n)"): r"\1...\2...",  # how fast `compare` was
}
"""What is of one run or its screen alone, and what stands in its place."""
_REPR = re.compile(r"<[\w. ]+( size [\dx]+ with .*| object)?>$")


def main() -> None:
    """Run the notebooks that are named, or all, and write them back with their outputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("NAME", nargs="*", help="Which notebooks; without, all.")
    names = parser.parse_args().NAME or sorted(file.stem for file in FOLDER.glob("*.ipynb"))
    for name in names:
        file = FOLDER / f"{name}.ipynb"
        notebook = stored(executed(nbformat.read(file, as_version=4)))
        for fault in faults(notebook):
            raise SystemExit(f"{name}: {fault}")
        nbformat.write(notebook, file)
        print(f"{name:20} {file.stat().st_size / 1000:.0f} kB")


def executed(notebook: NotebookNode, **options: Any) -> NotebookNode:
    """The notebook after all its cells have run in a kernel of their own, in an empty folder.

    Args:
        notebook: As it was read; its outputs are replaced.
        options: Of the `NotebookClient`.

    Raises:
        CellExecutionError: A cell failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=300,
            resources={"metadata": {"path": folder}},
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],
            **options,
        )
        client.execute()
    return notebook


def stored(notebook: NotebookNode) -> NotebookNode:
    """The notebook as it is committed: outputs without what changes from run to run, small pictures."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [_stored(output) for output in _joined(cell.outputs)]
    return notebook


def faults(notebook: NotebookNode) -> Iterator[str]:
    """What mustn't be in the outputs of a notebook, each in a few words."""
    size = len(nbformat.writes(notebook).encode())
    if size > MOST_BYTES:
        yield f"{size:,} bytes; at most {MOST_BYTES:,}"
    for place, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                yield f"cell {place}: an error: {output.evalue}"
            elif output.get("name") == "stderr":
                yield f"cell {place}: noise: {output.text[:200]}"
            for text in texts(output):
                if found := _OF_MACHINE.search(text):
                    yield f"cell {place}: of this machine alone: {found[0]}"


def texts(output: NotebookNode) -> Iterator[str]:
    """All text of an output, whatever its form."""
    if "text" in output:
        yield output.text
    for kind, data in output.get("data", {}).items():
        if not kind.startswith("image/p"):
            yield str(data)


def _joined(outputs: list[NotebookNode]) -> Iterator[NotebookNode]:
    """The outputs, with neighbours of one stream as one, as how a stream is cut depends on time.

    Tables and lines of rich that follow one another are one output as well.
    """
    last = None
    for output in outputs:
        if last is not None and _name(last) == _name(output) == "rich":
            for kind, text in output.data.items():
                last.data[kind] += text
        elif last is not None and _name(last) == _name(output) != "":
            last.text += output.text
        else:
            if last is not None:
                yield last
            last = output
    if last is not None:
        yield last


def _name(output: NotebookNode) -> str:
    """The stream of an output; `rich` for what that package shows; nothing for all else."""
    if output.get("data", {}).keys() == {"text/plain", "text/html"} and "<pre" in output.data["text/html"]:
        return "rich"
    return str(output.get("name", ""))


def _stored(output: NotebookNode) -> NotebookNode:
    output.pop("metadata", None)
    if output.output_type in ("display_data", "execute_result"):
        output.metadata = NotebookNode()
        data = output.data
        if "image/png" in data:
            data["image/png"] = _small(data["image/png"])
        if len(data) > 1 and _REPR.match(data.get("text/plain", "")):
            del data["text/plain"]
        for kind in data.keys() - {"image/png"}:
            data[kind] = _of_any_machine(data[kind])
    if "text" in output:
        output.text = _of_any_machine(output.text)
    return output


def _of_any_machine(text: str) -> str:
    """A text without colours of a terminal, and without where this machine keeps things."""
    for pattern, other in _OF_RUN.items():
        text = pattern.sub(other, text)
    return text


def _small(png: str) -> str:
    """A PNG of few colours, without what it says of the program that made it."""
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    if picture.mode == "P":  # it is stored already
        return png
    file = io.BytesIO()
    picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode() + "\n"


if __name__ == "__main__":
    main()
