"""Follows a mixture of experts through a fit: its load, its load-balancing loss, and what is said of both."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning_vlm_callbacks.gradnorm import GradNorm
from lightning_vlm_callbacks.host_copy import HostCopy
from lightning_vlm_callbacks.runs import log_metrics, logs_at
from lightning_vlm_callbacks.trackers import log_table
from torch import Tensor
from typing_extensions import override

from lightning_vlm.errors import UserError
from lightning_vlm.losses.balance import LayerRouting, balance_loss, expert_counts
from lightning_vlm.losses.batch_loss import TaskSums
from lightning_vlm.models.experts import Mixture, mixtures_of, router_reader
from lightning_vlm.training.expert_words import aux_loss_weight, describe_experts

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

_OF_PICTURES = {"vision_moe": True, "text_moe": False}
"""Modules with experts of their own for tokens of pictures, or for the others (ERNIE 4.5 VL)."""


class ExpertBalance(Callback):
    """Counts which experts the tokens go through, and adds the load-balancing loss where routers train.

    Logged at each log step, over the tokens of all ranks since the one before: `train/aux_loss`, before its
    weight; `train/expert_load/N`, the share of layer N's busiest expert over the mean share (1 is even); and
    `train/experts_without_tokens`. The host waits for none of it. At the end loggers that take tables get the
    shares of all experts.

    Args:
        weight: Of the loss: `auto` is the model's own where a router trains and no learned bias balances
            experts by itself; a number is used whatever trains; False is none.
    """

    def __init__(self, weight: float | bool | Literal["auto"] = "auto") -> None:
        if weight != "auto" and (not isinstance(weight, int | float) or weight is True or weight < 0):
            raise UserError(f"model.router_aux_loss: found {weight!r}; expected auto, false or a number >= 0")
        self.weight = weight
        self._mixtures: list[Mixture] = []
        self._in_force = 0.0
        self._hooks: list[Any] = []
        self._is_watching = False
        self._inputs: dict[str, Any] = {}
        self._seen: dict[str, LayerRouting] = {}
        self._counts = torch.zeros(0)
        self._total = torch.zeros(0)
        self._aux = torch.zeros(2)
        self._pending: tuple[int, HostCopy] | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: "VLMModule") -> None:  # type: ignore[override]
        model = pl_module.model
        self._stop()
        self._mixtures = mixtures_of(model)
        if not self._mixtures:
            if self.weight not in ("auto", False):
                raise UserError(f"model.router_aux_loss: found {self.weight} for a model without experts")
            return
        self._in_force = aux_loss_weight(model, self.weight)
        if self._in_force and any(isinstance(one, GradNorm) for one in trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError(
                "GradNorm: found a load-balancing loss, whose gradient belongs to no task; set "
                "model.router_aux_loss: false, or give tasks fixed weights"
            )
        rank_zero_info(describe_experts(model, self._mixtures, self._in_force))
        shape = (len(self._mixtures), max(mixture.number for mixture in self._mixtures))
        self._counts = torch.zeros(shape, dtype=torch.int64, device=pl_module.device)
        self._total = torch.zeros_like(self._counts)
        self._aux = torch.zeros(2, device=pl_module.device)
        base = getattr(model, model.base_model_prefix, model)
        self._hooks = [base.register_forward_pre_hook(self._note_inputs, with_kwargs=True)]
        for mixture in self._mixtures:
            router = model.get_submodule(mixture.router_path)
            self._hooks.append(router.register_forward_hook(self._reader(model, mixture)))

    @contextmanager
    def watch(self) -> Iterator[None]:
        """A context for the forward passes of a training step; what recomputes them later isn't counted."""
        self._seen = {}
        self._is_watching = bool(self._hooks)
        try:
            yield
        finally:
            self._is_watching = False
            self._inputs = {}

    def add_loss(self, losses: TaskSums) -> TaskSums:
        """The losses of a micro-batch that was watched, with the load-balancing loss added.

        The loss of a step is divided by Σ w of all its micro-batches, so that one that was multiplied by its
        own Σ w becomes a mean: weighted as the micro-batches are in the language loss.
        """
        layers, self._seen = self._seen, {}
        if not layers:
            return losses
        with torch.no_grad():
            for place, mixture in enumerate(self._mixtures):
                if mixture.path in layers:
                    counts = expert_counts(layers[mixture.path])
                    self._counts[place, : len(counts)] += counts
        if not self._in_force:
            return losses
        loss = balance_loss(list(layers.values()))
        weight = losses.counts.sum()
        both = torch.stack((weight * loss.detach(), weight))
        self._aux += torch.where(both.isfinite().all(), both, 0).to(self._aux.dtype)
        return losses._replace(loss_sum=losses.loss_sum + self._in_force * weight * loss)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        if not self._hooks:
            return
        self._write(trainer)
        if not logs_at(trainer, trainer.global_step + 1):
            return
        self._pending = (trainer.global_step, HostCopy(self._take(trainer)))

    @override
    def on_save_checkpoint(  # type: ignore[override]
        self, trainer: Trainer, pl_module: "VLMModule", checkpoint: dict[str, Any]
    ) -> None:
        self._write(trainer)  # a run that is killed and resumed here keeps it

    @override
    def on_train_end(self, trainer: Trainer, pl_module: "VLMModule") -> None:  # type: ignore[override]
        if not self._hooks:
            return
        self._write(trainer)
        self._take(trainer)
        total = self._total.double()
        shares = (total / total.sum(1, keepdim=True).clamp(min=1)).tolist()
        rows = [[mixture.path, *share] for mixture, share in zip(self._mixtures, shares, strict=True)]
        names = ["layer", *(f"expert {expert}" for expert in range(total.shape[1]))]
        if total.sum() > 0:
            log_table(trainer, "expert_load", names, rows)
        self._stop()

    def _take(self, trainer: Trainer) -> Tensor:
        """What all ranks have counted since the last time; the sums of the loss and its weights come last."""
        since = torch.cat((self._counts.flatten().double(), self._aux.double()))
        if trainer.world_size > 1:
            torch.distributed.all_reduce(since)
        self._total += since[:-2].view_as(self._counts).long()
        self._counts.zero_()
        self._aux.zero_()
        return since

    def _note_inputs(self, _: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._is_watching:
            self._inputs = kwargs

    def _reader(self, model: Any, mixture: Mixture) -> Any:
        routing_of = router_reader(model, mixture)

        def read(_: Any, args: tuple, output: Any) -> None:
            if not self._is_watching:
                return
            routed = routing_of(output)
            real = self._real(mixture, len(routed.chosen))
            layer = LayerRouting(routed.logits, routed.chosen, real)
            before = self._seen.get(mixture.path)
            self._seen[mixture.path] = layer if before is None else _joined(before, layer)

        return read

    def _real(self, mixture: Mixture, rows: int) -> Tensor | None:
        """Which of the tokens that a router saw are no padding; None where all are."""
        mask = self._inputs.get("attention_mask")
        if mask is None or mask.ndim != 2:
            return None
        real = mask.flatten().bool()
        kinds = self._inputs.get("moe_mm_token_type_ids")
        of_pictures = _OF_PICTURES.get(mixture.path.rpartition(".")[2])
        if rows != len(real) and kinds is not None and of_pictures is not None:
            real = real[kinds.flatten().bool() == of_pictures]
        return real if rows == len(real) else None

    def _write(self, trainer: Trainer) -> None:
        """Write what waits to be logged."""
        if self._pending is None:
            return
        step, copy = self._pending
        self._pending = None
        values = copy.read()
        counts = values[:-2].view(len(self._mixtures), -1)
        aux, weight = values[-2:].tolist()
        metrics: dict[str, float] = {}
        without = 0
        for place, mixture in enumerate(self._mixtures):
            tokens = counts[place, : mixture.number]
            if tokens.sum() > 0:
                metrics[f"train/expert_load/{place}"] = float(tokens.max() / tokens.mean())
                without += int((tokens == 0).sum())
        metrics["train/experts_without_tokens"] = without
        if weight:
            metrics["train/aux_loss"] = aux / weight
        log_metrics(trainer, metrics, step)

    def _stop(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._pending = None


def _joined(first: LayerRouting, second: LayerRouting) -> LayerRouting:
    """What a layer made of two groups of rows of one batch."""
    masks = []
    for one in (first, second):
        masks.append(torch.ones_like(one.chosen[:, 0], dtype=torch.bool) if one.real is None else one.real)
    return LayerRouting(
        torch.cat((first.logits, second.logits)), torch.cat((first.chosen, second.chosen)), torch.cat(masks)
    )
