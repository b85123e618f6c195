"""`lightning-vlm migrate`: turns a config of another tool into one of ours."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_vlm_callbacks.whole_files import refusal, write_whole
from rich.console import Console

from lightning_vlm.errors import UserError
from lightning_vlm.migrate import llama_factory, ms_swift, trainer, trl
from lightning_vlm.migrate.config_text import config_text
from lightning_vlm.migrate.ours import Ours
from lightning_vlm.migrate.reading import read, read_line
from lightning_vlm.migrate.terminal import show
from lightning_vlm.migrate.theirs import Theirs
from lightning_vlm.migrate.tools import LABELS
from lightning_vlm.parser import Parser

_USUAL = re.compile(
    r"(?:NCCL|CUDA|TORCH|PYTORCH|HF|HUGGINGFACE|TRANSFORMERS|TOKENIZERS|OMP|WANDB|PYTHON|LD|MASTER|XDG|TRITON)\w*"
    r"|PATH|TMP|TEMP|TMPDIR|NNODES|NODE_RANK"
)
"""Variables that torch, trackers and the system read, of our command as of theirs."""
_VARIABLES = {"CUDA_VISIBLE_DEVICES", "NPROC_PER_NODE", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"}
"""Environment variables that are read here, or mean the same here."""


def run(words: Sequence[str]) -> None:
    """Run the command.

    Args:
        words: What stands after `lightning-vlm migrate`.

    Raises:
        UserError: A file that can't be read, or isn't of supervised fine-tuning; or a config that is there.
    """
    own, line = list(words), None
    if "--" in own:
        place = own.index("--")
        own, line = own[:place], own[place + 1 :]
    given = parser().parse_args(own)
    asked = given.get("from")
    if (given.FILE is None) == (line is None):
        raise UserError("migrate: expected one FILE, or -- and the words of a command such as swift sft ...")
    theirs = read_line(line, asked) if line is not None else read(given.FILE, asked)
    ours = convert(theirs)
    out = Path(given.out or f"{theirs.file.stem}-lightning-vlm.yaml")
    _write(out, config_text(theirs, ours, f"lightning-vlm migrate {shlex.join(words)}"))
    show(theirs, ours, str(out), Console())


def parser() -> Parser:
    """The command's options."""
    options = Parser(
        prog="lightning-vlm migrate",
        description="Turn a config of TRL, LLaMA-Factory, ms-swift or Trainer into one of ours.",
        epilog="example: lightning-vlm migrate train_lora.yaml --out my.yaml",
    )
    add = options.add_argument
    add(
        "FILE",
        nargs="?",
        help="YAML, JSON, an args.json, a script (.sh, .py, .ipynb); or -- and the words of a command.",
    )
    add("--from", metavar="TOOL", help=f"One of {', '.join(LABELS)}; without: found by the keys.")
    add("--out", metavar="FILE", help="The config to write; without: FILE's name with -lightning-vlm.yaml.")
    return options


def convert(theirs: Theirs) -> Ours:
    """Their settings as ours.

    Raises:
        UserError: They aren't of supervised fine-tuning.
    """
    ours = Ours()
    by_tool: dict[str, Callable[[Theirs, Ours], None]] = {
        "trainer": trainer.convert,
        "trl": trl.convert,
        "llama-factory": llama_factory.convert,
        "ms-swift": ms_swift.convert,
    }
    by_tool[theirs.tool.name](theirs, ours)
    _leave_surroundings(theirs, ours)
    return ours


def _leave_surroundings(theirs: Theirs, ours: Ours) -> None:
    """Say what of the variables and the launcher of a command has no effect here."""
    of_tool = ms_swift.VARIABLES if theirs.tool.name == "ms-swift" else set()
    usual = []
    for name, value in theirs.launch.environment.items():
        if name in {*of_tool, *_VARIABLES}:
            continue
        if _USUAL.fullmatch(name):
            usual.append(name)
        else:
            ours.leave(name, value, "an environment variable that has no key here")
    if usual:
        ours.notes.append(f"set for our command, too, what is set for theirs: {', '.join(usual)}")
    for name, value in theirs.launch.options.items():
        why = "several devices are set by trainer.strategy and trainer.devices here; see docs/scale.md"
        ours.leave(f"{theirs.launch.launcher} --{name}", value, why)


def _write(path: Path, text: str) -> None:
    """Write a config, but over none with another text.

    Raises:
        UserError: One is there, or it can't be written.
    """
    if path.exists() and (not path.is_file() or path.read_bytes() != text.encode()):
        raise UserError(
            f"out: found {path} already there; migrate overwrites nothing: name a new one with --out"
        )
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"out: {refusal(error)}") from error
