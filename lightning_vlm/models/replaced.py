"""A method of one object that is another for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, method: Any) -> Iterator[None]:
    """Give one object, not its class, another method for a while.

    >>> numbers = type("Numbers", (), {"first": lambda self: 1})()
    >>> with replaced(numbers, "first", lambda: 2):
    ...     print(numbers.first())
    2
    >>> numbers.first()
    1
    """
    own = vars(owner).get(name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
