"""What a fit prints, and sends to Weights & Biases, before it starts."""

from lightning.pytorch import Trainer
from rich import print as rich_print

from lightning_vlm.models.loading.initial import initial_checks, initial_table
from lightning_vlm.models.loading.load import LoadedModel
from lightning_vlm.models.parts import find_parts
from lightning_vlm.models.plan.plan import Plan
from lightning_vlm.models.plan.table import COLUMNS, plan_rows, plan_table
from lightning_vlm.outputs.wandb_run import loggers_of


def report_start(trainer: Trainer, loaded: LoadedModel, plan: Plan) -> None:
    """Show what trains, and how large the weights are that the model's files don't have.

    Args:
        trainer: That fits. Only its first process reports.
        loaded: Its model, after `adapt`.
        plan: As for `adapt`.
    """
    if not trainer.is_global_zero:
        return
    model = loaded.model
    parts = find_parts(model)
    rich_print(plan_table(model, parts, plan))
    is_resumed = bool(trainer.ckpt_path)
    if not is_resumed:
        rich_print(initial_table(initial_checks(model, parts, loaded.missing)))
    for logger in loggers_of(trainer):
        rows = [list(row) for row in plan_rows(model, parts, plan)]
        logger.log_table("plan", list(COLUMNS), rows)
