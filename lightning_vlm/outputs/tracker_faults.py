"""A run goes on where one of its trackers can no longer write."""

import os
from collections.abc import Iterable
from functools import partial
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning_vlm_callbacks.whole_files import naming, refusal

from lightning_vlm.outputs.wandb_file import warn_of_lost_lines

_CALLS = ("log_metrics", "save", "after_save_checkpoint", "finalize")
"""What a Trainer calls while it trains. What it calls before, such as `log_hyperparams`, may end a run."""


def go_on_without(loggers: Iterable[Logger]) -> None:
    """Let a run go on, with one warning, where the system refuses what a logger writes.

    Args:
        loggers: Of a Trainer whose run hasn't begun.
    """
    for logger in loggers:
        said: list[str] = []
        warn_of_lost_lines(logger)
        for name in _CALLS:
            setattr(logger, name, partial(_attempt, logger, name, said))


def _attempt(logger: Logger, name: str, said: list[str], *given: Any, **more: Any) -> Any:
    """Call a method of a logger; warn of what the system refuses, once in a run."""
    try:
        with naming(os.path.abspath(getattr(logger, "log_dir", None) or logger.save_dir or "")):
            return getattr(type(logger), name)(logger, *given, **more)
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):
            raise
        if not said:
            said.append(f"{type(logger).__name__}: {refusal(error)}")
            rank_zero_warn(f"{said[0]}; the run goes on, but what it logs may be lost")
        return None
