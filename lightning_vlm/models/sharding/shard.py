"""Which parts of a module are gathered together, and in which numbers.

Each block of the language model is a unit of its own: its weights are whole only while it computes. All else
is one unit, which is whole from the beginning of a step's forward to the end of its backward: embeddings and
head, which may share a weight; the projector; and the vision tower. The tower isn't cut further because a
batch without pictures leaves it out, and a batch with videos may run it twice: processes that gather its
blocks at other times would wait for each other for ever.

FSDP2 keeps parameters apart inside a unit, so that frozen and trained ones share one: a frozen one has no
gradient that would take memory or be sent.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from lightning_vlm.models.parts import find_parts
from lightning_vlm.models.sharding.spread import first_weights, spread
from lightning_vlm.models.sharding.whole import run_whole


def shard(root: nn.Module, model: PreTrainedModel, mesh: DeviceMesh, autocast: torch.dtype | None) -> None:
    """Cut a module into pieces, one for each process, filled with the weights of the first process.

    Afterwards each process has its share of every parameter, and what the first process had of buffers and
    of the state of random numbers. Parameters that shared a weight share one. Works in place.

    Args:
        root: The module. On other processes than the first its tensors may lie on the meta device.
        model: The model in it.
        mesh: The processes, in one dimension, and the kind of their devices.
        autocast: What matrices are multiplied in under mixed precision. Weights are gathered in it, while
            each process keeps its share as it was; gradients are added up over processes in float32.
    """
    weights = first_weights(root)
    policy = MixedPrecisionPolicy(param_dtype=autocast, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for blocks in _lists_of_blocks(model):
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        blocks[0].register_forward_pre_hook(_let_input_have_gradient, prepend=True, with_kwargs=True)
    fully_shard(root, mesh=mesh, mp_policy=policy)
    if sends_zeros(root):
        # What trains but isn't used has no gradient, except where a batch without pictures gives it a zero.
        root.set_reduce_scatter_unused_params(True, recurse=False)  # type: ignore[operator]
    spread(root, weights, mesh)
    # FSDP2 learns what trains at the first forward. Callbacks may have frozen some of it for a while by then.
    run_whole(root, lambda: None)
    root.reshard()  # type: ignore[operator]


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has cut a module, or one that it is a part of."""
    return any(isinstance(inner, FSDPModule) for inner in module.modules())


def sends_zeros(root: nn.Module) -> bool:
    """Whether FSDP2 sends a zero for what a process doesn't use in a step, as of torch 2.13.

    Before, it sends less than the other processes expect, which ends the run.

    Args:
        root: As `shard` has cut it.
    """
    return hasattr(root, "set_reduce_scatter_unused_params")


def whole_parameters(root: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that are whole during a forward; without a strategy that shards, all.

    In a sharded module these are all that a batch without pictures may leave out.
    """
    for parameter in root.parameters():
        if not isinstance(parameter, DTensor):
            yield parameter


def _lists_of_blocks(model: PreTrainedModel) -> list[list[nn.Module]]:
    paths = find_parts(model)["language.layers"]
    return [list(model.get_submodule(path).children()) for path in paths]


def _let_input_have_gradient(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook of the first block.

    FSDP2 sends the gradients of a block whose input has none after all others. Words have none where the
    embeddings are frozen, features of pictures may have one: processes would send in different orders.
    """
    hidden = args[0] if args else kwargs["hidden_states"]
    if torch.is_grad_enabled() and not hidden.requires_grad:
        hidden.requires_grad_()
    return args, kwargs
