"""A look at the data of all stages before the first step, and a table of what each stage is."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_vlm_callbacks.staged_unfreezing.entries import StageEntry
from rich.table import Table
from torch.nn import Parameter

from lightning_vlm.counted import counted
from lightning_vlm.data.batch.skipped import SampleCounts
from lightning_vlm.data.stages.plan import Span
from lightning_vlm.data.stages.staged_data import StagedData
from lightning_vlm.errors import UserError

LOOKED_AT = 8
"""So many samples of each stage are rendered before the run begins, evenly spaced over all of them."""


class Look(NamedTuple):
    """What a stage's data are.

    Args:
        samples: How many.
        batch: What a step of all ranks together holds, in words.
        tokens: How many the stage has, as far as the samples tell that were looked at.
    """

    samples: int
    batch: str
    tokens: float


def look_at(stages: StagedData, module: Any) -> list[Look]:
    """Render a few samples of each stage, so that nothing of a later stage fails only when it comes.

    Args:
        stages: Of the run.
        module: The `VLMModule`.

    Raises:
        UserError: A stage has nothing, or nearly nothing, to learn from.
        DataError: A bad sample, where samples aren't to be skipped.
    """
    looks = []
    data = stages._data
    kept = module.token_weights
    for stage, span in zip(stages.each(), stages.plan.spans, strict=True):
        rendered = data.rendered("train", learn=True, prompts=False)
        number = min(LOOKED_AT, len(rendered.source))
        counts = SampleCounts()
        tokens = 0
        module.token_weights = getattr(stage, "token_weights", None) or kept
        for place in range(number):
            batch = rendered[[place * len(rendered.source) // number]]
            counts += SampleCounts.of_batch(batch, len(module.targets(batch).positions))
            tokens += batch.tokens
            for error in batch.skipped:
                data.check_skipped(error)
        module.token_weights = kept
        problem = counts.problem(data.max_length)
        if problem is not None:
            raise UserError(f"stages.{stage.name}: training data: {problem}")
        epochs = span.steps / span.steps_per_epoch
        all_tokens = tokens / max(number, 1) * len(rendered.source) * epochs
        looks.append(Look(len(rendered.source), _batch(stages, span, data), all_tokens))
    return looks


def _batch(stages: StagedData, span: Span, data: Any) -> str:
    assert data.trainer is not None
    each = f"{data.batching.max_tokens:,} tok" if data.batching.by_tokens else f"{data.batch_size:,}"
    for times in (span.accumulate, data.trainer.world_size):
        if times > 1:
            each += f" × {times}"
    return each


def stage_table(
    stages: StagedData,
    looks: Sequence[Look],
    entries: Sequence[Sequence[StageEntry]],
    rates: Mapping[Parameter, float],
) -> Table:
    """A table of all stages, with a line for each selector that trains.

    Args:
        stages: Of the run.
        looks: As from `look_at`.
        entries: What each stage trains.
        rates: The learning rates of an optimizer, before schedules.
    """
    table = Table(title=f"Stages: {counted(stages.plan.steps, 'step')}", title_justify="left", box=None)
    table.add_column("stage")
    table.add_column("steps")
    for name in ("samples", "batch", "tokens"):
        table.add_column(name, justify="right")
    table.add_column("trains")
    table.add_column("learning rate", justify="right")
    for span, look, trained in zip(stages.plan.spans, looks, entries, strict=True):
        steps = f"{span.first_step:,} to {span.end:,}"
        row = [span.name, steps, f"{look.samples:,}", look.batch, f"~{_short(look.tokens)}"]
        for entry in trained:
            if entry.scales:
                table.add_row(*row, entry.selector, _rates(entry, rates))
                row = [""] * len(row)
    return table


def _rates(entry: StageEntry, rates: Mapping[Parameter, float]) -> str:
    each = [rates[parameter] * scale for parameter, scale in entry.scales.items()]
    lowest, highest = f"{min(each):.2g}", f"{max(each):.2g}"
    return lowest if lowest == highest else f"{lowest} to {highest}"


def _short(number: float) -> str:
    """A number in three digits.

    >>> _short(950), _short(123456), _short(7.6e9)
    ('950', '123k', '7.6G')
    """
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            digits = number / unit
            return f"{digits:.0f}{letter}" if digits >= 100 else f"{digits:.2g}{letter}"
    return f"{number:.0f}"
