"""Each notebook runs from beginning to end and shows what it says; what is stored in it is just that."""

import base64
import io
import multiprocessing
import re
from itertools import pairwise

import nbformat
import pytest
from PIL import Image

from tests.support.forked_kernel import ForkedKernelManager
from tools.notebooks import FOLDER, executed, faults, stored, texts

NAMES = sorted(file.stem for file in FOLDER.glob("*.ipynb"))
KERNEL = (
    {"kernel_manager_class": ForkedKernelManager}
    if "forkserver" in multiprocessing.get_all_start_methods()
    else {}
)


def numbers(pattern, text):
    """The numbers that a pattern with groups finds."""
    found = re.search(pattern, text)
    assert found, f"not shown: {pattern}\n{text}"
    return [float(number.replace(",", "")) for number in found.groups()]


def check_quickstart(text):
    before, after = numbers(r"exact match (\S+) -> (\S+)", text)
    assert before < 0.2 < 0.6 < after
    before, after = numbers(r"loss +(\S+) -> (\S+)", text)
    assert after < before / 4
    assert re.search(r"val-002.png: \w+ \w+", text)


def check_masks_and_weights(text):
    module, by_hand = numbers(r"by the module (\S+), by hand (\S+)", text)
    assert module == pytest.approx(by_hand, rel=1e-5)
    assert "chat has 79 tokens and loses 4 messages" in text
    assert "train.jsonl:2: found 41 tokens, 16 of them of pictures; expected at most 40 (max_length)" in text
    assert "of the tokens are learned" in text


def check_own_data(text):
    mistakes = re.findall(r"^(?:error|warning) +(\w+) +shapes/shapes.jsonl:\d+$", text, re.MULTILINE)
    wanted = ["missing_file", "truncated_picture", "box_inverted", "empty_answer", "duplicate_sample"]
    assert mistakes == wanted
    assert "exit status 2" in text
    assert "did   \n  you mean '23.jpg'?" in text or "did you mean '23.jpg'?" in text
    assert "26 rows in shapes.clean.jsonl" in text
    assert "config   fits as it is" in text


def check_grounding(text):
    before, after = numbers(r"acc@0.5 +(\S+) -> (\S+)", text)
    assert before < 0.1 < 0.4 < after
    before, after = numbers(r"miou +(\S+) -> (\S+)", text)
    assert before < 0.1 < 0.4 < after
    assert numbers(r"parse_failures +\S+ -> (\S+)", text)[0] < 0.1
    assert re.search(r"answer after: (<loc_\d+>){4}", text)


def check_callbacks(text):
    assert numbers(r"accuracy (\S+)", text)[0] > 0.8
    assert "NaN or infinity at step 100" in text
    assert "checkpoints/best.ckpt" in text


def check_gradnorm(text):
    equal, balanced = numbers(r"mean +L\(t\)/L\(0\): equal weights (\S+), GradNorm (\S+)", text)
    assert balanced < 0.9 * equal


def check_adaptive_rank(text):
    uniform, adaptive = numbers(r"rank 4 everywhere (\S+), adaptive ranks (\S+)", text)
    assert adaptive < 0.8 * uniform
    before, after = numbers(r"wrong place: (\d+) of 32 at the start, (\d+) at the end", text)
    assert after <= before / 2
    states = re.findall(r"32 ranks, ([\d,]+) numbers in Adam's state", text)
    assert len(states) == 2
    assert states[0] == states[1]
    assert numbers(r"(\d+) of 46 layers changed", text)[0] > 10


def check_export_and_use(text):
    assert text.count("12 of 12 answers as in training") == 2
    assert text.count("proved in a fresh process") == 2
    assert re.search(r"gain +tuned against drawn-vlm, val: exact match .*: better", text)
    assert "Fine-tuned" in text or "fine-tuned" in text


CHECKS = {
    "quickstart": (check_quickstart, 2),
    "masks-and-weights": (check_masks_and_weights, 2),
    "own-data": (check_own_data, 1),
    "grounding": (check_grounding, 3),
    "callbacks": (check_callbacks, 2),
    "gradnorm": (check_gradnorm, 1),
    "adaptive-rank": (check_adaptive_rank, 2),
    "export-and-use": (check_export_and_use, 2),
}
"""What each notebook must show, and how many pictures."""


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures_of(notebook):
    coded = [output.get("data", {}).get("image/png") for output in outputs_of(notebook)]
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in coded if one]


def check(name, notebook):
    """What is shown is what the notebook says."""
    check_text, count = CHECKS[name]
    shown = [text for output in outputs_of(notebook) for text in texts(output)]
    check_text("\n".join(text for text in shown if not text.startswith("<pre")))
    pictures = pictures_of(notebook)
    assert len(pictures) == count
    for picture in pictures:
        assert min(picture.size) > 100
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 5, "an empty picture"


def forms(notebook):
    """The forms of the outputs of each cell."""
    return [
        [sorted(output.get("data", {})) or output.name for output in cell.get("outputs", [])]
        for cell in notebook.cells
    ]


@pytest.mark.parametrize("name", NAMES)
def test_runs_and_shows_what_is_stored(name):
    kept = read(name)
    ran = stored(executed(read(name), **KERNEL))
    assert not list(faults(ran))
    check(name, ran)
    assert forms(ran) == forms(kept), "run make notebooks"


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_whole_and_of_no_machine(name):
    notebook = read(name)
    assert not list(faults(notebook))
    check(name, notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run make notebooks"
    again = read(name)
    assert stored(again) == notebook, "run make notebooks"


@pytest.mark.parametrize("name", NAMES)
def test_reads_well(name):
    notebook = read(name)
    assert notebook.cells[0].source.startswith("# ")
    assert 10 <= len(notebook.cells) <= 31
    for before, cell in pairwise(notebook.cells):
        assert cell.cell_type != "code" or before.cell_type == "markdown", f"no word before {cell.source!r}"
    last = notebook.cells[-1]
    assert last.source.startswith("## Next\n")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\(([^)#]+)", cell.source):
                assert (FOLDER / link).is_file(), f"{link} isn't there"


def test_all_are_checked_and_listed():
    assert set(CHECKS) == set(NAMES)
    listed = re.findall(r"^\| \[([\w-]+)\]\(\1.ipynb\) \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == NAMES


def test_the_tool_finds_what_must_not_be_stored():
    new = nbformat.v4
    outputs = [
        new.new_output("stream", name="stdout", text="\x1b[1mone\x1b[0m "),
        new.new_output("stream", name="stdout", text="two /home/someone/x.png"),
        new.new_output("stream", name="stderr", text="Warning"),
        new.new_output("error", ename="ValueError", evalue="why", traceback=[]),
        new.new_output("display_data", {"text/plain": "<Figure size 1x1 with 1 Axes> at 0x7f12345678"}),
    ]
    notebook = new.new_notebook(cells=[new.new_code_cell("x", outputs=outputs)])
    found = list(faults(stored(notebook)))
    assert [one.split(": ")[1] for one in found] == [
        "of this machine alone",
        "noise",
        "an error",
        "of this machine alone",
    ]
    assert notebook.cells[0].outputs[0].text == "one two /home/someone/x.png"
