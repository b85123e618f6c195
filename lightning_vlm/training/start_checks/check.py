"""All checks of a fit's beginning, and how they are shown."""

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning_vlm_callbacks.selectors import select_parameters
from rich.table import Table
from rich.text import Text
from torch import nn

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.optim import parameter_groups, rate_of
from lightning_vlm.terminal import say
from lightning_vlm.training.early_checks import Skeleton, adapted_skeleton, adds_parameters
from lightning_vlm.training.stages.stage import Stage
from lightning_vlm.training.start_checks.context import check_context, sizes_of
from lightning_vlm.training.start_checks.found import Found
from lightning_vlm.training.start_checks.places import check_folders, check_servers
from lightning_vlm.training.start_checks.rates import Trained, check_rates, trained_of
from lightning_vlm.training.start_checks.settings import check_data_settings

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

ADAM_BYTES = 12
"""Of a parameter that trains, in a checkpoint: itself and two moments, in float32."""


def check_fit(module: "VLMModule", trainer: Trainer, data: VLMDataModule) -> None:
    """Check a fit before its model is loaded, and show what was found, on rank zero.

    It takes less than a second beside what the fit does anyway. Where there is no progress bar, only what
    should be changed is shown.

    Args:
        module: Its model isn't loaded yet.
        trainer: No logger of it has begun a run.
        data: The run's data.

    Raises:
        UserError: Something can't be right: a folder can't be written, the disk is full, a callback waits for
            a validation that doesn't come.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    found = list(_found(module, trainer, data))
    is_quiet = trainer.progress_bar_callback is None
    shown = [one for one in found if not (is_quiet and one.is_fine)]
    if shown:
        say(as_table(shown))


def as_table(found: Sequence[Found]) -> Table:
    """A line for each check; what should be changed stands out."""
    table = Table(
        box=None, show_header=False, title="Before training", title_justify="left", padding=(0, 2, 0, 0)
    )
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text, is_fine in found:
        if is_fine:
            table.add_row(Text("ok", "green"), Text(name, "dim"), Text(text, "dim"))
        else:
            table.add_row(Text("change", "bold yellow"), Text(name, "bold"), Text(text, "yellow"))
    return table


def _found(module: "VLMModule", trainer: Trainer, data: VLMDataModule) -> Iterator[Found]:
    root = adapted_skeleton(module)
    context = None
    if root is not None:
        context = getattr(root.model.config.get_text_config(), "max_position_embeddings", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again when the fit opens its data
        sizes = sizes_of(module, data) if data.given["train"] is not None else []
    yield from check_context(sizes, data.max_length, context)
    if root is not None and not adds_parameters(module):
        yield from _of_rates(module, root, data)
    yield from check_data_settings(module, trainer, data)
    saves = bool(trainer.checkpoint_callbacks)
    yield from check_folders(trainer, _checkpoint_bytes(root) if root is not None and saves else None)
    yield from check_servers(trainer)


def _of_rates(module: "VLMModule", root: Skeleton, data: VLMDataModule) -> Iterator[Found]:
    rate = rate_of(module.optimizer)
    size = sum(weight.numel() for weight in root.parameters())
    if data.stages is None:
        groups = parameter_groups(root, rate, 0.0, module.learning_rates)
        yield check_rates(trained_of(groups, root), size)
        return
    for stage in data.stages.stages:
        if isinstance(stage, Stage):
            found = check_rates(_trained_in(stage, rate, module, root), size)
            yield found._replace(name=f"rate of {stage.name}")


def _trained_in(stage: Stage, rate: float, module: "VLMModule", root: Skeleton) -> list[Trained]:
    given = stage.learning_rates
    if given is None:
        given = {} if stage.learning_rate else module.learning_rates
    groups = parameter_groups(root, stage.learning_rate or rate, 0.0, given)
    trains = {id(weight) for weight in select_parameters(root, list(stage.scales)).values()}
    chosen = [{**group, "params": [one for one in group["params"] if id(one) in trains]} for group in groups]
    return trained_of(chosen, root)


def _checkpoint_bytes(root: nn.Module) -> int:
    return ADAM_BYTES * sum(weight.numel() for weight in root.parameters() if weight.requires_grad)
