"""Proves in a fresh process, with only transformers and PEFT, that an export equals the trained model."""

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lightning_vlm.errors import UserError
from lightning_vlm.export import fresh_process
from lightning_vlm.export.probe_samples import ProbeSample
from lightning_vlm.export.snippet import Loading, loading_lines


class ExportedFolder(NamedTuple):
    """A folder, and what it must be.

    Args:
        folder: Of an exported model or adapters.
        loading: How it is loaded.
        samples: The inputs of the comparison.
        answers: The trained model's outputs for them, in float32, as from `fresh_process.answer`.
        description: As from `fresh_process.describe`, with the model if it is a whole one.
    """

    folder: Path
    loading: Loading
    samples: Sequence[ProbeSample]
    answers: Sequence[Mapping[str, Any]]
    description: Mapping[str, str]


class Verification(NamedTuple):
    """What came out.

    Args:
        problems: What is wrong, a few words each; nothing if all is well.
        off: How far logits are off at most, as a share of the largest.
    """

    problems: list[str]
    off: float


def verify(exports: Sequence[ExportedFolder]) -> list[Verification]:
    """Load folders with transformers and PEFT in one fresh process, and compare.

    The same logits up to `TOLERANCE`, the same greedy answers, the same tokens and pictures from the folder's
    own processor, its settings, the weights bit for bit and which of them are tied. The process runs the
    lines that the command prints, in float32.

    Args:
        exports: What to load.
    Returns:
        One for each folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        jobs, results = Path(folder, "jobs.pt"), Path(folder, "results.pt")
        torch.save([_job(export) for export in exports], jobs)
        # Not `python fresh_process.py`: this folder's files would then be modules of that process.
        start = f"import runpy; runpy.run_path({fresh_process.__file__!r}, run_name='__main__')"
        done = subprocess.run(
            [sys.executable, "-c", start, str(jobs), str(results)],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = done.stderr.strip().split("\n")[-1]
            ended = f"the process that loads it ended with {done.returncode}: {last}"
            return [Verification([ended], 0.0)] * len(exports)
        return [Verification(**result) for result in torch.load(results, weights_only=True)]


def _job(export: ExportedFolder) -> dict[str, Any]:
    folder = export.folder.resolve()
    return {
        "folder": str(folder),
        "lines": loading_lines(folder, export.loading, 'dtype="float32"'),
        "is_whole": export.loading.base is None,
        "chats": [sample.chat for sample in export.samples],
        "answers": list(export.answers),
        "description": dict(export.description),
    }


def require_same(problems: Sequence[str]) -> None:
    """Refuse an export that isn't what was trained.

    Raises:
        UserError: There is a problem.

    >>> require_same(["a.weight changed", "b.weight changed"])
    Traceback (most recent call last):
    ...
    lightning_vlm.errors.UserError: export: it is not what was trained: a.weight changed (and 1 more); \
nothing was written
    """
    if problems:
        found = " ".join(problems[0].split())
        if len(problems) > 1:
            found += f" (and {len(problems) - 1} more)"
        raise UserError(f"export: it is not what was trained: {found}; nothing was written")
