"""The command `lightning-vlm`. Nothing heavy is imported until a subcommand is known."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from lightning_vlm.config import COMMANDS, MEANT
from lightning_vlm.config.help import help_of, overview
from lightning_vlm.errors import Interrupted
from lightning_vlm.failures.describe import INTERRUPTED, USER, message_and_code

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

_HELP = ("-h", "--help")
_HELP_ALL = "--help-all"
_STOPPED = "stopped by Ctrl-C"


def main(arguments: Sequence[str] | None = None, module: "type[VLMModule] | None" = None) -> int:
    """Run one command.

    Args:
        arguments: The words after `lightning-vlm`; None takes the process's own.
        module: A subclass of `VLMModule` in its place; see docs/own-model.md.

    Returns:
        0 if all went well, 2 after an error that the user can fix, 1 after a defect of ours, 130 after
        Ctrl-C, 143 after SIGTERM. Each error is a message of at most three lines.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in (*_HELP, _HELP_ALL):
        print(overview(), end="")
        return 0 if words else USER
    if words[0] == "--version":
        from lightning_vlm import __version__

        print(f"lightning-vlm {__version__}")
        return 0
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words[0] not in COMMANDS:
        return _complain(_unknown_command(words))
    if any(word in _HELP for word in words):
        print(help_of(words[0]), end="")
        return 0
    words = ["--help" if word == _HELP_ALL else word for word in words]
    try:
        _run(words, module, is_process=arguments is None)
    except Interrupted as error:
        return _complain(str(error), error.code)
    except KeyboardInterrupt:
        return _complain(_STOPPED, INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        return _complain(*message_and_code(error, words))
    return 0


def _run(words: list[str], module: "type[VLMModule] | None", is_process: bool) -> None:
    from lightning_vlm.compat import quiet
    from lightning_vlm.compat.fast_imports import fast_imports

    quiet.install_for_command(words[0])
    own = COMMANDS[words[0]].module
    module_name = own or "lightning_vlm.run"
    if module_name not in sys.modules:
        with fast_imports(), _ended_by_ctrl_c():
            import_module(module_name)
    quiet.shorten_warnings()
    command = sys.modules[module_name]
    if own is not None:
        command.run(words[1:])
        return
    if is_process:  # LightningCLI warns of words that are passed beside those of the process
        sys.argv[1:] = words
    command.run(None if is_process else words, module)


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the process at once, which has begun nothing as long as it imports.

    torch goes on where the import of numpy is interrupted, and later imports of numpy fail in odd ways.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: Any) -> NoReturn:
    os.write(2, f"{_program()}: error: {_STOPPED}\n".encode())
    os._exit(INTERRUPTED)


def _unknown_command(words: list[str]) -> str:
    from lightning_vlm.nearest import did_you_mean

    first = words[0]
    if first.startswith("-"):
        later = next((word for word in words if word in COMMANDS), "fit")
        return f"found {first} before the command; write lightning-vlm {later} first"
    if first.endswith((".yaml", ".yml")):
        return f"found {first} where a command was expected; did you mean lightning-vlm fit --config {first}?"
    meant = MEANT.get(first.lower())
    hint = f"; did you mean {meant}?" if meant else did_you_mean(first, COMMANDS)
    return f"there is no command '{first}'; choose {', '.join(COMMANDS)}{hint}"


def _complain(message: str, code: int = USER) -> int:
    from lightning_vlm.terminal import visible  # imports rich, which `--help` doesn't need

    print(f"{_program()}: error: {visible(message)}", file=sys.stderr)
    return code


def _program() -> str:
    given = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    rank = next((rank for rank in given if rank), "0")
    return "lightning-vlm" if rank == "0" else f"lightning-vlm (rank {rank})"
