"""Lets Lightning's MLFlowLogger log what MLflow refuses: some names of parameters, and values that change.

A plan may name `language.layers[-4:]`, and MLflow takes no brackets in names; a resumed run may have another
setting than before, and a parameter of MLflow never changes. Lightning renames metrics alone, so that either
would end the run.
"""

import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

_NOT_IN_NAMES = re.compile(r"[^\w\-. :]+")
"""Slashes are for nested settings: MLflow refuses two in a row, as a key that is a path would make."""
_MOST = 100
"""So many parameters MLflow takes at a time."""
_LONGEST = 500
"""Characters of a value."""


def install(logger: MLFlowLogger) -> None:
    """Let a logger rename parameters, and leave out those that the run has."""
    logger.log_hyperparams = partial(log_parameters, logger)  # type: ignore[method-assign]


def named(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as parameters of MLflow.

    >>> dict(named({"adapt": {"language.layers[-4:]": {"r": 8}}, "sampling": {"/data/a.jsonl": None}}))
    {'adapt/language.layers -4: /r': '8', 'sampling/ data a.jsonl': 'None'}
    """
    for key, value in config.items():
        name = f"{above}{_NOT_IN_NAMES.sub(' ', str(key))}"
        if isinstance(value, Mapping):
            yield from named(value, f"{name}/")
        else:
            yield name, str(value)[:_LONGEST]


@rank_zero_only
def log_parameters(logger: MLFlowLogger, params: dict[str, Any] | Namespace) -> None:
    """Log those parameters that the run doesn't have yet, on rank zero.

    Args:
        logger: Of the run.
        params: Nested settings.
    """
    run = logger.run_id
    from mlflow.entities import Param

    known = logger.experiment.get_run(run).data.params
    given = vars(params) if isinstance(params, Namespace) else params
    new = [Param(name, value) for name, value in named(given) if name not in known]
    for start in range(0, len(new), _MOST):
        logger.experiment.log_batch(run, params=new[start : start + _MOST])
