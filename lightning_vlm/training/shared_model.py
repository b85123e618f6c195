"""How a module gets its model: whole on each process, or cut into pieces where the strategy does that."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.initial import initial_checks
from lightning_vlm.models.loading.loaded import LoadedModel
from lightning_vlm.models.precision import autocast_dtype
from lightning_vlm.models.sharding import is_sharded, run_sharded, shard
from lightning_vlm.training.sharding_refusals import refuse_to_shard

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

_STEPS = ("training_step", "validation_step", "test_step", "predict_step", "hidden_states", "loss_sums")
"""The methods of a module that compute with its weights."""


def load(module: "VLMModule") -> LoadedModel:
    """Load the model of a module and adapt it. Where it is going to be cut, only the first process reads it.

    Raises:
        UserError: As of `load_model` and `adapt`, on all processes.
    """
    precision = autocast_dtype(module._trainer)
    processor = module.processor if module.source.new_tokens else None
    if _mesh(module) is None or module.source.quantization:
        # What reads 4-bit weights, their scales, stays whole on each process: each finds it by itself.
        return module.source.model(processor, precision)
    is_first = dist.get_rank() == 0
    loaded = None
    sent: list[Any] = [None]
    if is_first:
        try:
            loaded = module.source.model(processor, precision)
            sent = [(loaded.fingerprint, None)]
        except UserError as error:
            sent = [(None, str(error))]
    dist.broadcast_object_list(sent)
    fingerprint, problem = sent[0]
    if problem is not None:
        raise UserError(problem)
    if loaded is not None:
        return loaded
    empty = module.source.model(processor, precision, first=False)
    return replace(empty, fingerprint=fingerprint)


def shard_over_processes(module: "VLMModule") -> None:
    """Cut the model that a module has loaded into pieces, if the strategy does that and it isn't cut yet.

    Args:
        module: With its model, all that belongs to it, and what trains settled.
    """
    mesh = _mesh(module)
    if mesh is None or is_sharded(module):
        return
    refuse_to_shard(module.model)
    loaded = module.loaded
    is_first = dist.get_rank() == 0
    checks = initial_checks(module.model, loaded.parts, loaded.missing) if is_first else []
    # Lightning would turn weights into the dtype of `bf16-true` later, behind FSDP2's back.
    module.trainer.precision_plugin.convert_module(module)
    shard(module, module.model, mesh, autocast_dtype(module._trainer))
    parameters = dict(module.model.named_parameters())
    missing = {name: parameters[name] for name in loaded.missing}
    module.loaded = replace(loaded, missing=missing, checks=checks)
    run_sharded(module, *_STEPS)


def _mesh(module: "VLMModule") -> DeviceMesh | None:
    """The processes that a model is cut over; None where each has all of it."""
    return None if module.device_mesh is None else module.device_mesh["data_parallel"]
