"""`lightning-vlm plan`: what a config needs, what fits, and a config that does."""

import json
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from lightning_vlm_callbacks.whole_files import write_whole
from rich.console import Console

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.module import VLMModule
from lightning_vlm.planning import terminal
from lightning_vlm.planning.asked import Asked, room_of
from lightning_vlm.planning.methods import Aim
from lightning_vlm.planning.planned import Planned
from lightning_vlm.planning.planner import Planner
from lightning_vlm.planning.write import check_out, config_text


def plan(
    module: VLMModule,
    data: VLMDataModule,
    asked: Asked,
    memory: str | None,
    scan: int,
    *,
    aim: Aim,
    batch: int | None,
    compare: bool,
    measure: bool,
) -> Planned:
    """Make a plan, and show on the terminal what is counted meanwhile.

    Args:
        module: As configured, its model not loaded.
        data: As configured.
        asked: What the config asks of the Trainer.
        memory: Such as `24GiB`; None is this machine's.
        scan: How many samples of the data are measured.
        aim: As of `Planner.plan`, as are the others.
        batch: Samples of a step.
        compare: Whether all methods are counted.
        measure: Whether real steps are measured.

    Raises:
        UserError: As in a fit, or a value that can't be.
    """
    room = room_of(memory, asked.accelerator, asked.devices)
    console = Console(stderr=True)
    status = console.status("plan") if console.is_terminal else None
    with status or nullcontext(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="gradient_checkpointing")

        def say(what: str) -> None:
            if status is not None:
                status.update(what)

        return Planner(module, data, asked, room, scan, say).plan(aim, batch, compare, measure)


def report(planned: Planned, as_json: bool, out: str | None, config: Callable[[], str] | None) -> None:
    """Print a plan, and write the config if one is wanted.

    Args:
        planned: The plan.
        as_json: Whether to print it for programs.
        out: The config to write.
        config: Gives the YAML of the run's config.
    """
    console = Console()
    if as_json:
        print(json.dumps(planned.as_json(), indent=2, default=str))
    else:
        terminal.show(planned, console)
    if out is not None and config is not None:
        file: Path = check_out(out)
        write_whole(file, config_text(config(), planned, out))
        if not as_json:
            console.print(f"\nconfig   {file}", highlight=False, markup=False, soft_wrap=True)
            line = f"next     lightning-vlm fit --config {file}"
            console.print(line, highlight=False, markup=False, soft_wrap=True)
