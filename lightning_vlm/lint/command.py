"""The command `lint`: reads data, prints and writes what is wrong with it, and fails where it must."""

from typing import Any

from rich.console import Console

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import UserError
from lightning_vlm.lint import page, terminal
from lightning_vlm.lint.files import How, fix, write_json
from lightning_vlm.lint.run import SPLITS, lint
from lightning_vlm.module import VLMModule
from lightning_vlm.outputs.writable import require_writable
from lightning_vlm.terminal import short_path


def collect_faults(data: Any) -> None:
    """Let sources that a config names by class collect their faults as well, rather than stop at them.

    Args:
        data: The keys of the data module.
    """
    for split in SPLITS:
        options = getattr(data[split], "init_args", None)
        if options is not None and "on_bad_sample" in options:
            options.on_bad_sample = "skip"


def run(
    module: VLMModule,
    data: VLMDataModule,
    *,
    workers: int | None,
    strict: bool,
    json: str | None,
    out: str,
    fix_how: How | None,
    skip_list: str,
) -> None:
    """Lint, and print and write what was found; arguments as of `VLMTrainer.lint`.

    Raises:
        UserError: There are errors, or with `strict` warnings; or a file can't be written.
    """
    files = {"out": out, "json": json, "skip_list": skip_list if fix_how else None}
    for name, file in files.items():
        if file is not None:
            require_writable(name, file)
    report = lint(module, data, workers)
    console = Console()
    terminal.show(report, console)
    written = [("page", short_path(page.save(report, out)))]
    if json is not None:
        write_json(report, json)
        written.append(("json", short_path(json)))
    if fix_how is not None:
        written += [("fix", line) for line in fix(report, data, fix_how, skip_list)]
    for name, line in written:
        console.print(f"{name:5} {line}", highlight=False, markup=False, soft_wrap=True)
    fails = report.count("error") or (strict and report.count("warning"))
    if fails:
        hint = "" if fix_how else "; --fix clean or --fix skip leaves such rows out"
        raise UserError(f"lint found {report.verdict()}{hint}")
