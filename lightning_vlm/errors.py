"""User errors: one sentence each, without a traceback on the command line."""


class UserError(ValueError):
    """Bad input of any kind (config, data, image, checkpoint). The message says what to do about it."""


class DataError(UserError):
    """One bad sample.

    Args:
        source: Where the sample came from, as `file:line`.
        key: Which key or part of it is wrong, such as `messages[1].role`; empty for the whole line.
        found: What was found there.
        expected: What is accepted instead, or how to fix it.

    >>> print(DataError("train.jsonl:7", "weight", "-1", "a finite number >= 0"))
    train.jsonl:7: weight: found -1; expected a finite number >= 0
    """

    def __init__(self, source: str, key: str, found: str, expected: str) -> None:
        self.source, self.key, self.found, self.expected = source, key, found, expected
        where = f"{source}: {key}" if key else source
        super().__init__(f"{where}: found {found}; expected {expected}")

    def __reduce__(self) -> tuple:
        # Without this, exceptions with several arguments can't be pickled by a DataLoader worker.
        return type(self), (self.source, self.key, self.found, self.expected)


class Interrupted(BaseException):
    """A command was stopped from outside; the message says what was saved.

    Args:
        message: One line.
        code: The exit code: 128 and the number of the signal.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
