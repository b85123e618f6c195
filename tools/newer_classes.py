"""Lets rows of model families be imported beside a version of transformers that lacks some classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers


@contextmanager
def stood_in_for() -> Iterator[None]:
    """Give a stand-in for each class that this version of transformers lacks; calling it says so."""
    kind = type(transformers)
    own = kind.__getattr__

    def get(module: Any, name: str) -> Any:
        try:
            return own(module, name)
        except AttributeError:
            if module.__name__ != "transformers" or not name[0].isupper():
                raise
            return _StandIn(name)

    kind.__getattr__ = get  # type: ignore[method-assign]
    try:
        yield
    finally:
        kind.__getattr__ = own  # type: ignore[method-assign]


class _StandIn:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"transformers {transformers.__version__} has no {self._name}")
