"""What trainers learn of a dozen conversations, token by token, against what they should.

    python benchmarks/masks.py [--trl PYTHON] [--llama-factory PYTHON] [--ms-swift PYTHON]

PYTHON is an interpreter in whose environment that trainer is installed, with the versions of other packages
that it allows; without one it is left out. All get the same tiny Qwen2.5-VL (its real classes, processor and
special tokens) and the same conversations, which go the way of their own training. What is asked of the batch
that comes out:

- Are the labels exactly the answers, each with its end of turn? A line break behind that may be learned too.
- Does text stay text? The ids have as many turns and pieces of pictures as the conversation has.
- Where a sample is too long: is it refused, or are whole answers learned, with whole pictures?
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from masks_of.cases import CASES, END, Case, write
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

import lightning_vlm  # noqa: F401  # before transformers
from tests.support.tiny import build

HERE = Path(__file__).parent
SCRIPTS = {
    "ours": "lightning_vlm_fit",
    "trl": "trl_sft",
    "llama_factory": "llama_factory",
    "ms_swift": "ms_swift",
}
MARK = "RESULT "
PATCH = "<|image_pad|>"
"""The token that stands for a piece of a picture."""


def results_of(script: str, python: str, folder: Path) -> dict[str, Any]:
    """What one trainer makes of each case, by the case's name."""
    words = [python, str(HERE / "masks_of" / f"{script}.py"), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    lines = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if len(lines) < len(CASES):
        sys.exit(f"{script} gave {len(lines)} of {len(CASES)} results:\n{done.stderr[-3000:]}")
    results = [json.loads(line) for line in lines]
    return {result["name"]: result for result in results}


def learned_texts(labels: list[int], tokenizer: Any) -> list[str]:
    """The text of each run of labels, without a line break at its end."""
    runs: list[list[int]] = [[]]
    for label in labels:
        if label == -100:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run).removesuffix("\n") for run in runs if run]


def problems_of(case: Case, results: dict[str, Any], tokenizer: Any) -> list[str]:
    """What is wrong with what a trainer made of a case."""
    result = results[case.name]
    if "labels" not in result:
        is_allowed = case.max_length is not None
        return [] if is_allowed else [f"stops: {result['error']}"]
    found = learned_texts(result["labels"], tokenizer)
    wanted = [f"{answer}{END}" for answer in case.answers]
    problems = []
    is_right = found == wanted if case.max_length is None else found == wanted[: len(found)]
    if not found:
        problems.append("trains on it, and learns nothing of it")
    elif not is_right:
        problems.append(f"learns {' | '.join(found)}")
    names = tokenizer.convert_ids_to_tokens(result["ids"])
    turns = len(case.turns) + (case.turns[0][0] != "system")  # the template adds a system turn
    patches = tokenizer.convert_ids_to_tokens(results[CASES[0].name]["ids"]).count(PATCH)
    wanted_counts = {
        "<|im_start|>": turns,
        END: turns,
        "<|vision_start|>": case.pictures,
        PATCH: patches * case.pictures,
    }
    for name, count in wanted_counts.items():
        if case.max_length is None and names.count(name) != count:
            problems.append(f"{names.count(name)} {name} for {count}")
    if "error" in result:
        problems.append(f"the model then fails: {result['error']}")
    return problems


def main() -> None:
    """Ask each, and print a row for each case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("trl", "llama-factory", "ms-swift"):
        parser.add_argument(f"--{name}", metavar="PYTHON")
    pythons = {
        "ours": sys.executable,
        **{key: value for key, value in vars(parser.parse_args()).items() if value},
    }
    with tempfile.TemporaryDirectory() as directory:
        folder = build("qwen2_5_vl", Path(directory) / "qwen2_5_vl")
        write(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        results = {name: results_of(SCRIPTS[name], python, folder) for name, python in pythons.items()}
    versions = {name: next(iter(found.values()))["version"] for name, found in results.items()}
    table = Table(
        *["conversation", *(f"{name} {version}" for name, version in versions.items())], show_lines=True
    )
    right = dict.fromkeys(results, 0)
    for case in CASES:
        cells = []
        for name, found in results.items():
            problems = problems_of(case, found, tokenizer)
            right[name] += not problems
            cells.append("; ".join(problems) or ("right" if "labels" in found[case.name] else "refused"))
        table.add_row(case.name, *cells)
    table.add_row("right", *(f"{count} of {len(CASES)}" for count in right.values()))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
