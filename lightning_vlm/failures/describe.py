"""What a person reads when a command fails: at most three lines, the cause first.

An exception is a user error if it is one of our user errors, if `failure_rules` has a rule for it, or if it
comes from the user's own code. Anything else is treated as a defect of ours, and its traceback is kept in a
file.
"""

import os
import re
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

USER, DEFECT, INTERRUPTED = 2, 1, 130
"""Exit codes: a user error, a defect of ours, Ctrl-C."""

_PACKAGES = ("lightning_vlm", "lightning_vlm_callbacks")


def report(error: BaseException, words: Sequence[str] = ()) -> tuple[str, int]:
    """The message of an exception that ended a command, and the exit code.

    Args:
        error: The exception.
        words: The command, for the file that a defect leaves.
    """
    message = explain(error)
    if message is not None:
        return message, USER
    return _defect(error, words), DEFECT


def explain(error: BaseException) -> str | None:
    """The message of a user error; None for a defect of ours.

    >>> from lightning_vlm.errors import UserError
    >>> explain(UserError("data.train: found no samples"))
    'data.train: found no samples'
    >>> explain(KeyError("x")) is None
    True
    """
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from lightning_vlm_callbacks.selectors import SelectorError

    from lightning_vlm.errors import UserError
    from lightning_vlm.failures.rules import known

    causes = list(_causes(error))
    for cause in causes:  # the parser wraps what a class of ours raises while it is made
        if isinstance(cause, UserError | SelectorError):
            return str(cause)
    if message := _from_process(error):
        return message
    if message := known(causes):
        return _three_lines(message)
    for cause in causes:
        if isinstance(cause, MisconfigurationException):
            return _three_lines(_sentence(cause))
    message = _of_users_code(causes[-1])
    return _three_lines(message) if message else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, and those that it came from, the first one last."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _from_process(error: BaseException) -> str | None:
    """The message of an error of ours in a data worker or another rank, which is only quoted here."""
    quoted = re.findall(
        r"^(?:lightning_vlm|lightning_vlm_callbacks)[\w.]*Error: (.+)$", str(error), re.MULTILINE
    )
    return quoted[-1] if quoted else None


def _with_type(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error).strip() else type(error).__name__


def _sentence(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__


def _three_lines(message: str) -> str:
    lines = [" ".join(line.split()) for line in message.strip().splitlines() if line.strip()]
    return "\n".join(line if len(line) <= 500 else f"{line[:499]}…" for line in lines[:3])


def _of_users_code(error: BaseException) -> str | None:
    """The message of an error in the user's own callback, data set or template; None for other code."""
    frame = _innermost(error.__traceback__)
    if frame is None or not _is_users(frame[0]):
        return None
    file, line, function = frame
    return f"{_with_type(error)}\nraised by {function} in {file}:{line}; --debug shows the whole traceback"


def _innermost(trace: TracebackType | None) -> tuple[str, int, str] | None:
    frames = traceback.extract_tb(trace)
    own = [frame for frame in frames if not _is_installed(frame.filename)] or frames
    return (own[-1].filename, own[-1].lineno or 0, own[-1].name) if own else None


def _is_installed(file: str) -> bool:
    paths = sysconfig.get_paths()
    roots = (paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"])
    return file.startswith("<") or any(file.startswith(root) for root in roots)


def _is_users(file: str) -> bool:
    """Whether a file is neither installed, nor ours, nor what started the process."""
    ours = any(package in Path(file).parts for package in _PACKAGES)
    started = os.path.realpath(file) == os.path.realpath(sys.argv[0] or "-")
    return not (ours or started or _is_installed(file))


def _defect(error: BaseException, words: Sequence[str]) -> str:
    """Keep the traceback in a file, and say so."""
    text = "".join(traceback.format_exception(error))
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = Path(tempfile.gettempdir()) / f"lightning-vlm-{stamp}-{os.getpid()}.txt"
    try:
        path.write_text(f"{' '.join(['lightning-vlm', *words])}\n{_versions()}\n\n{text}", encoding="utf-8")
        kept = f"the traceback is in {path}"
    except OSError:
        kept = "run again with --debug to see the traceback"
    frame = _innermost(error.__traceback__)
    place = f"\nin {frame[2]}, {Path(frame[0]).name}:{frame[1]}" if frame else ""
    first = _three_lines(_with_type(error)).partition("\n")[0]
    return f"{first}{place}\nthis looks like a defect of lightning-vlm; please report it: {kept}"


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name in ("lightning-vlm", "torch", "lightning", "transformers", "peft", "jsonargparse"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return f"python {sys.version.split()[0]}, {', '.join(found)}"
