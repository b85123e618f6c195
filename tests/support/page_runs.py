"""Runs the fenced blocks of a page; `pages.py` says how."""

import io
import re
import shlex
import traceback
from pathlib import Path

import pytest
import yaml

from lightning_vlm.published import families
from tests.support import page_project
from tests.support.page_shell import Shell
from tests.support.page_words import FailedError, make_media, plain, samples_of
from tests.support.pages import RUN, SHOWN, Block, blocks

CONFIG_KEYS = {"model", "data", "trainer", "stages", "stage", "report", "seed_everything", "ckpt_path"}

_PUBLISHED = {name for family in families().values() for name in family.checkpoints}


class Page:
    """The run of a page in a folder."""

    def __init__(self, name: str, folder: Path, monkeypatch, capsys, model_folder) -> None:
        self.name = name
        self.shell = Shell(monkeypatch, capsys)
        self._folder = folder
        self._monkeypatch = monkeypatch
        self._capsys = capsys
        self._model_folder = model_folder
        self._names: dict = {"__name__": "__page__"}

    def run(self) -> None:
        """Run all blocks; fail with the first that doesn't do what the page says."""
        for block in blocks(self.name):
            try:
                self._run_block(block)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                failure = self._failure(block, error)
            else:
                continue
            pytest.fail(failure, pytrace=False)

    def _failure(self, block: Block, error: BaseException) -> str:
        said = (
            str(error) if isinstance(error, FailedError) else "".join(traceback.format_exception(error)[-4:])
        )
        printed = self._capsys.readouterr()
        shown = "\n".join((self.shell.shown + printed.out + printed.err).splitlines()[-40:])
        return f"{block.place}: {said}\n--- the block ---\n{block.text}--- printed ---\n{shown}"

    def _run_block(self, block: Block) -> None:
        says, language = block.says, block.language
        if "model" in says:
            self.shell.stand_in = str(self._model_folder(says["model"]))
        if "first" in says:
            self._bash(Block(block.page, block.line, "bash", says["first"]))
        if "file" in says:
            file = self._folder / says["file"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.unlink(missing_ok=True)
            file.write_text(block.text)
        elif language in SHOWN:
            if "printed" in says:
                self._compare(block)
        elif language not in RUN:
            raise FailedError(
                f"found a block of language {language!r}; it is one of {', '.join((*RUN, *SHOWN))}"
            )
        else:
            self.shell.shown = ""
            getattr(self, f"_{language}")(block)

    # Each language.

    def _bash(self, block: Block) -> None:
        self._monkeypatch.setattr("sys.stdin", io.StringIO(block.typed))
        for line in block.text.replace("\\\n", " ").splitlines():
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            if "not run" in block.says:
                self.shell.parse_line(line)
            else:
                self.shell.line(line, block)

    def _yaml(self, block: Block) -> None:
        config = yaml.safe_load(block.text)
        is_config = isinstance(config, dict) and set(config) <= CONFIG_KEYS
        if not is_config:
            if "not run" in block.says:
                return
            raise FailedError("this is no config of ours; mark it with `file NAME`, or `not run, REASON`")
        whole = "name_or_path" in (config.get("model") or {}) and (
            "train" in (config.get("data") or {}) or "stages" in config
        )
        Path("block.yaml").write_text(block.text)
        words = ["fit", *([] if whole else ["--config", "my.yaml"]), "--config", "block.yaml"]
        if "not run" in block.says:
            self.shell.parse(words)
        else:
            self.shell.run(words, block)

    def _python(self, block: Block) -> None:
        text = re.sub(r"""(['"])([\w.-]+/[\w.-]+)\1""", self._quoted, block.text)
        code = compile(text, block.place, "exec")
        if "not run" in block.says:
            return
        exec(code, self._names)
        self.shell.keep_shown()

    def _quoted(self, match: re.Match) -> str:
        return repr(self.shell.stand_in) if match[2] in _PUBLISHED else match[0]

    def _json(self, block: Block) -> None:
        rows = list(samples_of(block.text))
        if "not run" in block.says:
            return
        from lightning_vlm import VLMDataModule

        make_media(rows)
        page_project.write(Path("block.jsonl"), rows)
        words = shlex.split(block.says.get("with", ""))
        options = {}
        for key, value in zip(words[::2], words[1::2], strict=True):
            options[key.removeprefix("--data.")] = yaml.safe_load(value)
        source = VLMDataModule(train="block.jsonl", **options).source("train")
        read = [source[place] for place in range(len(source))]
        if not read or not all(conversation.messages for conversation in read):
            raise FailedError(f"{len(rows)} rows gave {len(read)} samples")

    def _compare(self, block: Block) -> None:
        lines = {plain(line) for line in self.shell.shown.splitlines()}
        for line in block.text.splitlines():
            if line.startswith("> ") or line.strip() == "...":
                continue
            parts = [part for part in plain(line).split("...") if part.strip()]
            if not any(all(part.strip() in one for part in parts) for one in lines):
                raise FailedError(f"not printed: {line!r}")
