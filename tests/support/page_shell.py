"""Runs the commands of a page; `pages.py` says how."""

import importlib
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from lightning_vlm.cli import main
from lightning_vlm.config import COMMANDS
from lightning_vlm.models.shipped import SHIPPED
from tests.support import page_project
from tests.support.page_words import (
    FailedError,
    check_extras,
    check_targets,
    configs_of,
    split,
    value_of,
    without_redirect,
    words_of,
)
from tests.support.pages import PROGRAMS, Block

HUB_NAME = re.compile(r"[A-Za-z][\w.-]*/[\w.-]+")
TRAINER = ("fit", "validate", "test", "predict")
"""Commands that have a trainer."""
ON_ONE_CPU = {"accelerator": "cpu", "devices": "1", "num_nodes": "1", "strategy": "auto"}
NO_LIMITS = {"max_pixels": "null", "min_pixels": "null", "pixels_by_detail": "false"}


class Shell:
    """Runs commands in this process, and keeps what they print."""

    def __init__(self, monkeypatch, capsys) -> None:
        self.stand_in = "drawn-vlm"
        """What stands in for models of the hub."""
        self.shown = ""
        """What the last block that ran has printed."""
        self.out = ""
        """What the last command wrote to standard output."""
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self._checkpoint: Path | None = None

    def line(self, line: str, block: Block) -> None:
        for pipeline in words_of(line, "&&", ";"):
            given: str | None = None
            for command in split(pipeline, "|"):
                given = self._command(command, given, block)

    def _command(self, words: list[str], given: str | None, block: Block) -> str:
        """Run a command with what is piped into it; what it printed."""
        words, target, mode = without_redirect(words)
        while words and re.match(r"[A-Z_]+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            self._monkeypatch.setenv(name, value)
        if not words:
            return ""
        if words[0] == "cd":
            self._monkeypatch.chdir(words[1])
            return ""
        if words[0] == "export":
            for name, _, value in (word.partition("=") for word in words[1:]):
                self._monkeypatch.setenv(name, value)
            return ""
        if words[0] in ("lightning-vlm", "python") and given is not None:
            self._monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        before = len(self.shown)
        if words[0] == "lightning-vlm":
            self.run(words[1:], block)
        elif words[0] == "python":
            self._python_command(words[1:], block)
        elif words[0] == "pip" or words[:3] == ["python", "-m", "pip"]:
            check_extras(words)
        elif words[0] == "make":
            check_targets(words[1:])
        elif words[0] in PROGRAMS:
            done = subprocess.run(words, input=given, capture_output=True, text=True, check=False)
            self.shown += done.stdout + done.stderr
            self._check_code(done.returncode, words, block)
            printed = done.stdout
        else:
            raise FailedError(
                f"{words[0]} is no program that pages run; mark the block with `not run, REASON`"
            )
        if words[0] not in PROGRAMS:
            printed = self.out if len(self.shown) > before else ""
        if target:
            with open(target, mode) as file:
                file.write(printed)
        return printed

    def _python_command(self, words: list[str], block: Block) -> None:
        if words[:2] == ["-m", "lightning_vlm"]:
            self.run(words[2:], block)
            return
        if words[0] == "-c":
            exec(compile(words[1], block.place, "exec"), {"__name__": "__main__"})
            self.keep_shown()
            return
        self._monkeypatch.setattr("sys.argv", words)
        self._monkeypatch.syspath_prepend(str(Path.cwd()))
        code = 0
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        self.keep_shown()
        self._check_code(code, ["python", *words], block)

    def run(self, words: list[str], block: Block) -> None:
        """Run `lightning-vlm`."""
        command = words[0] if words else ""
        words = self._with_checkpoints(words)
        if command == "export":
            self._export(words)
            return
        added = [] if "as written" in block.says else list(self._added(words))
        if command == "init":
            out = dict(pairwise(words)).get("--out")
            if out:
                Path(out).unlink(missing_ok=True)
        if command in ("chat", "compare"):
            words = [self._local(word) for word in words]
        words = [*words, *added, *shlex.split(block.says.get("with", ""))]
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
        self.keep_shown()
        finish_wandb()
        made = re.findall(r"^checkpoint +(\S+\.ckpt)$", self.shown, re.MULTILINE)
        if command == "fit" and made and Path(made[-1]).is_file():
            self._checkpoint = Path(made[-1])
        self._check_code(code, ["lightning-vlm", *words], block)

    def keep_shown(self) -> None:
        printed = self._capsys.readouterr()
        self.out = printed.out
        self.shown += printed.out + printed.err

    def _check_code(self, code: object, words: Sequence[str], block: Block) -> None:
        wanted = int(block.says.get("exit", 0))
        if code != wanted or "Traceback (most recent" in self.shown:
            raise FailedError(f"exit status {code} instead of {wanted} of\n{shlex.join(words)}")

    def _with_checkpoints(self, words: list[str]) -> list[str]:
        out = []
        for word in words:
            label, _, name = word.rpartition("=")
            if name == "CHECKPOINT":
                made = self._checkpoint or page_project.checkpoint()
                word = f"{label}={made}" if label else str(made)
            elif name.endswith(".ckpt") and not Path(name).exists() and "$" not in name:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(page_project.checkpoint(), name)
            out.append(word)
        return out

    def _added(self, words: list[str]) -> Iterator[str]:
        """Words that make a command short, on one CPU, and on a model that is here."""
        command = words[0] if words else ""
        if command == "init":
            model = dict(pairwise(words)).get("--model")
            if model is None or self._local(model) != model:
                yield from ("--model", self.stand_in)
        if command not in COMMANDS or COMMANDS[command].module is not None:
            return
        configs = list(configs_of(words))
        model = value_of("model.name_or_path", words, configs)
        if model is not None and self._local(model) != model:
            yield from ("--model.name_or_path", self.stand_in)
            if self.stand_in == "drawn-vlm":
                for key, nothing in NO_LIMITS.items():
                    if value_of(f"data.{key}", words, configs) is not None:
                        yield from (f"--data.{key}", nothing)
        if command in TRAINER:
            for key, value in ON_ONE_CPU.items():
                yield from (f"--trainer.{key}", value)
            yield from ("--trainer.enable_progress_bar", "false")
        if command == "fit" and not any(config.get("stages") for config in configs):
            key = "trainer.accumulate_grad_batches"
            window = int(str(value_of(key, words, configs) or 1))
            is_typed = any(word.partition("=")[0] == f"--{key}" for word in words)
            if window > 2 and not is_typed:  # recipes accumulate up to 32 batches
                window = 2
                yield from (f"--{key}", str(window))
            # Two steps are an epoch, behind which there is a validation.
            yield from ("--trainer.max_steps", "2", "--trainer.limit_train_batches", str(2 * window))
        if command != "predict" and command in TRAINER:
            for part in ("val", "test"):
                yield from (f"--trainer.limit_{part}_batches", "1")

    def _local(self, word: str) -> str:
        """The stand-in for the name of a model on the hub; any other word as it is."""
        label, is_labelled, name = word.rpartition("=")
        if name == "drawn-vlm" or (HUB_NAME.fullmatch(name) and not Path(name).exists()):
            return f"{label}{is_labelled}{self.stand_in}"
        return word

    def _export(self, words: list[str]) -> None:
        self.parse(words)
        given = dict(pairwise(words))
        if "--adapter-only" not in words and "--out" in given:
            shutil.copytree(SHIPPED["drawn-vlm"], given["--out"], dirs_exist_ok=True)

    # What isn't run.

    def parse_line(self, line: str) -> None:
        for pipeline in words_of(line, "&&", ";"):
            for words in split(pipeline, "|"):
                words, _, _ = without_redirect(words)
                if "pip" in words[:3]:
                    check_extras(words)
                if "lightning-vlm" in words:
                    self.parse(words[words.index("lightning-vlm") + 1 :])

    def parse(self, words: list[str]) -> None:
        """Parse a command of ours without running it."""
        if not words or words[0] not in COMMANDS:
            raise FailedError(f"there is no command {words[:1]}")
        module = COMMANDS[words[0]].module
        try:
            if module is not None:
                importlib.import_module(module).parser().parse_args(words[1:])
                return
            code = main([*words, "--print_config"])
        except SystemExit as stop:
            code = stop.code
        printed = self._capsys.readouterr()
        if code not in (0, None):
            self.shown = printed.err
            raise FailedError(f"not understood: lightning-vlm {shlex.join(words)}")


def finish_wandb() -> None:
    """End a run of Weights & Biases, and its process, which takes relative folders from where it began."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()
        wandb.teardown()
