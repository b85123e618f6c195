"""Checks in a fresh process, with only transformers and PEFT, that an export equals the trained model."""

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_vlm_callbacks.compat import torchvision
from torch import Tensor

from lightning_vlm.export import prover
from lightning_vlm.export.held import Held
from lightning_vlm.export.merge import TOLERANCE

NEW_TOKENS = 16
"""The most tokens that each answer of a proof has."""


class Case(NamedTuple):
    """A folder, and what it must be.

    Args:
        folder: Of an exported model or adapters.
        held: The inputs of the comparison.
        answers: The trained model's outputs for them, in float32, as from `prover.answer`.
        processor: As from `prover.settings`.
        ties: As from `prover.ties`; for a whole model.
        bits: As from `prover.bits`; for a whole model.
        dtype: To load it in before it is made float32.
        base: The base model, for adapters alone; and its `revision`.
        adapters: Whether adapters of ours are in the folder, and whether any of PEFT's are: "", "ours" or
            "both".
        trust_remote_code: Run Python code that comes with the model.
    """

    folder: Path
    held: Sequence[Held]
    answers: Sequence[Mapping[str, Any]]
    processor: Mapping[str, str]
    ties: Sequence[Sequence[str]] = ()
    bits: Mapping[str, int] = {}
    dtype: str = "auto"
    base: str | None = None
    revision: str | None = None
    adapters: str = ""
    trust_remote_code: bool = False


class Proof(NamedTuple):
    """What came out.

    Args:
        wrong: What is wrong, a few words each; nothing if all is well.
        off: How far logits are off at most, as a share of the largest.
    """

    wrong: list[str]
    off: float


def prove(cases: Sequence[Case]) -> list[Proof]:
    """Load folders with transformers and PEFT in one fresh process, and compare.

    The same logits up to `TOLERANCE`, the same greedy answers, the same tokens and pictures from the folder's
    own processor, its settings, the weights bit for bit and which of them are tied, and no name missing or
    too much.

    Args:
        cases: One for each folder.
    Returns:
        One for each case.
    """
    jobs = [
        {
            "folder": str(case.folder.resolve()),
            "base": case.base,
            "revision": case.revision,
            "dtype": case.dtype,
            "adapters": case.adapters,
            "trust_remote_code": case.trust_remote_code,
            "chats": [one.chat for one in case.held],
            "new_tokens": NEW_TOKENS,
        }
        for case in cases
    ]
    with tempfile.TemporaryDirectory() as folder:
        given, answers = Path(folder, "jobs.pt"), Path(folder, "answers.pt")
        torch.save({"jobs": jobs, "torchvision_mend": torchvision.__file__}, given)
        # Not `python prover.py`: this folder's files would then be modules of that process.
        start = f"import runpy; runpy.run_path({prover.__file__!r}, run_name='__main__')"
        done = subprocess.run(
            [sys.executable, "-c", start, str(given), str(answers)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = done.stderr.strip().split("\n")[-1]
            ended = f"the process that loads it ended with {done.returncode}: {last}"
            return [Proof([ended], 0.0)] * len(cases)
        found = torch.load(answers, weights_only=True)
    return [_compare(case, one) for case, one in zip(cases, found, strict=True)]


def differences(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> tuple[str, float]:
    """Compare answers to the same prompts.

    Args:
        ours: As from `prover.answer`.
        theirs: Those of the exported model, in the same form.
    Returns:
        What is wrong in a few words, or nothing; and how far logits are off at most, as a share of the
        largest. Where two tokens are equally likely up to rounding, either is right, and the answer is not
        compared further.
    """
    wrong, most = "", 0.0
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        off = _off(one["logits"], other["logits"])
        same = min(len(one["ids"]), len(other["ids"]))
        apart = [at for at in range(same) if one["ids"][at] != other["ids"][at]]
        steps = apart[0] + 1 if apart else same
        off = max(off, _off(one["steps"][:steps], other["steps"][:steps]))
        most = max(most, off)
        if not off <= TOLERANCE:
            wrong = wrong or f"sample {index + 1}: logits differ by {off:.1e} of the largest"
        elif not apart and len(one["ids"]) != len(other["ids"]):
            wrong = wrong or f"sample {index + 1}: its answer has another length"
    return wrong, most


def _off(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    return float((one - other).abs().max() / one.abs().max()) if one.numel() else 0.0


def _compare(case: Case, found: Mapping[str, Any]) -> Proof:
    if "error" in found:
        return Proof([f"it doesn't load and run: {found['error']}"], 0.0)
    wrong = list(found["wrong"])
    for index, (one, other) in enumerate(zip(case.held, found["answers"], strict=True)):
        for name in sorted(one.inputs.keys() | other["inputs"].keys()):
            mine, its = one.inputs.get(name), other["inputs"].get(name)
            if mine is None or its is None:
                if name not in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
                    wrong.append(f"sample {index + 1}: {name} is {'missing' if its is None else 'new'}")
            elif mine.shape != its.shape or not torch.equal(mine.to(its.dtype), its):
                wrong.append(f"sample {index + 1}: its processor makes other {name}")
    keys = case.processor.keys() | found["settings"].keys()
    wrong += [
        f"{key} is {found['settings'].get(key)}, not {case.processor.get(key)}"[:300]
        for key in sorted(keys)
        if case.processor.get(key) != found["settings"].get(key)
    ]
    if case.base is None:
        if [list(one) for one in case.ties] != found["ties"]:
            wrong.append(f"tied weights are {found['ties']}, not {list(case.ties)}")
        names = case.bits.keys() ^ found["bits"].keys()
        changed = [name for name in case.bits if name not in names and case.bits[name] != found["bits"][name]]
        wrong += [f"other names of weights: {', '.join(sorted(names)[:3])}"] if names else []
        wrong += [f"other weights: {', '.join(sorted(changed)[:3])}"] if changed else []
    answers, off = differences(case.answers, found["answers"])
    return Proof(wrong + ([answers] if answers else []), off)
