"""Norms, gated activations and rotary embeddings of a model, each computed by one kernel of Liger.

Liger (Hsu et al. 2024, https://arxiv.org/abs/2410.10989) has kernels in Triton for what takes PyTorch several
passes over the same numbers. Its own patches go by the name of a family, and where they know none, or a new
version of transformers has renamed a class, nothing happens and nothing is said. Here each module is tried:
what computes the same as a kernel gets it, everything else stays, and it is counted.
"""

import inspect
import os
from collections.abc import Callable
from importlib.util import find_spec
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError

_GATED_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
"""The only names that the forward of a gated MLP has."""


class Replaced(NamedTuple):
    """How many modules of a model a kernel computes.

    >>> str(Replaced(norms=5, activations=2, rotations=2))
    '5 norms, 2 gated activations and 2 rotary embeddings'
    """

    norms: int
    activations: int
    rotations: int

    def __str__(self) -> str:
        return (
            f"{self.norms} norms, {self.activations} gated activations and {self.rotations} rotary embeddings"
        )


def use_liger(model: PreTrainedModel) -> Replaced:
    """Let Liger's kernels compute the modules of a model that they can. Names of weights stay as they are.

    Layer norms are left alone, which PyTorch computes by one kernel too; and so is the loss, for ours holds
    no more than a chunk of logits either, and weighs each token.

    Args:
        model: Loaded and adapted; its linear layers may have LoRA or be quantised.

    Returns:
        What is computed by them from now on.

    Raises:
        UserError: Liger isn't installed, or nothing in the model is what its kernels compute.
    """
    if find_spec("liger_kernel") is None:
        raise UserError("model.kernels: found no liger-kernel; pip install 'lightning-vlm[liger]'")
    modules = list(model.modules())
    replaced = Replaced(
        norms=sum(map(_replace_norm, modules)),
        activations=sum(map(_replace_activation, modules)),
        rotations=sum(map(_replace_rotation, modules)),
    )
    if not any(replaced):
        raise UserError(
            f"model.kernels: found nothing in {type(model).__name__} that Liger's kernels compute; "
            "leave it out, or set model.compile instead"
        )
    return replaced


def refuse_without_gpu(device: torch.device) -> None:
    """Refuse Liger's kernels where they can't run.

    Args:
        device: That trains.

    Raises:
        UserError: No GPU, nor Triton's interpreter, which is meant for tests.
    """
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError("model.kernels: liger needs a GPU; leave it out on a CPU")


def _replace_norm(module: nn.Module) -> bool:
    offset = norm_offset(module)
    if offset is None:
        return False
    from liger_kernel.transformers.functional import liger_rms_norm

    eps, mode = _eps(module), "gemma" if offset else "llama"

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        # In place the kernel would write over a gradient that a residual connection may need as well.
        return liger_rms_norm(hidden_states, self.weight, eps, offset, mode, False)

    module.forward = MethodType(forward, module)
    return True


def norm_offset(module: nn.Module) -> float | None:
    """What is added to the weight of a root mean square norm: 0, or 1 in Gemma's; None for anything else.

    >>> norm_offset(nn.RMSNorm(8, eps=1e-6)), norm_offset(nn.LayerNorm(8))
    (0.0, None)
    """
    weight, eps = getattr(module, "weight", None), _eps(module)
    is_norm = type(module).__name__.endswith("RMSNorm")
    if not is_norm or eps is None or weight is None or weight.ndim != 1 or "forward" in vars(module):
        return None
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, len(weight), generator=draw).to(weight.device, weight.dtype)
    with torch.no_grad():
        found = module.forward(hidden).float()
        wide = hidden.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        for offset in (0.0, 1.0):
            if torch.allclose(found, normed * (offset + weight.float()), rtol=0.02, atol=1e-3):
                return offset
    return None


def _eps(module: nn.Module) -> float | None:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _replace_activation(module: nn.Module) -> bool:
    name = gated_activation(module)
    if name is None:
        return False
    multiply = _multiply(name)

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down_proj(multiply(self.gate_proj(x), self.up_proj(x)))

    module.forward = MethodType(forward, module)
    return True


