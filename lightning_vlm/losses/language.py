"""Cross-entropy of a language model's output without ever holding all of its logits."""

from typing import NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_vlm.errors import UserError
from lightning_vlm.losses.linear_cross_entropy import LinearCrossEntropy

CHUNK_LOGITS = {"cpu": 2**24}
"""How many logits a chunk has on a kind of device unless `chunk_size` is given: 64 MiB in float32; else 256,
since a GPU needs more rows at a time to be busy: each chunk reads the whole weight."""


class LossSums(NamedTuple):
    """A loss as a sum and a weight, to be added over micro-batches and ranks and divided once.

    Args:
        loss_sum: Scalar, float32 (float64 for float64 logits): sum of weight times loss. Carries the graph.
        weight_sum: Scalar, the same dtype, detached: sum of the weights.
        token_losses: Tensor of shape [tokens], the same dtype, detached: the loss of each token before its
            weight; 0 for tokens of weight 0.
    """

    loss_sum: Tensor
    weight_sum: Tensor
    token_losses: Tensor


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    token_weights: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_size: int | None = None,
) -> LossSums:
    """Weighted cross-entropy of a linear output layer, a chunk of tokens at a time.

    The logits are `softcap * tanh(z / softcap)` with `z = logit_scale * (hidden @ weight.T + bias)`. Each
    chunk's gradients are computed in the forward, while its logits exist, so that nothing of size
    tokens x vocabulary is ever held: at most one chunk of logits in float32 (and its copy in half precision,
    if the inputs are). This takes 2 matrix multiplications over the tokens for a frozen weight and 3 for a
    trained one, as many as with all logits at once. Without gradients (`torch.no_grad`, nothing trained): 1.

    Logits are multiplied out in the dtype of `hidden`, or in autocast's where that is on; softmax, loss and
    the gradient of the weight are float32 (float64 for float64 `hidden`). The host never waits for a device.

    Args:
        hidden: Tensor of shape [tokens, hidden], floating-point.
        weight: Tensor of shape [vocabulary, hidden], floating-point.
        labels: Tensor of shape [tokens], int64, 0..vocabulary-1. No value means "ignore": select the tokens
            that count beforehand, or give the others weight 0, which leaves their labels unread.
        token_weights: Tensor of shape [tokens], all 1 if None. No gradient flows to it. A token of weight 0
            contributes exactly nothing, even if its hidden state is NaN or infinite.
        bias: Tensor of shape [vocabulary], added to the logits.
        softcap: Bounds the logits smoothly to -softcap..softcap, as Gemma 2 does; None for no bound.
        logit_scale: Multiplies the logits before the softcap, as Cohere's and Granite's models do.
        chunk_size: Tokens in a chunk. None: as many as make 256 MiB of float32 logits (64 on a CPU), at least
            64; for a weight that trains on a GPU at least half as many as a hidden state has numbers, so that
            logits take half the room of the weight's gradient, which each chunk reads and writes. With a
            softcap half as many at a time, for its slopes need as much room as the logits.
    Returns:
        The sums. With no token, or all weights 0, `loss_sum` is 0 and its gradients are zeros, not None.

    Raises:
        UserError: Shapes that don't fit together, a chunk size below 1, a softcap that isn't above 0;
            in the backward `create_graph=True`, for there is no second derivative.
        RuntimeError: On a CPU, a label outside 0..vocabulary-1. (On a GPU, a device-side assertion.)

    >>> hidden, weight = torch.eye(3, requires_grad=True), torch.eye(3)
    >>> sums = linear_cross_entropy(hidden, weight, torch.tensor([0, 1, 0]), torch.tensor([1.0, 2.0, 0.0]))
    >>> sums.loss_sum.item(), sums.weight_sum.item(), sums.token_losses
    (1.654..., 3.0, tensor([0.5514, 0.5514, 0.0000]))
    """
    _check(hidden, labels, token_weights, softcap, chunk_size)
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1]:
        expected = f"[vocabulary, {hidden.shape[1]}], as wide as hidden"
        raise UserError(f"weight: found shape {list(weight.shape)}; expected {expected}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UserError(f"bias: found shape {list(bias.shape)}; expected [{weight.shape[0]}] as weight has")
    weights = _as_weights(token_weights, hidden)
    device, dtype = hidden.device.type, hidden.dtype
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    with_grad = torch.is_grad_enabled()  # inside it is always off
    if chunk_size is None:
        chunk_size = default_chunk_size(weight, hidden.device, trains=with_grad and weight.requires_grad)
    options = softcap, logit_scale, chunk_size, dtype, with_grad
    loss_sum, token_losses = LinearCrossEntropy.apply(hidden, weight, bias, labels, weights, *options)
    return LossSums(loss_sum, weights.sum(), token_losses)


def head_cross_entropy(
    hidden: Tensor,
    head: nn.Module,
    labels: Tensor,
    token_weights: Tensor | None = None,
    *,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    chunk_size: int | None = None,
) -> LossSums:
    """Weighted cross-entropy of any kind of output layer, a chunk of tokens at a time.

    A plain `nn.Linear` goes to `linear_cross_entropy`. Any other head (with LoRA or DoRA, quantised, with
    hooks) would lose what makes it different if only its weight were read, so it is called, on one chunk at a
    time, and the chunk's logits are computed again in the backward (`torch.utils.checkpoint`, with the same
    dropout) rather than held. Its hooks therefore run once per chunk, and once more in the backward.

    Args:
        hidden: Tensor of shape [tokens, hidden], floating-point.
        head: From [tokens, hidden] to logits [tokens, vocabulary], such as `model.get_output_embeddings()`.
        labels: Tensor of shape [tokens], int64, 0..vocabulary-1.
        token_weights, softcap, logit_scale, chunk_size: As in `linear_cross_entropy`.
    Returns:
        The sums. With no token, or all weights 0, `loss_sum` is 0, still connected to the graph.

    Raises:
        UserError, RuntimeError: As `linear_cross_entropy`.

    >>> sums = head_cross_entropy(torch.zeros(2, 4), nn.Linear(4, 10, bias=False), torch.tensor([3, 7]))
    >>> sums.token_losses  # log 10 each
    tensor([2.3026, 2.3026])
    """
    if is_plain_linear(head):
        return linear_cross_entropy(
            hidden,
            head.weight,
            labels,
            token_weights,
            bias=head.bias,
            softcap=softcap,
            logit_scale=logit_scale,
            chunk_size=chunk_size,
        )
    _check(hidden, labels, token_weights, softcap, chunk_size)
    weights = _as_weights(token_weights, hidden)
    rows, targets = hidden, labels
    if not len(hidden):
        # One token that doesn't count keeps hidden and every parameter of the head in the graph.
        rows, targets, weights = hidden.sum(0, keepdim=True), labels.new_zeros(1), weights.new_zeros(1)
    counts = weights != 0
    inputs = torch.where(counts[:, None], rows, 0)  # as above: 0 times NaN is NaN
    targets = targets.masked_fill(~counts, 0)
    size = chunk_size or default_chunk_size(head, hidden.device)
    chunks = [
        checkpoint(_chunk_losses, head, *chunk, softcap, logit_scale, use_reentrant=False)
        for chunk in zip(inputs.split(size), targets.split(size), strict=True)
    ]
    losses = torch.cat(chunks).masked_fill(~counts, 0)
    return LossSums((losses * weights).sum(), weights.sum(), losses.detach()[: len(hidden)])


def _chunk_losses(
    head: nn.Module, hidden: Tensor, labels: Tensor, softcap: float | None, logit_scale: float
) -> Tensor:
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return -F.log_softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]  # F.cross_entropy would ignore -100


