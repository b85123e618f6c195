"""Fits whose model is cut into pieces over processes (FSDP2), beside the same fits of one process."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from tests.support import tiny
from tests.support.quiet import QUIET


class Fit(NamedTuple):
    """A fit to compare.

    Args:
        folder: Of the tiny model.
        family: Its name.
        adapt: What trains.
        steps: How many.
        accumulate: Micro-batches of a step, on one process.
        batch: Samples of a micro-batch, on all processes together.
        options: More of the module.
        source: The training data, in this order; None draws some, shuffled.
        trainer: More of the trainer.
    """

    folder: Path
    family: str
    adapt: Any = "lora"
    steps: int = 3
    accumulate: int = 2
    batch: int = 4
    options: Mapping[str, Any] = {}
    source: Any = None
    trainer: Mapping[str, Any] = {}


def sharded(ranks: int) -> dict[str, Any]:
    """Options of a Trainer that cuts the model over so many processes; none for one process."""
    if ranks == 1:
        return {"devices": 1}
    strategy = ModelParallelStrategy(
        data_parallel_size=ranks, tensor_parallel_size=1, process_group_backend="gloo"
    )
    return {"devices": ranks, "strategy": strategy}


def make_module(fit: Fit) -> VLMModule:
    """The module of a fit, without its model."""
    # Its changes are as large as the gradients; Adam's are of one size, and hide a wrong factor.
    options: dict[str, Any] = {"optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9), **fit.options}
    if tiny.FAMILIES[fit.family].template is None:
        options.setdefault("chat_template", "plain")
    return VLMModule(str(fit.folder), adapt=fit.adapt, **options)


def make_trainer(ranks: int, **options: Any) -> Trainer:
    """A quiet Trainer on the CPU whose model is cut over so many processes."""
    return Trainer(**{**QUIET, **sharded(ranks), **options})


def run_fit(ranks: int, fit: Fit) -> dict[str, dict[str, Tensor]]:
    """Run a fit on one of so many processes.

    Returns:
        `weights`: those that train, whole, by name; `logged`: the losses and norms that were logged.
    """
    seed_everything(0, verbose=False)  # strategies of several processes seed again, with the one set last
    module = make_module(fit)
    source = fit.source or Drawn("train", size=24)
    data = VLMDataModule(train=source, batch_size=fit.batch // ranks, seed=0, shuffle=fit.source is None)
    options = {
        "max_steps": fit.steps,
        "accumulate_grad_batches": fit.accumulate,
        "default_root_dir": fit.folder,
        **fit.trainer,
    }
    trainer = make_trainer(ranks, **options)
    trainer.fit(module, data)
    logged = {name: torch.as_tensor(value) for name, value in trainer.callback_metrics.items()}
    return {"weights": whole_weights(module), "logged": logged}


def whole_weights(module: VLMModule) -> dict[str, Tensor]:
    """What trains in a module, whole on each process. All of them must call it."""
    return {
        name: whole(parameter).clone()
        for name, parameter in module.named_parameters()
        if name in module.trained.names
    }


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be cut into pieces, detached."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest difference of any number."""
    assert found.keys() == expected.keys()
    return max((found[name] - expected[name]).abs().max().item() for name in expected)
