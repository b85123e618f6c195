"""Hears when a Trainer fetches training batches and saves checkpoints, which no hook of a callback tells.

Lightning announces both to its profiler, whichever that is; so the profiler's `start` and `stop` are listened
to while a fit lasts.
"""

from collections.abc import Callable

from lightning.pytorch.profilers import Profiler

__all__ = ["ACTIONS", "ProfilerListener"]

ACTIONS = {"[_TrainingEpochLoop].train_dataloader_next": "waiting", "save_checkpoint": "saving"}
"""What Lightning calls an action -> what the time is spent on."""


class ProfilerListener:
    """Passes the actions in `ACTIONS` on to functions, after the profiler's own `start` and `stop`.

    Args:
        profiler: Of a Trainer. Its own methods work as before.
        begin: Called with what time is spent on from now on.
        end: Called when that ends.
    """

    def __init__(self, profiler: Profiler, begin: Callable[[str], None], end: Callable[[], None]) -> None:
        self._profiler = profiler
        start, stop = profiler.start, profiler.stop

        def heard_start(action_name: str) -> None:
            start(action_name)
            if action_name in ACTIONS:
                begin(ACTIONS[action_name])

        def heard_stop(action_name: str) -> None:
            if action_name in ACTIONS:
                end()
            stop(action_name)

        vars(profiler).update(start=heard_start, stop=heard_stop)

    def close(self) -> None:
        """Let the profiler be as it was."""
        for name in ("start", "stop"):
            vars(self._profiler).pop(name, None)