def gated_activation(module: nn.Module) -> str | None:
    """Whether a module is `down_proj(act(gate_proj(x)) * up_proj(x))`, and for which activation: `silu`, or
    `gelu` by tanh; None for any other module."""
    forward = type(module).forward
    code = getattr(forward, "__code__", None)
    if code is None or set(code.co_names) != _GATED_MLP or "forward" in vars(module):
        return None
    gate, up = torch.linspace(-3, 3, 16), torch.linspace(1, 2, 16)
    parts = SimpleNamespace(
        gate_proj=lambda _: gate, up_proj=lambda _: up, down_proj=lambda x: x, act_fn=module.act_fn
    )
    found = forward(parts, gate)
    if torch.allclose(found, silu(gate) * up, atol=1e-5):
        return "silu"
    return "gelu" if torch.allclose(found, gelu(gate, approximate="tanh") * up, atol=1e-5) else None


def _multiply(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Liger's function of an activation, which may be differentiated again.

    Its backward writes the gradients over what it had kept. With `retain_graph` the next backward would read
    those, and nothing would notice.
    """
    from liger_kernel.ops import LigerGELUMulFunction, LigerSiLUMulFunction

    kernel: Any = LigerSiLUMulFunction if name == "silu" else LigerGELUMulFunction

    class Repeatable(kernel):
        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            again = torch._C._autograd._get_current_graph_task_keep_graph()
            return kernel.backward(_Copies(ctx) if again else ctx, *gradients)

    return Repeatable.apply


class _Copies:
    """A context of an autograd function whose saved tensors are copies."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.saved_tensors = tuple(tensor.clone() for tensor in context.saved_tensors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _replace_rotation(module: nn.Module) -> bool:
    """Give an attention layer a forward of its own, in which the name of the rotation means Liger's."""
    name = rotation_name(module)
    if name is None:
        return False
    from liger_kernel.transformers import rope

    vision = name.endswith("_vision")
    kernel = rope.liger_rotary_pos_emb_vision if vision else rope.liger_rotary_pos_emb

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> Any:
        return kernel(q, k, cos, sin)

    old = type(module).forward
    names = {**old.__globals__, name: rotate}
    new = FunctionType(old.__code__, names, old.__name__, old.__defaults__, old.__closure__)
    new.__kwdefaults__ = old.__kwdefaults__
    module.forward = MethodType(new, module)
    return True


def rotation_name(module: nn.Module) -> str | None:
    """What the forward of an attention layer rotates queries and keys by, if it is the usual rotation."""
    forward = type(module).forward
    code = getattr(forward, "__code__", None)
    if code is None or hasattr(forward, "__wrapped__") or "forward" in vars(module):
        return None
    for name in ("apply_rotary_pos_emb", "apply_rotary_pos_emb_vision"):
        rotate = forward.__globals__.get(name)
        if name in code.co_names and rotate is not None and _is_usual(rotate, vision=name.endswith("vision")):
            return name
    return None


def _is_usual(rotate: Callable, *, vision: bool) -> bool:
    """Whether a function rotates the first half of each head against the second, and leaves nothing out."""
    expected = ["q", "k", "cos", "sin"] + ([] if vision else ["unsqueeze_dim"])
    if list(inspect.signature(rotate).parameters) != expected:
        return False
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 2, 5, 8, generator=draw)  # [batch, heads, length, dim]
    angles = torch.randn(5, 4, generator=draw).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    turned = [one * cos + torch.cat((-one[..., 4:], one[..., :4]), -1) * sin for one in (q, k)]
    if vision:  # [length, heads, dim]
        found = [
            one.transpose(0, 1)[None] for one in rotate(*(x[0].transpose(0, 1) for x in (q, k)), cos, sin)
        ]
    else:
        found = rotate(q, k, cos[None], sin[None])
        if _takes_narrow(rotate, q, k, cos[None], sin[None]):
            return False  # Liger's knows no heads of which a part stays as it is
    return all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, turned, strict=True))


def _takes_narrow(rotate: Callable, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether a function also takes angles for a part of each head only."""
    half = cos.shape[-1] // 2
    try:
        rotate(q, k, cos[..., :half], sin[..., :half])
    except RuntimeError:  # widths that don't fit
        return False
    return True
