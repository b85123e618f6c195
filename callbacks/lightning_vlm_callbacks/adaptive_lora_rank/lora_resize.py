"""The rank of one LoRA layer, changed in place: its matrices, and the optimizer state of these."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

__all__ = ["drop_lora", "resize_lora"]

_FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
"""The names of sums of gradients in the state of optimizers."""
_SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")
"""The names of sums of squared gradients."""

Change = Callable[[Tensor], Tensor]


def resize_lora(
    layer: Any,
    rank: int,
    adapter: str = "default",
    optimizers: Iterable[Optimizer] = (),
    init: bool | str = True,
    seed: int = 0,
) -> None:
    """Give a LoRA layer of PEFT another rank, between two optimizer steps.

    Growing doesn't change what the layer computes: B gets columns of zeros, A rows as PEFT initializes them.
    Shrinking leaves the nearest matrix of that rank to `B A` (Eckart and Young): QR of both, SVD of r × r.
    B gets the singular values and A orthogonal rows of the same length as before, as in a new LoRA layer:
    unused directions still learn, and a step of Adam changes as much as before. The scale α/r (rsLoRA: α/√r)
    stays, so α changes.

    Parameters stay the same objects: groups, schedulers, hooks and lists that hold them stay valid. Their
    gradient is dropped. Adam's moments (and SGD's momentum) are transformed with them: like the gradients
    where the layer shrinks, the second moments element by element. New directions get no momentum, and the
    mean of the other second moments, as with 0 a first step late in a run would be three times the learning
    rate. State of any other kind in the parameter's shape, or quantised, starts from zero, with a warning.

    Args:
        layer: A `peft.tuners.lora.Linear` or one for bitsandbytes, unmerged.
        rank: The new rank, 1 or more; see `drop_lora` for 0.
        adapter: The adapter's name.
        optimizers: The optimizers that may train it.
        init: `init_lora_weights` of the adapter's config: with "gaussian" new rows of A are normal.
        seed: It draws the new rows.

    Raises:
        MisconfigurationException: The rank is less than 1, or adapters are merged.

    >>> from peft import LoraConfig, inject_adapter_in_model
    >>> model = nn.Sequential(nn.Linear(6, 5))
    >>> layer = inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4, target_modules=["0"]), model)[0]
    >>> resize_lora(layer, 3)
    >>> layer.lora_A["default"].weight.shape, layer.r, layer.lora_alpha, layer.scaling
    (torch.Size([3, 6]), {'default': 3}, {'default': 6}, {'default': 2.0})
    """
    if rank < 1:
        raise MisconfigurationException(f"rank: found {rank}; expected 1 or more")
    if layer.merged:
        raise MisconfigurationException("found merged adapters, expected the layer unmerged: layer.unmerge()")
    a = layer.lora_A[adapter].weight
    b = layer.lora_B[adapter].weight
    with_state = [optimizer for optimizer in optimizers if a in optimizer.state or b in optimizer.state]
    with torch.no_grad():
        if rank < len(a):
            _shrink(a, b, rank, with_state)
        if rank > len(a):  # also where A or B is narrower than the wanted rank
            _grow(a, b, rank, with_state, init, seed)
    ratio = rank / layer.r[adapter]
    if layer.use_rslora[adapter]:
        ratio = math.sqrt(ratio)
    alpha = layer.lora_alpha[adapter] * ratio
    whole_alpha = round(alpha)
    is_whole = math.isclose(alpha, whole_alpha, rel_tol=1e-12)
    layer.lora_alpha[adapter] = whole_alpha if is_whole else alpha
    layer.r[adapter] = rank
    layer.lora_A[adapter].out_features = rank
    layer.lora_B[adapter].in_features = rank


def drop_lora(layer: Any, adapter: str = "default", optimizers: Iterable[Optimizer] = ()) -> None:
    """Take the adapter out of a layer, which then computes the same as its base layer. This can't be undone.

    Args:
        layer: As for `resize_lora`.
        adapter: The adapter's name.
        optimizers: The optimizers whose groups lose the parameters.
    """
    removed = {*layer.lora_A[adapter].parameters(), *layer.lora_B[adapter].parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if parameter not in removed]
        for parameter in removed:
            optimizer.state.pop(parameter, None)
    for parameter in removed:  # lists held elsewhere may still contain them
        parameter.grad = None
        parameter.requires_grad_(False)
    layer.delete_adapter(adapter)


def _shrink(a: Parameter, b: Parameter, rank: int, optimizers: list[Optimizer]) -> None:
    """A' = S A and B' = B T with the best B' A' of a rank, or of the rank that A and B can have at all."""
    wide_a = _wide(a)
    q_a, r_a = torch.linalg.qr(wide_a.T)
    q_b, r_b = torch.linalg.qr(_wide(b))
    u, sigma, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    u = u[:, :rank]
    sigma = sigma[:rank]
    v = v[:rank]
    row_length = wide_a.square().sum(1).mean().sqrt()
    row_length = torch.where(row_length > 0, row_length, 1.0)
    s = row_length * v @ torch.linalg.pinv(r_a.T)
    t = r_a.T @ v.T / row_length
    new_a = (row_length * v) @ q_a.T
    new_b = q_b @ (u * sigma) / row_length
    # As A' = S A and B' = B T, the gradient of A' is Tᵀ dA, and that of B' is dB Sᵀ.
    _replace(a, new_a, optimizers, first=lambda m: t.T @ m, second=lambda m: t.square().T @ m)
    _replace(b, new_b, optimizers, first=lambda m: m @ s.T, second=lambda m: m @ s.square().T)


def _grow(
    a: Parameter, b: Parameter, rank: int, optimizers: list[Optimizer], init: bool | str, seed: int
) -> None:
    more = rank - len(a)
    rows = torch.empty(more, a.shape[1])
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device gets the same
    if isinstance(init, str) and init.lower() == "gaussian":
        nn.init.normal_(rows, std=1 / rank, generator=generator)
    else:
        nn.init.kaiming_uniform_(rows, a=math.sqrt(5), generator=generator)

    def with_zero_rows(m: Tensor) -> Tensor:
        return torch.cat((m, m.new_zeros(more, m.shape[1])))

    def with_mean_rows(m: Tensor) -> Tensor:
        return torch.cat((m, m.mean(0, keepdim=True).expand(more, -1)))

    def with_zero_columns(m: Tensor) -> Tensor:
        return torch.cat((m, m.new_zeros(len(m), more)), 1)

    def with_mean_columns(m: Tensor) -> Tensor:
        return torch.cat((m, m.mean(1, keepdim=True).expand(-1, more)), 1)

    wide_a = _wide(a)
    new_a = torch.cat((wide_a, rows.to(wide_a)))
    new_b = with_zero_columns(_wide(b))
    _replace(a, new_a, optimizers, with_zero_rows, with_mean_rows)
    _replace(b, new_b, optimizers, with_zero_columns, with_mean_columns)


def _replace(
    parameter: Parameter, value: Tensor, optimizers: list[Optimizer], first: Change, second: Change
) -> None:
    """Put another matrix into a parameter, and change the optimizer state of it in the same way."""
    changes = dict.fromkeys(_FIRST_MOMENTS, first) | dict.fromkeys(_SECOND_MOMENTS, second)
    for optimizer in optimizers:
        _replace_state(parameter, optimizer, changes)
    dtype = parameter.dtype
    parameter.grad = None
    # Changing the dtype gives the parameter a new AccumulateGrad node; an old graph may still hold one that
    # expects the old shape.
    other_dtype = torch.float16 if dtype == torch.float32 else torch.float32
    parameter.data = parameter.data.to(other_dtype)
    parameter.data = value.to(dtype).contiguous()


def _replace_state(parameter: Parameter, optimizer: Optimizer, changes: Mapping[str, Change]) -> None:
    state = optimizer.state.get(parameter, {})
    for name, value in list(state.items()):
        if not isinstance(value, Tensor) or value.ndim == 0:
            continue
        is_like_parameter = value.shape == parameter.shape and value.is_floating_point()
        if name not in changes or not is_like_parameter:
            del optimizer.state[parameter]  # the optimizer then creates new state
            rank_zero_warn(
                f"{type(optimizer).__name__} keeps {name!r}, which can't be carried over to another rank: "
                "where LoRA's rank changes, its state starts from zero",
            )
            return
        changed = changes[name](_wide(value))
        state[name] = changed.to(value.dtype).contiguous()


def _wide(tensor: Tensor) -> Tensor:
    """The tensor, detached and at least in float32."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
