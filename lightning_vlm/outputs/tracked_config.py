"""The config of a run for the loggers that keep one."""

import textwrap
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_vlm.compat import mlflow_parameters
from lightning_vlm.outputs.secrets import without_secrets
from lightning_vlm.outputs.trackio_logger import TrackioLogger

KEY = "cli"
"""What the config is called beside hyperparameters of the module."""


def takes_config(trainer: Trainer) -> bool:
    """Whether a logger of a Trainer keeps a config."""
    kinds = (WandbLogger, TensorBoardLogger, MLFlowLogger, TrackioLogger)
    return any(isinstance(logger, kinds) for logger in trainer.loggers)


def send_config(trainer: Trainer, whole: dict[str, Any], text: str) -> None:
    """Send a run's config to the loggers that keep one, without its secrets.

    Args:
        trainer: Whose loggers get it, on rank zero.
        whole: All keys.
        text: Those that aren't default, as YAML.
    """
    whole = without_secrets(whole)
    chosen = without_secrets(yaml.safe_load(text) or {})
    text = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.config.update({KEY: whole}, allow_val_change=True)
        elif isinstance(logger, TrackioLogger):
            logger.log_hyperparams({KEY: whole})
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("config", textwrap.indent(text, "    "))
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, text, "config.yaml")
            mlflow_parameters.log_parameters(logger, {KEY: chosen})
