"""Gives each process its share of the weights that only the first one has loaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_vlm.errors import UserError


@dataclass
class FirstWeights:
    """What the first process has, before a module is cut.

    Args:
        parameters: Its parameters by name, whole; on other processes nothing.
        others: Buffers, and tensors that modules keep as plain attributes, by name; the same on all.
    """

    parameters: dict[str, Tensor]
    others: dict[str, Tensor]


def first_weights(root: nn.Module) -> FirstWeights:
    """Take the weights out of a module; on each process empty ones like those of the first take their place.

    Args:
        root: Its structure is the same on all processes. On others than the first, tensors may lie on the
            meta device, and dtypes may be others.

    Raises:
        UserError: This process has other parameters than the first.
    """
    is_first = dist.get_rank() == 0
    parameters = dict(root.named_parameters())
    like = {name: (one.shape, one.dtype, one.requires_grad) for name, one in parameters.items()}
    sent: list[Any] = [(like, dict(_other_tensors(root)))] if is_first else [None]
    dist.broadcast_object_list(sent)
    first, others = sent[0]
    if first.keys() != like.keys():
        name = min(first.keys() ^ like.keys())
        raise UserError(f"process {dist.get_rank()} made another model than the first: {name} differs")
    empty = {
        id(parameters[name]): nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), trains)
        for name, (shape, dtype, trains) in first.items()
    }
    whole = {name: one.detach() for name, one in parameters.items()} if is_first else {}
    for module in root.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = empty[id(parameter)]
    return FirstWeights(whole, others)


def spread(root: nn.Module, first: FirstWeights, mesh: DeviceMesh) -> None:
    """Fill a module that was just cut, one parameter after the other.

    Args:
        root: With parameters on the meta device, each a share of a whole one.
        first: As from `first_weights`. The first process frees its parameters as it goes.
        mesh: The processes.
    """
    device = torch.device(mesh.device_type)
    if device.type == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    root.to_empty(device=device)
    with torch.no_grad():
        for name, parameter in root.named_parameters():
            assert isinstance(parameter, DTensor)
            whole = first.parameters.pop(name, None)
            if whole is None:  # only the shape matters; memory that isn't touched isn't taken
                whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            share = distribute_tensor(whole.to(device), mesh, parameter.placements, src_data_rank=0)
            parameter.to_local().copy_(share.to_local())
    modules = dict(root.named_modules())
    for name, tensor in first.others.items():
        path, _, last = name.rpartition(".")
        module = modules[path]
        tensor = tensor.to(device) if last in module._buffers else tensor
        places = module._buffers if last in module._buffers else module.__dict__
        places[last] = tensor
    for module in modules.values():
        # bitsandbytes reads gathered 4-bit weights by the scales that it keeps in the module.
        scales = getattr(module, "quant_state", None)
        if scales is not None:
            scales.to(device)
    state = torch.get_rng_state()
    sent = [state]
    dist.broadcast_object_list(sent)
    torch.set_rng_state(sent[0])


def _other_tensors(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers and plain attributes, by their names in the module."""
    for path, module in root.named_modules():
        start = f"{path}." if path else ""
        for places in (module._buffers, module.__dict__):
            for name, tensor in places.items():
                if isinstance(tensor, Tensor):
                    yield f"{start}{name}", tensor.detach().cpu()
