"""The command `lightning-vlm`. Nothing heavy is imported until a subcommand is known."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from lightning_vlm.config import COMMANDS
from lightning_vlm.errors import Interrupted
from lightning_vlm.failures.describe import INTERRUPTED, USER, message_and_code

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

HELP = """\
usage: lightning-vlm COMMAND --config FILE [--KEY VALUE ...]

Fine-tune vision-language models with PyTorch Lightning.

commands:
{commands}

options:
  --config FILE      a YAML file; several are merged, later ones win, and so do --KEY VALUE pairs
  --ckpt_path FILE   a checkpoint to continue from, or to score
  --samples N --scan N --out FILE
                     preview: samples to show, to read for the figures, and where the HTML page goes
  --progress X       preview: show the weights at this progress of training, 0 to 1
  --gain true        preview: load the model, and show which words need the picture
  --out FILE --show N
                     predict: where the answers go, and how many to print
  --out DIR [--adapter-only] [--check-quantized nf4]
                     export: the folder to make; adapters alone; what quantising it would lose
  --debug            show the traceback of an error
  --version          print the version
  COMMAND --help     all keys of a command

example:
  lightning-vlm fit --config configs/quickstart.yaml --model.name_or_path HuggingFaceTB/SmolVLM-256M-Instruct
"""


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
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP.replace("{commands}", _command_list()), end="")
        return 0 if words else USER
    if words[0] == "--version":
        from lightning_vlm import __version__

        print(f"lightning-vlm {__version__}")
        return 0
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if words[0] not in COMMANDS:
        return _complain(_unknown_command(words))
    try:
        _run(words, module, is_process=arguments is None)
    except Interrupted as error:
        return _complain(str(error), error.code)
    except KeyboardInterrupt:
        return _complain("stopped by Ctrl-C", INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        return _complain(*message_and_code(error, words))
    return 0


def _run(words: list[str], module: "type[VLMModule] | None", is_process: bool) -> None:
    from lightning_vlm.compat import quiet

    quiet.install_for_command(words[0])
    own = COMMANDS[words[0]].module
    if own is not None:
        import_module(own).run(words[1:])
        return
    from lightning_vlm.run import run

    if is_process:  # LightningCLI warns of words that are passed beside those of the process
        sys.argv[1:] = words
    run(None if is_process else words, module)


def _command_list() -> str:
    return "\n".join(f"  {name:10} {command.summary}" for name, command in COMMANDS.items())


def _unknown_command(words: list[str]) -> str:
    from lightning_vlm.nearest import did_you_mean

    later = [word for word in words if word in COMMANDS]
    if words[0].startswith("-") and later:
        return f"found {words[0]} before the command; write lightning-vlm {later[0]} first"
    hint = did_you_mean(words[0], COMMANDS)
    return f"there is no command '{words[0]}'; choose {', '.join(COMMANDS)}{hint}"


def _complain(message: str, code: int = USER) -> int:
    rank = os.environ.get("LOCAL_RANK", "0")
    program = "lightning-vlm" if rank == "0" else f"lightning-vlm (rank {rank})"
    print(f"{program}: error: {message}", file=sys.stderr)
    return code
