"""What a person reads when a command fails: at most three lines, the cause first.

An exception is a user error if it is one of our user errors, if `rules` has a rule for it, or if it
comes from the user's own code. Anything else is treated as a defect of ours, and its traceback is kept in a
file.
"""

import os
import platform
import re
import shlex
import sys
import sysconfig
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_vlm.nearest import one_line

USER, DEFECT, INTERRUPTED = 2, 1, 130
"""Exit codes: a user error, a defect of ours, Ctrl-C."""

MOST_OF_WORDS = 150
"""Command lines with more characters aren't repeated in a message."""

_PACKAGES = ("lightning_vlm", "lightning_vlm_callbacks")


def message_and_code(error: BaseException, words: Sequence[str] = ()) -> tuple[str, int]:
    """The message of an exception that ended a command, and the exit code.

    Args:
        error: The exception.
        words: The command, for the file that a defect leaves.
    """
    message = explain(error)
    if message is not None:
        return message + _plan_advice(message, words), USER
    return _defect(error, words), DEFECT


def _plan_advice(message: str, words: Sequence[str]) -> str:
    """What finds settings that fit, behind a message of a fit that ran out of memory; or nothing.

    >>> _plan_advice("out of memory on the GPU", ["fit", "--config", "a.yaml", "--data.batch_size", "8"])
    '; lightning-vlm plan --config a.yaml --data.batch_size 8 says what fits'
    """
    if words[:1] != ["fit"] or not message.startswith("out of memory"):
        return ""
    asked = shlex.join(words[1:])
    if len(asked) > MOST_OF_WORDS:
        asked = "with the same keys"
    return f"; lightning-vlm plan {asked} says what fits"


def explain(error: BaseException) -> str | None:
    """The message of a user error; None for a defect of ours.

    >>> from lightning_vlm.errors import UserError
    >>> explain(UserError("data.train: found no samples"))
    'data.train: found no samples'
    >>> explain(KeyError("x")) is None
    True
    """
    from lightning.pytorch.utilities.exceptions import MisconfigurationException
    from lightning_vlm_callbacks.checkpoint_files import CheckpointError
    from lightning_vlm_callbacks.selectors import SelectorError

    from lightning_vlm.errors import UserError
    from lightning_vlm.failures.rules import known_failure

    causes = list(causes_of(error))
    for cause in causes:  # the parser wraps what the constructor of a class of ours raises
        if isinstance(cause, UserError | SelectorError | CheckpointError):
            return str(cause)
    message = _from_process(error) or known_failure(causes)
    if message is None:
        message = _of_type(MisconfigurationException, causes)
    if message is None:
        message = _of_users_code(causes[-1])
    return _three_lines(message) if message else None


def _of_type(kind: type[BaseException], causes: Sequence[BaseException]) -> str | None:
    for cause in causes:
        if isinstance(cause, kind):
            return str(cause)
    return None


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """The exception, and those that it came from, the first one last."""
    cause: BaseException | None = error
    visited: set[int] = set()
    while cause is not None and id(cause) not in visited:
        visited.add(id(cause))
        yield cause
        if cause.__cause__ is not None or cause.__suppress_context__:
            cause = cause.__cause__
        else:
            cause = cause.__context__


def _from_process(error: BaseException) -> str | None:
    """The message of an error of ours in a data worker or another rank, which is only quoted here."""
    names = "|".join(_PACKAGES)
    quoted = re.findall(rf"^(?:{names})[\w.]*Error: (.+)$", str(error), re.MULTILINE)
    return quoted[-1] if quoted else None


def _with_type(error: BaseException) -> str:
    name = type(error).__name__
    return f"{name}: {error}" if str(error).strip() else name


def _three_lines(message: str) -> str:
    lines = [one_line(line, 500) for line in message.splitlines() if line.strip()]
    return "\n".join(lines[:3])


def _of_users_code(error: BaseException) -> str | None:
    """The message of an error in the user's own callback, data set or template; None for other code."""
    frame = _innermost(error)
    if frame is None or not _is_users(frame.filename):
        return None
    place = f"raised by {frame.name} in {frame.filename}:{frame.lineno}"
    return f"{_with_type(error)}\n{place}; --debug shows the whole traceback"


def _innermost(error: BaseException) -> traceback.FrameSummary | None:
    """The innermost frame, if possible of a file that isn't an installed package's."""
    frames = list(traceback.extract_tb(error.__traceback__))
    own = [frame for frame in frames if not _is_installed(frame.filename)] or frames
    return own[-1] if own else None


def _is_installed(file: str) -> bool:
    paths = sysconfig.get_paths()
    roots = (paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"])
    return file.startswith(("<", *roots))


def _is_users(file: str) -> bool:
    """Whether a file is neither installed, nor ours, nor what started the process."""
    folders = Path(file).parts
    is_ours = any(package in folders for package in _PACKAGES)
    start = sys.argv[0] or "-"
    is_start = os.path.realpath(file) == os.path.realpath(start)
    return not (is_ours or is_start or _is_installed(file))


def _defect(error: BaseException, words: Sequence[str]) -> str:
    """Keep the traceback in a file, and say so."""
    text = "".join(traceback.format_exception(error))
    command = " ".join(["lightning-vlm", *words])
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = Path(tempfile.gettempdir(), f"lightning-vlm-{stamp}-{os.getpid()}.txt")
    report = f"{command}\n{_versions()}\n\n{text}"
    try:
        path.write_text(report, encoding="utf-8")
        kept = f"the traceback is in {path}"
    except OSError:
        kept = "run again with --debug to see the traceback"
    cause = _three_lines(_with_type(error)).partition("\n")[0]
    lines = [cause]
    frame = _innermost(error)
    if frame is not None:
        file = Path(frame.filename).name
        lines.append(f"in {frame.name}, {file}:{frame.lineno}")
    lines.append(f"this looks like a defect of lightning-vlm; please report it: {kept}")
    return _three_lines("\n".join(lines))


def _versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    python = platform.python_version()
    found = [f"python {python}"]
    for name in ("lightning-vlm", "torch", "lightning", "transformers", "peft", "jsonargparse"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)