def is_plain_linear(head: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether reading the weight and the bias is the same as calling the module."""
    if type(head) is not nn.Linear or not head.weight.is_floating_point() or "forward" in vars(head):
        return False
    return not (
        head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or head._backward_pre_hooks
    )


def default_chunk_size(head: nn.Module | Tensor, device: torch.device, *, trains: bool = False) -> int:
    """How many tokens' logits are computed at a time unless a caller says otherwise.

    Args:
        head: The output layer, or its weight of shape [vocabulary, hidden].
        device: That computes them.
        trains: Whether the weight gets a gradient, which each chunk adds to: reading and writing it is what
            small chunks take their time for on a GPU.

    >>> default_chunk_size(nn.Linear(8, 2**17), torch.device("cpu"))
    128
    >>> default_chunk_size(torch.empty(2**17, 2048, device="meta"), torch.device("cuda"), trains=True)
    1024
    """
    # Layers of PEFT and bitsandbytes have `out_features`; for others a usual vocabulary is assumed.
    vocabulary = len(head) if isinstance(head, Tensor) else getattr(head, "out_features", 2**17)
    logits = CHUNK_LOGITS.get(device.type, 2**26)
    least = 64  # fewer rows would waste the matrix multiplication
    if trains and device.type != "cpu" and isinstance(head, Tensor):
        least = max(least, head.shape[1] // 2)  # half of the room that the gradient takes
    return max(least, logits // vocabulary)


def _as_weights(token_weights: Tensor | None, hidden: Tensor) -> Tensor:
    """Weights in the dtype that losses are added up in."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    if token_weights is None:
        return hidden.new_ones(len(hidden), dtype=wide)
    return token_weights.detach().to(wide)


def _check(
    hidden: Tensor, labels: Tensor, weights: Tensor | None, softcap: float | None, chunk_size: int | None
) -> None:
    if hidden.ndim != 2:
        raise UserError(
            f"hidden: found shape {list(hidden.shape)}; expected [tokens, hidden], tokens flattened"
        )
    for name, tensor in (("labels", labels), ("token_weights", weights)):
        if tensor is not None and tensor.shape != hidden.shape[:1]:
            raise UserError(f"{name}: found shape {list(tensor.shape)}; expected [{len(hidden)}], as hidden")
    if softcap is not None and not softcap > 0:
        raise UserError(f"softcap: found {softcap}; expected a number above 0, or None for no bound")
    if chunk_size is not None and chunk_size < 1:
        raise UserError(
            f"chunk_size: found {chunk_size}; expected 1 or more, or None to choose by vocabulary"
        )
