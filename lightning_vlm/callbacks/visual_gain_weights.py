"""Words that need the picture weigh more than words that don't."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_vlm_callbacks.modes import eval_mode
from lightning_vlm_callbacks.runs import log_metrics, logs_at
from torch import Tensor
from typing_extensions import override

from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.errors import UserError
from lightning_vlm.losses.visual_gain import Gain, visual_gain
from lightning_vlm.module import VLMModule


class VisualGainWeights(Callback):
    """Multiplies the weight of each token by how much it needs the picture.

    The factor is `least` for a token that the picture doesn't make more likely, 1 for one that it makes more
    likely by `full` nats or more, and in between it is in proportion: least + (1 - least) · min(max(gain, 0)
    / full, 1), where the gain is that of `losses.visual_gain`, under the weights that the model has at the
    step, without dropout. Tokens of samples without pictures keep their weights. A gain says what the model
    makes of the picture now: as long as it can't see, all factors are alike, and equal factors change nothing
    in Σ wℓ / Σ w.

    A factor depends on its own sample and on the weights of the step alone, so that packing, accumulation and
    ranks change nothing, and a resumed run continues exactly without any state. Validation and test keep
    their weights. The mean gain and the mean factor are logged as `visual_gain/nats` and
    `visual_gain/factor`.

    Each batch takes two more forward passes without gradients, pictures and all. Against a step that
    recomputes nothing these are two thirds more operations.

    It only helps a model that already looks where the words stand. In `benchmarks/visual_gain.py` the shipped
    model keeps more of what it knows where chatter follows the words that count (41 and 45% right against 31%
    of plain cross-entropy; 61% before training). It gains nothing where chatter comes first and the model
    first has to learn to look there (1% against 4%). A weight on the words themselves, where the data can say
    which they are (`token_weights.entity`), does far better in both (60% and 43%).

    Args:
        least: The factor of what the picture doesn't help, above 0 and up to 1.
        full: From how many nats on a token has all its weight.

    Raises:
        UserError: A number out of range, a module that isn't a `VLMModule`, or batches without targets, as
            none of a `VLMDataModule` are.

    >>> VisualGainWeights(least=0.2).factors(Gain(torch.tensor([-1.0, 0.5, 3.0]), torch.ones(3).bool()))
    tensor([0.2000, 0.6000, 1.0000])
    """

    def __init__(self, least: float = 0.1, full: float = 1.0) -> None:
        super().__init__()
        if not 0 < least <= 1:
            raise UserError(f"least: found {least}; expected a factor above 0, at most 1")
        if not 0 < full < math.inf:
            raise UserError(f"full: found {full}; expected a finite number of nats above 0")
        self.least, self.full = least, full
        self._logged = -1

    def factors(self, gain: Gain) -> Tensor:
        """What the weights of targets are multiplied by: a Tensor of shape [targets], float32."""
        share = (gain.nats / self.full).clamp(0, 1)
        return torch.where(gain.seen, self.least + (1 - self.least) * share, torch.ones_like(share))

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._logged = -1
        if not isinstance(pl_module, VLMModule):
            raise UserError(f"VisualGainWeights: found a {type(pl_module).__name__}; expected a VLMModule")

    @override
    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: VLMModule, batch: Batch, batch_idx: int
    ) -> None:
        targets = batch.targets
        if targets is None:
            raise UserError("VisualGainWeights: found a batch without targets; use a VLMDataModule")
        if not len(targets.positions):
            return
        model: Any = pl_module.model
        # Lightning opens the context of the precision around the training step only.
        with trainer.precision_plugin.forward_context(), torch.no_grad(), eval_mode(model):
            gain = visual_gain(model, batch, targets)
        factors = self.factors(gain)
        # The change is in place, so that a batch kept to run the step again has the weights of the step.
        targets.weights.mul_(factors)
        step = trainer.global_step
        if step != self._logged and logs_at(trainer, step):
            self._logged = step
            means = {"visual_gain/nats": gain.nats.mean(), "visual_gain/factor": factors.mean()}
            log_metrics(trainer, means, step)
