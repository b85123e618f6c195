"""The moments at which a run is killed: any time, or a line chosen by chance inside of some functions.

For an aimed kill the lines that run inside these functions are counted in an uninterrupted run. Then one of
them is drawn, and a run is killed when it comes to it.
"""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

CALLBACKS = "lightning_vlm_callbacks"
STEP = "lightning.pytorch.loops.optimization.automatic:_AutomaticOptimization.run"
MOMENTS: dict[str, tuple[str, ...]] = {
    "training step": (STEP,),
    "accumulation window": (STEP,),
    "optimizer step": ("torch.optim.adam:adam",),
    "checkpoint": (f"{CALLBACKS}.early_stop_checkpoint.run_files:RunFiles.save",),
    "stage switch": (f"{CALLBACKS}.staged_unfreezing.callback:StagedUnfreezing._enter",),
    "rank change": (f"{CALLBACKS}.adaptive_lora_rank.callback:AdaptiveLoRARank._change_ranks",),
    "validation": ("lightning.pytorch.loops.evaluation_loop:_EvaluationLoop.run",),
    "report": (
        f"{CALLBACKS}.run_report.record:Record._write",
        f"{CALLBACKS}.run_report.callback:RunReport.finish",
        "lightning_vlm.callbacks.prediction_table.callback:write_page",
    ),
}
"""Of a fit: each moment, and the functions in which a line is drawn."""
PREDICT: dict[str, tuple[str, ...]] = {
    "predict": (
        "lightning_vlm.callbacks.answer_store:AnswerStore.begin",
        "lightning_vlm.callbacks.answer_store:AnswerStore.write",
        "lightning_vlm.callbacks.answer_store:AnswerStore.finish",
    )
}
EXPORT: dict[str, tuple[str, ...]] = {"export": ("lightning_vlm.export.command:write",)}
PROVED: dict[str, tuple[str, ...]] = {
    "export, proved": ("lightning_vlm.export.command:write_card", "lightning_vlm.export.command:_show")
}
"""Of an export, before and behind the proof of what was written."""


class Line(NamedTuple):
    """A line of a run: the number of the call of a moment's functions, and of the line in it."""

    call: int
    line: int


class Lines:
    """Counts the lines that run inside some functions, and calls something at one of them.

    Args:
        moment: Of the functions; `accumulation window` and `training step` part the micro-batches of a step.
        at: When to call; None only counts.
        then: What to call.
    """

    def __init__(self, moment: str, at: Line | None = None, then: Callable[[], None] | None = None) -> None:
        self.moment, self.at, self.then = moment, at, then
        self.calls: list[int] = []
        """The number of lines of each call."""
        self._depth = 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose lines are counted."""

        def counted(*given: Any, **more: Any) -> Any:
            if self._depth or not self._belongs(given):
                return function(*given, **more)
            self.calls.append(0)
            traced = self.at is None or self.at.call == len(self.calls) - 1
            self._depth += 1
            sys.settrace(self._trace if traced else None)
            try:
                return function(*given, **more)
            finally:
                sys.settrace(None)
                self._depth -= 1

        return counted

    def _belongs(self, given: Sequence[Any]) -> bool:
        if self.moment not in ("training step", "accumulation window"):
            return True
        return bool(given[2] % 2) == (self.moment == "accumulation window")  # given[2] is the batch's number

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            if self.at is not None and self.calls[-1] == self.at.line and self.then is not None:
                self.then()
            self.calls[-1] += 1
        return self._trace


@contextmanager
def watched(moments: Mapping[str, Sequence[str]], lines: Mapping[str, Lines]) -> Iterator[None]:
    """Within it, the functions of moments have their lines counted.

    Args:
        moments: Each moment, and its functions, as `module:name` or `module:Class.name`.
        lines: What counts for each moment.
    """
    before = []
    for moment, names in moments.items():
        if moment not in lines:
            continue
        for name in names:
            owner, attribute = _owner(name)
            function = getattr(owner, attribute)
            before.append((owner, attribute, function))
            setattr(owner, attribute, lines[moment].wrap(function))
    try:
        yield
    finally:
        for owner, attribute, function in reversed(before):
            setattr(owner, attribute, function)


def _owner(name: str) -> tuple[Any, str]:
    module, _, path = name.partition(":")
    *classes, attribute = path.split(".")
    owner: Any = import_module(module)
    for one in classes:
        owner = getattr(owner, one)
    return owner, attribute


def draw_line(calls: Sequence[int], chance: random.Random) -> Line:
    """A line of a moment: each call is as likely, however long it is."""
    call = chance.choice([number for number, count in enumerate(calls) if count])
    return Line(call, chance.randrange(calls[call]))


def die(others: Sequence[int] = ()) -> None:
    """End this process, and others, with nothing cleaned up."""
    for process in (*others, os.getpid()):
        os.kill(process, signal.SIGKILL)


def die_after(seconds: float, then: Callable[[], None] = die) -> None:
    """Call something when the process has used so much more time of the CPU; it doesn't wait."""

    def wait() -> None:
        while time.process_time() - began < seconds:
            time.sleep(0.001)
        then()

    began = time.process_time()
    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def torn_checkpoint(number: int, share: float, then: Callable[[], None]) -> Iterator[None]:
    """Within it, one checkpoint is written in part, as when a process ends between two bytes.

    Args:
        number: Which one, counted from 0.
        share: How much of it is there.
        then: What is called then.
    """
    from lightning_vlm_callbacks import checkpoint_files

    whole = checkpoint_files.save_whole
    written = 0

    def save(checkpoint: dict[str, Any], path: Path) -> None:
        nonlocal written
        whole(checkpoint, path)
        if written == number:
            os.truncate(path, int(path.stat().st_size * share))
            then()
        written += 1

    checkpoint_files.save_whole = save
    try:
        yield
    finally:
        checkpoint_files.save_whole = whole
