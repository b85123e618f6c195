"""What a fit prints, and sends to loggers, before it starts."""

from typing import TYPE_CHECKING

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_warn
from lightning_vlm_callbacks.trackers import log_table
from rich import print as rich_print
from typing_extensions import override

from lightning_vlm.compat import mlflow_parameters
from lightning_vlm.models.loading.initial import initial_checks, initial_table
from lightning_vlm.models.parts import find_parts
from lightning_vlm.models.plan.table import COLUMNS, plan_rows, plan_table
from lightning_vlm.models.precision import costs_of_precision

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


class StartReport(Callback):
    """Shows what trains, what its precision costs, and how large the weights are that no file has."""

    @override
    def setup(self, trainer: Trainer, pl_module: "VLMModule", stage: str) -> None:  # type: ignore[override]
        for logger in trainer.loggers:
            if isinstance(logger, MLFlowLogger):
                mlflow_parameters.install(logger)  # Lightning logs the module's parameters after this

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
            checks = pl_module.loaded.checks
            if checks is None:
                checks = initial_checks(model, parts, pl_module.loaded.missing)
            rich_print(initial_table(checks))
        log_table(trainer, "plan", COLUMNS, plan_rows(model, parts, pl_module.adapt))
