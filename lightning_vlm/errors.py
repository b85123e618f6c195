"""Errors that the user can fix: the command line prints their message without a traceback."""


class UserError(ValueError):
    """A setting, file or checkpoint is wrong. The message says what was found and what to write instead."""


class DataError(UserError):
    """A sample is wrong.

    Args:
        source: Where the sample came from, as `file:line`.
        key: The key or part that is wrong, such as `messages[1].role`; empty for the whole sample.
        found: What was found there.
        expected: What is accepted instead, or how to fix it.
        kind: What sort of fault it is, by a name of `lightning_vlm.lint.kinds`; empty where that has none.

    >>> print(DataError("train.jsonl:7", "weight", "-1", "a finite number >= 0"))
    train.jsonl:7: weight: found -1; expected a finite number >= 0
    """

    def __init__(self, source: str, key: str, found: str, expected: str, kind: str = "") -> None:
        self.source = source
        self.key = key
        self.found = found
        self.expected = expected
        self.kind = kind
        where = f"{source}: {key}" if key else source
        super().__init__(f"{where}: found {found}; expected {expected}")

    def __reduce__(self) -> tuple:
        # Without this, a DataLoader worker couldn't pickle an exception with several arguments.
        return type(self), (self.source, self.key, self.found, self.expected, self.kind)


class Interrupted(BaseException):
    """A command was stopped from outside; the message says what was saved.

    Args:
        message: One line.
        code: The exit code: 128 and the number of the signal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
