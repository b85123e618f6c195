"""When each stage of a run begins and ends, in optimizer steps and in epochs of its own data."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from lightning_vlm_callbacks.run_length import share_of_steps

from lightning_vlm.data.stages.settings import DataStage


class Span(NamedTuple):
    """A stage's place in a run.

    Args:
        name: Of the stage.
        first_step: How many steps are made before it.
        steps: Its own.
        first_epoch: How many epochs are begun before it: each is a pass of one stage's data.
        epochs: Its own; the last may be cut short.
        batches: Of a whole epoch, on one rank.
        accumulate: Micro-batches of a step.
    """

    name: str
    first_step: int
    steps: int
    first_epoch: int
    epochs: int
    batches: int
    accumulate: int

    @property
    def end(self) -> int:
        """The first step behind it."""
        return self.first_step + self.steps

    @property
    def steps_per_epoch(self) -> int:
        """Those of a whole epoch: an accumulation window ends with it."""
        return math.ceil(self.batches / self.accumulate)

    def batches_of(self, epoch: int) -> int:
        """How many batches one of its epochs has, counted from 0.

        >>> [Span("a", 0, 5, 0, 2, batches=6, accumulate=2).batches_of(epoch) for epoch in (0, 1)]
        [6, 4]
        """
        left = self.steps - epoch * self.steps_per_epoch
        return min(self.batches, max(left, 0) * self.accumulate)


class StagePlan(NamedTuple):
    """All stages of a run, one behind the other."""

    spans: tuple[Span, ...]

    @classmethod
    def of(cls, stages: Sequence[DataStage], batches: Sequence[int], accumulate: int) -> "StagePlan":
        """Lay stages one behind the other.

        Args:
            stages: At least one.
            batches: Of an epoch of each, on one rank.
            accumulate: Of stages that don't say it.

        >>> two = [DataStage(name="a", epochs=1.5), DataStage(name="b", steps=3, accumulate=2)]
        >>> for span in StagePlan.of(two, [4, 8], 1).spans:
        ...     print(span.name, span.first_step, span.end, span.first_epoch, span.epochs)
        a 0 6 0 2
        b 6 9 2 1
        """
        spans: list[Span] = []
        step = epoch = 0
        for stage, number in zip(stages, batches, strict=True):
            window = stage.accumulate or accumulate
            each = max(math.ceil(number / window), 1)
            steps = stage.steps
            if steps is None:
                assert stage.epochs is not None
                steps = max(share_of_steps(stage.epochs, each), 1)
            epochs = math.ceil(steps / each)
            spans.append(Span(stage.name, step, steps, epoch, epochs, number, window))
            step += steps
            epoch += epochs
        return cls(tuple(spans))

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.spans[-1].end

    def at_epoch(self, epoch: int) -> int:
        """The stage of an epoch; behind the end it is the last."""
        begun = [number for number, span in enumerate(self.spans) if span.first_epoch <= epoch]
        return begun[-1]

    def at_step(self, step: int) -> int:
        """The stage of an optimizer step; behind the end it is the last."""
        begun = [number for number, span in enumerate(self.spans) if span.first_step <= step]
        return begun[-1]
