"""What stands in for events and kernels of a GPU, for `pretended_device.py`."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Event:
    """A moment of the device, which is always past."""

    def __init__(self, enable_timing: bool = False) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        """There is one place only."""

    def query(self) -> bool:
        """Whether the device has come here."""
        return True

    def synchronize(self) -> None:
        """Nothing to wait for. It isn't counted: who asks for an event may ask when it has long passed."""

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds."""
        return 1.0


def _varlen(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *rest: Any, **options: Any) -> Any:
    causal, scale = rest[3], rest[4]
    left, right = rest[5] if len(rest) > 5 and rest[5] else (-1, -1)
    outs = []
    lengths = starts.diff().tolist()
    for parts in zip(*(one.split(lengths) for one in (query, key, value)), strict=True):
        one, two, three = (part.transpose(0, 1)[None] for part in parts)
        mask = None
        if (left, right) not in ((-1, -1), (-1, 0)):
            everything = torch.ones(one.shape[2], one.shape[2], dtype=torch.bool)
            mask = everything.triu(-left).tril(right)
        out = scaled_dot_product_attention(
            one, two, three, mask, is_causal=causal and mask is None, scale=scale, enable_gqa=True
        )
        outs.append(out[0].transpose(0, 1))
    sums = torch.zeros(query.shape[1], len(query), dtype=torch.float32)  # that only the backward reads
    return torch.cat(outs), sums, torch.zeros(2, dtype=torch.uint64)


_AS_A_CALLER = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
"""Where operations begin: with autograd."""


def _varlen_backward(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Any:
    starts, causal, scale, window = rest[2], rest[6], rest[8], rest[9]
    inputs = [one.detach().requires_grad_() for one in (query, key, value)]
    with torch._C._ForceDispatchKeyGuard(*_AS_A_CALLER), torch.enable_grad():
        out = _varlen(*inputs, starts, None, 0, 0, causal, scale, window)[0]
        return torch.autograd.grad(out, inputs, grad)


def _choose_math(*_: Any, **__: Any) -> int:
    return 0


def _histc(values: Tensor, *bounds: Any, **more: Any) -> Tensor:
    """Counts of whole numbers, which a CPU knows only of floats."""
    return torch.histc(values.float(), *bounds, **more).to(values.dtype)


def in_place_of(function: Any) -> Any:
    """What computes an operation of a GPU on a CPU."""
    names = {
        "histc": _histc,
        "_fused_sdp_choice": _choose_math,
        "_varlen_attn": _varlen,
        "_varlen_attn_backward": _varlen_backward,
    }
    return names.get(function.overloadpacket.__name__, function)
