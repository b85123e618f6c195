"""Mistakes in a plan that are found before a logger begins a run.

Lightning opens its loggers before any `setup` hook, and models are loaded only after those. A misspelt
selector would then be found when a run of Weights & Biases exists already. So selectors are tried on a model
without weights first, which takes a fraction of a second.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_vlm_callbacks.selectors import SelectorError, select_parameters
from torch import nn
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.models.parts import find_parts
from lightning_vlm.optim import clip_groups, parameter_groups

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

__all__ = ["Skeleton", "adapted_skeleton", "adds_parameters", "check_selectors"]


class Skeleton(nn.Module):
    """What selectors start from, as in a `VLMModule`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.parts = find_parts(model, prefix="model.")


def check_selectors(
    module: "VLMModule", trainer: Trainer, more: Sequence[Callback] = (), fits: bool | None = None
) -> None:
    """Refuse selectors of a plan, learning rates, clipping or stages that don't fit the model.

    It does nothing where no logger would begin, or where the model can't be known without being loaded. What
    it passes over is found when the model is loaded.

    Args:
        module: Its model need not be loaded yet.
        trainer: Callbacks with a method `check_selectors` are checked as well.
        more: Callbacks that will be added to those of the trainer.
        fits: Whether the module is going to be trained. Otherwise only the plan matters.

    Raises:
        UserError: A selector of the module's options finds nothing, or something that can't be adapted.
        SelectorError: A callback's selector finds nothing.
        MisconfigurationException: A callback's selector finds only what the plan has frozen.
    """
    if module.model is not None or not trainer.loggers:
        return
    if fits is None:
        fits = trainer.state.fn == TrainerFn.FITTING
    root = adapted_skeleton(module)
    if root is None or not fits:
        return
    if adds_parameters(module):
        return
    parameter_groups(root, 1.0, 0.0, module.learning_rates)
    if module.clip is not None:
        clip_groups(root, module.clip, ())
    try:
        select_parameters(root, module.no_gradient_needed)
    except SelectorError as error:
        raise UserError(f"no_gradient_needed: {error}") from None
    trains = {parameter for parameter in root.parameters() if parameter.requires_grad}
    for callback in [*trainer.callbacks, *more]:
        check = getattr(callback, "check_selectors", None)
        if check is not None:
            check(root, trains)


def adds_parameters(module: "VLMModule") -> bool:
    """Whether more will train than the plan says, once the tokenizer and the data are known."""
    has_mask_head = module.callbacks.masks.options is not None
    return bool(module.source.new_tokens) or module.task_weights == "uncertainty" or has_mask_head


def adapted_skeleton(module: "VLMModule") -> Skeleton | None:
    """The module's model as it will be trained, on the meta device; None where that can't be made."""
    # This leaves no trace: random numbers stay as they are, and warnings come when the model is loaded.
    with isolate_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = module.source.skeleton()
        except UserError:
            raise
        except Exception:  # Some initial values, such as those of PiSSA, are made from weights.
            return None
    return Skeleton(model)
