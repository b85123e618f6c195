"""The autograd function behind `linear_cross_entropy`, which never holds all logits."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_vlm.errors import UserError


class LinearCrossEntropy(torch.autograd.Function):
    """The weighted losses of a linear output layer; gradients are computed in the forward, chunk by chunk.

    `linear_cross_entropy` says what it computes, and checks the arguments.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        token_weights: Tensor,
        softcap: float | None,
        logit_scale: float,
        chunk_size: int,
        dtype: torch.dtype,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        for_hidden, for_weight, for_bias = (with_grad and need for need in ctx.needs_input_grad[:3])
        any_grad = for_hidden or for_weight or for_bias
        with_slopes = any_grad and softcap is not None
        if with_slopes:
            chunk_size = max(1, chunk_size // 2)
        wide, tokens = token_weights.dtype, len(hidden)
        wide_chunk = hidden.new_empty(min(chunk_size, tokens), len(weight), dtype=wide)
        chunk = wide_chunk if dtype == wide else torch.empty_like(wide_chunk, dtype=dtype)
        slopes = torch.empty_like(wide_chunk) if with_slopes else None

        weight_as_used = weight.to(dtype)
        in_one = wide == torch.float32 and multiplies_into_float32(hidden.device, dtype)
        losses = hidden.new_empty(tokens, dtype=wide)
        grad_hidden = hidden.new_empty(hidden.shape, dtype=dtype) if for_hidden else None
        grad_weight = torch.empty_like(weight, dtype=wide) if for_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and for_bias else None

        # Matrix multiplications write into `out`: no copies, and autocast leaves them alone.
        for start in range(0, tokens, chunk_size):
            piece = slice(start, start + chunk_size)
            size = min(chunk_size, tokens - start)
            counts = token_weights[piece] != 0
            # 0 times NaN is NaN, so tokens without weight are replaced before they are multiplied.
            inputs = hidden[piece].to(dtype).masked_fill(~counts[:, None], 0)
            targets = labels[piece].masked_fill(~counts, 0)[:, None]

            logits = wide_chunk[:size]
            if in_one:
                wide_product(logits, inputs, weight_as_used.t(), add=False)
            else:
                torch.mm(inputs, weight_as_used.t(), out=chunk[:size])
                if chunk is not wide_chunk:
                    logits.copy_(chunk[:size])
            if bias is not None:
                logits.add_(bias)
            if logit_scale != 1:
                logits.mul_(logit_scale)
            if softcap is not None:
                logits.div_(softcap).tanh_()
                if slopes is not None:
                    torch.mul(logits, logits, out=slopes[:size]).neg_().add_(1)
                logits.mul_(softcap)

            largest = logits.amax(1, keepdim=True)
            gap = largest - logits.gather(1, targets)
            total = logits.sub_(largest).exp_().sum(1, keepdim=True)
            losses[piece] = (gap + total.log())[:, 0].masked_fill(~counts, 0)
            if not any_grad:
                continue

            # From here on `logits` holds the gradient of the weighted loss with respect to hidden @ weight.T.
            scale = token_weights[piece, None] * logit_scale
            logits.mul_(scale / total)
            logits.scatter_(1, targets, logits.gather(1, targets) - scale)
            if slopes is not None:
                logits.mul_(slopes[:size])
            if grad_bias is not None:
                grad_bias += logits.sum(0)
            if chunk is not wide_chunk and (in_one or grad_hidden is not None):
                chunk[:size].copy_(logits)
            if grad_weight is not None and in_one:
                wide_product(grad_weight, chunk[:size].t(), inputs, add=start > 0)
            elif grad_weight is not None:
                torch.addmm(grad_weight, logits.t(), inputs.to(wide), beta=int(start > 0), out=grad_weight)
            if grad_hidden is not None:
                torch.mm(chunk[:size], weight_as_used, out=grad_hidden[piece])

        if grad_weight is not None and not tokens:
            grad_weight.zero_()
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(losses)
        return (losses * token_weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients are constants here. Without this, a second derivative would silently be wrong.
        if torch.is_grad_enabled():
            raise UserError("linear_cross_entropy has no second derivative: found create_graph=True")
        # A scalar would be rounded to the gradient's dtype before it multiplies (a loss scale of 65536
        # overflows float16); a factor with a dimension is not, and only the product is rounded, once.
        factor = grad_loss.reshape(1)
        # A weight's gradient is large. Only a backward that is to be repeated (retain_graph) needs a copy.
        again = torch._C._autograd._get_current_graph_task_keep_graph()
        grads = tuple(
            grad if grad is None else torch.mul(grad, factor, out=_room_for(grad, dtype, again))
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *grads, *[None] * 7


def wide_product(out: Tensor, left: Tensor, right: Tensor, *, add: bool) -> None:
    """`left @ right` of 16-bit matrices, summed and written in float32: one call of a GPU's matrix units.

    Args:
        out: Tensor of shape [rows, columns], float32, that is written to.
        left: Tensor of shape [rows, inner], bfloat16, on a GPU.
        right: Tensor of shape [inner, columns], as `left`.
        add: Whether the product is added to what `out` holds; otherwise it may hold anything.
    """
    torch.addmm(out, left, right, out_dtype=torch.float32, beta=int(add), out=out)


@cache
def multiplies_into_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `wide_product` works there, found out by trying it once on numbers that bfloat16 can't hold.

    It never is for float16, in which probabilities below 6e-8 would vanish from the gradient of the weight.

    >>> multiplies_into_float32(torch.device("cpu"), torch.bfloat16)
    False
    """
    if device.type != "cuda" or dtype != torch.bfloat16:
        return False
    ones = torch.ones(16, 304, device=device, dtype=dtype)
    sums = torch.ones(16, 16, device=device)
    try:
        wide_product(sums, ones, ones.t(), add=True)
    except (RuntimeError, TypeError):
        return False
    return bool((sums == 305).all())


def _room_for(grad: Tensor, dtype: torch.dtype, again: bool) -> Tensor:
    return torch.empty_like(grad, dtype=dtype) if again or grad.dtype != dtype else grad
