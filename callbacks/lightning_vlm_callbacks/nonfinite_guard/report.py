"""Runs a bad step again and writes a readable report, with the bundle beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_vlm_callbacks.nonfinite_guard.bundle import NonFiniteBundle, check_batch, keep_structure, save
from lightning_vlm_callbacks.nonfinite_guard.replay import Diagnosis, replay
from lightning_vlm_callbacks.rates_in_force import rates_in_force

__all__ = ["Event", "MicroBatch", "active_scaler", "advice", "write_report"]


@dataclass
class MicroBatch:
    """The data needed to run a training_step again."""

    batch: Any
    batch_idx: int
    random: dict[str, Any]
    loss: Tensor | None = None


@dataclass
class Event:
    """What was seen in a step.

    Args:
        what: Such as "the loss is NaN or infinite".
        outcome: What became of the step, as a sentence.
        affected: Parameters whose gradient was bad.
    """

    what: str
    outcome: str
    affected: list[str]


def active_scaler(trainer: Trainer) -> "torch.amp.GradScaler | None":
    """The GradScaler, if there is one that is enabled."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def write_report(
    folder: Path,
    max_mib: float,
    trainer: Trainer,
    module: LightningModule,
    suspects: Sequence[MicroBatch],
    event: Event,
) -> tuple[str, bool]:
    """Run micro-batches again until one goes wrong; write `report.md` and `bundle.pt` about it.

    Returns:
        A sentence that says where it went wrong and where the report is; and whether it did go wrong.
    """
    scaler, precision = active_scaler(trainer), trainer.precision_plugin
    scale = None if scaler is None else scaler.get_scale()
    factor = (scale or 1.0) / trainer.accumulate_grad_batches
    for one in suspects:
        batch, context = keep_structure(one.batch), precision.train_step_context
        diagnosis, randomness = replay(
            module, batch, one.batch_idx, one.random, factor=factor, context=context, start=True
        )
        if diagnosis.phase != "none":
            break
    trainable = {name: value for name, value in module.named_parameters() if value.requires_grad}
    bundle = NonFiniteBundle(
        batch=one.batch,
        batch_idx=one.batch_idx,
        step=trainer.global_step,
        epoch=trainer.current_epoch,
        rank=trainer.global_rank,
        precision=str(precision.precision),
        factor=factor,
        random=dict(randomness),
        training=[name for name, below in module.named_modules() if below.training],
        trainable=list(trainable),
        weights={**trainable, **dict(module.named_buffers())},
    )
    folder = folder / f"step-{trainer.global_step:08d}-rank{trainer.global_rank}"
    folder.mkdir(parents=True, exist_ok=True)
    left_out = save(folder / "bundle.pt", bundle, max_mib * 2**20)
    run = f"{_learning_rates(trainer)}; precision {bundle.precision}"
    run += "." if scale is None else f"; loss scale {scale:g}."
    data = check_batch(one.batch, module)
    text = page(diagnosis, bundle, event, data, run, folder / "bundle.pt", left_out)
    (folder / "report.md").write_text(text, "utf-8")
    return f"{diagnosis}; see {folder / 'report.md'}", diagnosis.phase not in ("none", "error")


def _learning_rates(trainer: Trainer) -> str:
    """Those in force, as the beginning of a sentence."""
    rates = {name: f"{float(rate):.3g}" for name, rate in rates_in_force(trainer.optimizers).items()}
    if len(rates) == 1:
        return f"Learning rate {next(iter(rates.values()))}"
    return "Learning rates: " + ", ".join(f"{rate} ({name})" for name, rate in rates.items())


def page(
    diagnosis: Diagnosis,
    bundle: NonFiniteBundle,
    event: Event,
    data: Sequence[str],
    run: str,
    file: Path,
    left_out: str,
) -> str:
    """The text of `report.md`.

    Args:
        diagnosis: Of the replay.
        bundle: Says which micro-batch it was.
        event: What was seen in the step.
        data: Of `check_batch`.
        run: Learning rates, precision, loss scale, as a sentence.
        file: Of the bundle, if it exists.
        left_out: What isn't in it.
    """
    found = str(diagnosis)
    place = f"Rank {bundle.rank}, epoch {bundle.epoch}, batch {bundle.batch_idx}"
    lines = [f"# NaN or infinity at step {bundle.step}", "", f"{place}: {event.what}. {event.outcome}", ""]
    lines += ["## Where it began", "", f"{found[0].upper()}{found[1:]}."]
    if diagnosis.inputs:
        what = "The last output of a module" if diagnosis.phase == "loss" else "What went into it"
        head = ["", "shape", "type", "min", "max", "mean", "abs max", "NaN or infinite"]
        rows = [one.row for one in diagnosis.inputs]
        table = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
        lines += ["", f"{what}:", "", *table]
    if event.affected:
        count = len(event.affected)
        more = f", ... ({count} in all)" if count > 5 else ""
        lines += ["", f"Bad gradients in the step: {', '.join(event.affected[:5])}{more}."]
    lines += ["", "## The batch and the run", ""]
    lines += [f"- {one}" for one in data or ["The batch passed all checks."]] + [f"- {run}"]
    lines += ["", "## What to try first", ""]
    lines += [f"{number}. {one}" for number, one in enumerate(advice(diagnosis, data, bundle.precision), 1)]
    if file.exists():
        lines += ["", "## Run it again", "", "With `module` made as for training:", "", "```python"]
        lines += [
            "from lightning_vlm_callbacks import NonFiniteBundle",
            f"bundle = NonFiniteBundle.load({str(file)!r})",
            "print(bundle.replay(module))",
            "```",
        ]
    return "\n".join([*lines, *(["", left_out] if left_out else []), ""])


def advice(diagnosis: Diagnosis, data: Sequence[str], precision: str) -> list[str]:
    """What to try, the likeliest first.

    On float16 overflow the loss scale must decrease: a greater one makes the overflow worse.

    >>> advice(Diagnosis("none"), [], "16-mixed")[0]
    'Float16 overflows above 65504: use bf16-mixed; or lower the loss scale (GradScaler init_scale), ...'
    """
    steps = []
    if any("nothing is supervised" in one for one in data):
        steps.append("A mean over no tokens is 0/0: leave out samples of which nothing is learned.")
    elif data:
        steps.append("Fix or leave out the samples named above.")
    if diagnosis.broken:
        steps.append(
            "The weights themselves are bad, and were before this batch: go back to an earlier checkpoint "
            "(or set on_nonfinite: rollback), and lower the learning rate."
        )
    if precision.startswith("16"):
        steps.append(
            "Float16 overflows above 65504: use bf16-mixed; or lower the loss scale (GradScaler init_scale), "
            "never raise it, and run the module above in float32 (torch.autocast with enabled=False)."
        )
    if diagnosis.phase == "backward":
        steps.append(
            "Look for a derivative that is infinite where the value is fine: sqrt, norm, log, division or "
            "power at 0. Add an epsilon inside, before the function."
        )
    elif diagnosis.phase in ("forward", "loss") and not diagnosis.broken:
        steps.append("Look there for a division by 0, a log of 0, an exp of something large; add an epsilon.")
    steps.append("Lower the learning rate, warm up longer, or clip gradients.")
    steps.append("Check that newly added modules are initialised.")
    return steps
