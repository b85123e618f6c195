"""The keys `stages` and `stage` of a config."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean
from lightning_vlm.training.stages.stage import Stage

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


def add_stages(parser: LightningArgumentParser) -> None:
    """Let a parser know both keys."""
    parser.add_argument(
        "--stages",
        type=list[Stage] | None,
        default=None,
        help="Stretches of the run, each with its own data, rates and weights; see docs/stages.md.",
    )
    parser.add_argument(
        "--stage",
        type=str | None,
        default=None,
        help="The name of one of the stages: fit trains it alone, other commands use its data.",
    )


def use_stages(config: Mapping[str, Any], module: "VLMModule", data: VLMDataModule, command: str) -> None:
    """Give a data module the stages of a config, and outside of a fit the module the weights of one.

    Args:
        config: With its classes made.
        module: Of the command.
        data: Of the command.
        command: Its name.

    Raises:
        UserError: There is no such stage.
    """
    stages: Sequence[Stage] | None = config["stages"]
    name = config["stage"]
    if not stages:
        if name is not None or stages is not None:
            raise UserError(f"stage: found {name or 'an empty list'}, but the config has no stages")
        return
    if name is not None:
        chosen = [stage for stage in stages if stage.name == name]
        if not chosen:
            names = [stage.name for stage in stages]
            near = did_you_mean(name, names)
            raise UserError(f"stage: found {name}; expected one of {', '.join(names)}{near}")
        stages = chosen
    data.set_stages(stages)
    if command == "fit":
        return
    last = stages[-1]
    module.token_weights = last.token_weights or module.token_weights
    if name is None and len(stages) > 1:
        rank_zero_info(f"The data are those of the last stage, {last.name}; --stage NAME takes another")
