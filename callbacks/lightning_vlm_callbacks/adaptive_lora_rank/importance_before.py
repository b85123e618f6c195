"""How much rank linear layers seem to need, from a few batches before training."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_vlm_callbacks.adaptive_lora_rank.importance import Activation, squared_norms
from lightning_vlm_callbacks.row_gradients import RowGradients

__all__ = ["importance_before"]


def importance_before(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    loss: Callable[[Any], Tensor],
    kind: Literal["fisher", "activation"] = "fisher",
    budget: int | None = None,
    max_rank: int = 64,
) -> dict[str, float]:
    """The importance of linear layers before training, from a few batches. Nothing in the model changes.

    Args:
        model: In which everything may be frozen, or quantised.
        layers: Some of its linear layers, with or without LoRA.
        batches: A few.
        loss: Of a batch.
        kind: `fisher`: the trace of the Fisher information over `in + out`, what a rank costs; `Fisher` tells
            what it can't. `activation`: see there.
        budget: Total rank, which `activation` needs.
        max_rank: Of a layer, for `activation`.

    Raises:
        MisconfigurationException: `activation` without a budget, or no batches.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).requires_grad_(False)
    >>> x = torch.eye(3)
    >>> scores = importance_before(model, {"1": model[1]}, [x], lambda batch: model(batch).sum())
    >>> float(scores["1"] * 5 - model[0](x).square().sum()) < 1e-5
    True
    """
    if kind == "activation" and budget is None:
        raise MisconfigurationException("budget: found None; expected the total rank for activation")
    trace, spectra = dict.fromkeys(layers, 0.0), Activation(layers, max_rank + 8)
    met = 0

    def take(name: str, x: Tensor, dy: Tensor, tag: Any) -> None:
        trace[name] += float(squared_norms(x, dy).sum())

    with ExitStack() as stack:
        stack.enter_context(_still(model))
        if kind == "fisher":
            for name, layer in layers.items():
                # In a model that is all frozen, gradients begin at the first of the layers.
                stack.callback(layer.register_forward_hook(_asks_for_gradient).remove)
                stack.callback(RowGradients(layer, partial(take, name)).remove)
        for met, batch in enumerate(batches, 1):  # noqa: B007
            if kind == "fisher":
                loss(batch).backward()
            else:
                spectra.begin()
                loss(batch)
                spectra.end(1.0, 1)
    if not met:
        raise MisconfigurationException("batches: found none; expected a few")
    if kind == "activation":
        return spectra.scores(layers, budget or 0)
    costs: dict[str, Any] = {name: one.in_features + one.out_features for name, one in layers.items()}  # type: ignore[operator]
    return {name: trace[name] / costs[name] for name in layers}


def _asks_for_gradient(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output if output.requires_grad else output.requires_grad_()


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Without gradients of parameters, dropout or norms that learn."""
    trains = [one for one in model.parameters() if one.requires_grad]
    modes = [(one, one.training) for one in model.modules()]
    try:
        for one in trains:
            one.requires_grad_(False)
        model.eval()
        with torch.enable_grad():
            yield
    finally:
        for one in trains:
            one.requires_grad_()
        for module, mode in modes:
            module.training = mode
