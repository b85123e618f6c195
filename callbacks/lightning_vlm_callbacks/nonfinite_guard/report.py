"""Runs a bad step again and writes a readable report, with the bundle beside it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from lightning_vlm_callbacks.nonfinite_guard.batches import check_batch, keep_structure, sources_of
from lightning_vlm_callbacks.nonfinite_guard.bundle import NonFiniteBundle, save
from lightning_vlm_callbacks.nonfinite_guard.detection import Event, MicroBatch
from lightning_vlm_callbacks.nonfinite_guard.diagnosis import COLUMNS, Diagnosis, advice
from lightning_vlm_callbacks.nonfinite_guard.replay import replay
from lightning_vlm_callbacks.nonfinite_guard.sharded import names_on_all_ranks
from lightning_vlm_callbacks.rates_in_force import rates_in_force
from lightning_vlm_callbacks.runs import loss_scaler
from lightning_vlm_callbacks.shards import is_spread

__all__ = ["explain"]

_MAX_NAMES = 5
_RUN_IT_AGAIN = """\
With `module` made as for training:

```python
from lightning_vlm_callbacks import NonFiniteBundle
bundle = NonFiniteBundle.load({file!r})
print(bundle.replay(module))
```"""


def explain(trainer: Trainer, event: Event, folder: Path | None, max_mib: float) -> str:
    """Say what was seen; replay and report it on the ranks that met it. All ranks must call it.

    Args:
        trainer: Whose step was bad.
        event: What was seen.
        folder: Of reports; None: don't replay.
        max_mib: Of a bundle.
    Returns:
        The same line on all ranks.
    """
    suspects = []
    for micro in event.window:
        if micro.loss is not None and not micro.loss.isfinite().all():
            suspects.append(micro)
    ranks = _ranks_with(trainer, bool(suspects))
    line = f"NonFiniteGuard: step {trainer.global_step}: {event.what}"
    if ranks and trainer.world_size > 1:
        line += f" on rank {', '.join(map(str, ranks))}"
    if is_spread(trainer.strategy):  # one rank alone can't run the model
        return line + names_on_all_ranks(event.affected)
    if folder is None:
        return line
    sentence, reproduced = "", False
    if not ranks or trainer.global_rank in ranks:
        try:
            sentence, reproduced = _write_report(trainer, event, suspects or event.window, folder, max_mib)
        except Exception as error:  # the other ranks wait, and the run can go on without a report
            sentence = f"no report could be written: {type(error).__name__}: {error}"
    ranks = _ranks_with(trainer, reproduced) or ranks or [0]
    return f"{line}; {trainer.strategy.broadcast(sentence, src=ranks[0])}"


def _ranks_with(trainer: Trainer, flag: bool) -> list[int]:
    """The ranks on which a flag is set."""
    flags = torch.tensor([int(flag)], device=trainer.strategy.root_device)
    of_all_ranks = trainer.strategy.all_gather(flags).flatten()
    return of_all_ranks.nonzero().flatten().tolist()


def _write_report(
    trainer: Trainer, event: Event, suspects: Sequence[MicroBatch], folder: Path, max_mib: float
) -> tuple[str, bool]:
    """Run micro-batches again until one goes wrong; write `report.md` and `bundle.pt` about it.

    Returns:
        A sentence that says where it went wrong and where the report is; and whether it did go wrong.
    """
    module = trainer.lightning_module
    scaler = loss_scaler(trainer)
    scale = 1.0 if scaler is None else scaler.get_scale()
    factor = scale / trainer.accumulate_grad_batches
    for suspect in suspects:
        diagnosis, randomness = replay(
            module,
            keep_structure(suspect.batch),
            suspect.batch_idx,
            suspect.random,
            factor=factor,
            context=trainer.precision_plugin.train_step_context,
            start=True,
        )
        if diagnosis.phase != "none":
            break
    trainable = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    bundle = NonFiniteBundle(
        batch=suspect.batch,
        batch_idx=suspect.batch_idx,
        step=trainer.global_step,
        epoch=trainer.current_epoch,
        rank=trainer.global_rank,
        precision=str(trainer.precision_plugin.precision),
        factor=factor,
        random=dict(randomness),
        training=[name for name, submodule in module.named_modules() if submodule.training],
        trainable=list(trainable),
        weights={**trainable, **dict(module.named_buffers())},
    )
    folder = folder / f"step-{trainer.global_step:08d}-rank{trainer.global_rank}"
    folder.mkdir(parents=True, exist_ok=True)
    omitted = save(folder / "bundle.pt", bundle, max_mib * 2**20)
    run = f"precision {bundle.precision}"
    for name, rate in rates_in_force(trainer.optimizers).items():
        run += f"; {name} {float(rate):.3g}"
    if scaler is not None:
        run += f"; loss scale {scale:g}"
    data = check_batch(suspect.batch, module)
    text = _page(diagnosis, bundle, event, data, f"{run}.", folder / "bundle.pt", omitted)
    (folder / "report.md").write_text(text, "utf-8")
    is_reproduced = diagnosis.phase not in ("none", "error")
    return f"{diagnosis}; see {folder / 'report.md'}", is_reproduced


def _page(
    diagnosis: Diagnosis,
    bundle: NonFiniteBundle,
    event: Event,
    data: list[str],
    run: str,
    file: Path,
    omitted: str,
) -> str:
    """The text of `report.md`: headings and paragraphs."""
    place = f"Rank {bundle.rank}, epoch {bundle.epoch}, batch {bundle.batch_idx}"
    found = str(diagnosis)
    steps = advice(diagnosis, data, bundle.precision)
    facts = [*_samples(bundle), *(data or ["The batch passed all checks."]), run]
    paragraphs = [
        f"# NaN or infinity at step {bundle.step}",
        f"{place}: {event.what}. {event.outcome}",
        "## Where it began",
        f"{found[0].upper()}{found[1:]}.",
        *_table(diagnosis),
        *_bad_gradients(event),
        "## The batch and the run",
        "\n".join(f"- {line}" for line in facts),
        "## What to try first",
        "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1)),
    ]
    if file.exists():
        paragraphs += ["## Run it again", _RUN_IT_AGAIN.format(file=str(file))]
    if omitted:
        paragraphs.append(omitted)
    return "\n\n".join(paragraphs) + "\n"


def _table(diagnosis: Diagnosis) -> Iterable[str]:
    if diagnosis.inputs:
        yield "The last output of a module:" if diagnosis.phase == "loss" else "What went into it:"
        rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
        rows += [statistics.row for statistics in diagnosis.inputs]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        yield "\n".join(lines)


def _samples(bundle: NonFiniteBundle) -> Iterable[str]:
    sources = sources_of(bundle.batch)
    if sources:
        yield f"Samples: {_first_of(sources)}."


def _bad_gradients(event: Event) -> Iterable[str]:
    if event.affected:
        yield f"Bad gradients in the step: {_first_of(event.affected)}."


def _first_of(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more
