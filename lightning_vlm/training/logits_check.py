"""The check of a model class of somebody's own: the loss is made of the logits that its forward gives."""

from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning_vlm_callbacks.modes import eval_mode
from typing_extensions import override

from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.errors import UserError
from lightning_vlm.losses.batch_loss import last_hidden_states, own_logits
from lightning_vlm.models.family_hooks import is_of_transformers
from lightning_vlm.models.logits import logit_options

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

TOLERANCE = 0.02
"""How far logits may be from those of the forward, as a share of the norm. In 16 bits rounding alone makes a
few thousandths."""
_TOKENS = 256
"""The most tokens that are compared."""


class LogitsCheck(Callback):
    """Compares logits on the first batch of a fit, unless transformers has the model's class."""

    def __init__(self) -> None:
        self._is_done = False

    @override
    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: "VLMModule", batch: Batch, batch_idx: int
    ) -> None:
        if self._is_done or is_of_transformers(pl_module.model):
            return
        if not pl_module.targets(batch).positions.numel():
            return
        self._is_done = True
        try:
            with trainer.precision_plugin.forward_context():
                check_logits(pl_module, batch)
        except torch.OutOfMemoryError:
            rank_zero_warn("Logits are not compared with the model's own: there is not enough memory")


@torch.no_grad()
def check_logits(module: "VLMModule", batch: Batch) -> None:
    """Compare the logits of which the loss is made with those of the model's own forward.

    Args:
        module: In any mode; the check is in eval mode.
        batch: On its device.

    Raises:
        UserError: They differ by more than rounding.
    """
    model = module.model
    places = module.targets(batch).positions[:_TOKENS]
    with eval_mode(model), torch.compiler.set_stance("force_eager"):
        hidden = last_hidden_states(model, batch).flatten(0, 1)[places]
        softcap, scale = logit_options(model)
        found = scale * model.get_output_embeddings()(hidden).float()
        if softcap is not None:
            found = softcap * torch.tanh(found / softcap)
        expected = own_logits(model, batch).flatten(0, 1)[places].float()
    distance = ((found - expected).norm() / expected.norm()).item()
    if not distance <= TOLERANCE:
        raise UserError(
            f"{type(model).__name__}: its forward gives other logits than its head does with the last hidden "
            f"states (found a distance of {distance:.1%}); say in FamilyHooks.logits what it does to them"
        )
