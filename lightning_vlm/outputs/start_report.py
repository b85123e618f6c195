"""What a fit prints, and sends to Weights & Biases, before it starts."""

from typing import TYPE_CHECKING

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from rich import print as rich_print
from typing_extensions import override

from lightning_vlm.models.loading.initial import initial_checks, initial_table
from lightning_vlm.models.parts import find_parts
from lightning_vlm.models.plan.table import COLUMNS, plan_rows, plan_table
from lightning_vlm.models.precision import costs_of_precision
from lightning_vlm.outputs.wandb_run import loggers_of

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


class StartReport(Callback):
    """Shows what trains, what its precision costs, and how large the weights are that no file has."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: "VLMModule") -> None:  # type: ignore[override]
        if not trainer.is_global_zero:
            return
        model = pl_module.loaded.model
        parts = find_parts(model)
        rich_print(plan_table(model, parts, pl_module.adapt))
        for line in costs_of_precision(model, trainer):
            rank_zero_warn(line)
        is_resumed = bool(trainer.ckpt_path)
        if not is_resumed:
            rich_print(initial_table(initial_checks(model, parts, pl_module.loaded.missing)))
        for logger in loggers_of(trainer):
            rows = [list(row) for row in plan_rows(model, parts, pl_module.adapt)]
            logger.log_table("plan", list(COLUMNS), rows)
