"""A run goes on where one of its trackers can no longer write."""

import os
from collections.abc import Iterable
from functools import partial
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning_vlm_callbacks.whole_files import naming, refusal

_CALLS = ("log_metrics", "save", "after_save_checkpoint", "finalize")
"""What a Trainer calls while it trains. What it calls before, such as `log_hyperparams`, may end a run."""
_refused: set[int] = set()
"""The loggers of which it was said."""


def go_on_without(loggers: Iterable[Logger]) -> None:
    """Let a run go on, with one warning, where the system refuses what a logger writes.

    Args:
        loggers: Of a Trainer whose run hasn't begun.
    """
    for logger in loggers:
        for name in _CALLS:
            setattr(logger, name, partial(_attempt, logger, name))


def _attempt(logger: Logger, name: str, *given: Any, **more: Any) -> Any:
    try:
        with naming(os.path.abspath(getattr(logger, "log_dir", None) or logger.save_dir or "")):
            return getattr(type(logger), name)(logger, *given, **more)
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):
            raise
        if id(logger) not in _refused:
            _refused.add(id(logger))
            what = type(logger).__name__
            rank_zero_warn(f"{what}: {refusal(error)}; the run goes on, but what it logs may be lost")
        return None
