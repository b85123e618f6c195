"""What a model computes, seen once on a small input: its products of matrices, and where gradients reach."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from lightning_vlm_callbacks.modes import eval_mode
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Call(NamedTuple):
    """A module that multiplies by a matrix of its own, as it was called.

    Args:
        module: The module.
        rows: How many vectors it multiplied.
        operations: For each of them: two for each weight of its true shape, quantised or not.
        is_reached: Whether what it read has a gradient.
        trains: Whether its matrix trains.
    """

    module: nn.Module
    rows: int
    operations: int
    is_reached: bool
    trains: bool


class Trace(NamedTuple):
    """What was seen.

    Args:
        calls: In their order.
        counted: The operations that PyTorch counted.
        has_gradient: Whether what the function returned has a gradient.
    """

    calls: list[Call]
    counted: int
    has_gradient: bool


def trace(root: nn.Module, run: Callable[[], Tensor]) -> Trace:
    """Call a function that runs modules, and watch them. Modes and random states stay the same.

    Args:
        root: The modules inside of it are watched.
        run: Calls some of them. Nothing is kept for its backward pass.
    """
    calls: list[Call] = []

    def after(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        read = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        matrix = _matrix(module, read, output)
        if read is not None and matrix is not None:
            weight, rows, operations = matrix
            others = [other for other in module.parameters() if other is not weight]
            is_bare = any(True for _ in module.children())  # what is multiplied may come from a child
            is_reached = read.requires_grad or (is_bare and any(other.requires_grad for other in others))
            calls.append(Call(module, rows, operations, is_reached, weight.requires_grad))

    with ExitStack() as stack:
        for module in root.modules():
            if any(True for _ in module.parameters(recurse=False)):
                handle = module.register_forward_hook(after, with_kwargs=True)
                stack.callback(handle.remove)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(lambda _: None, torch.as_tensor))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(eval_mode(root))
        counter = stack.enter_context(FlopCounterMode(display=False))
        returned = run()
    return Trace(calls, counter.get_total_flops(), returned.requires_grad)


def _matrix(module: Any, read: Any, output: Any) -> tuple[Tensor, int, int] | None:
    """A module's own matrix, how many vectors it multiplied, and the operations for each."""
    if isinstance(module, nn.Linear):
        rows = output.numel() // module.out_features
        return module.weight, rows, 2 * module.in_features * module.out_features
    if isinstance(module, _CONVOLUTIONS):
        return module.weight, output.numel() // module.out_channels, 2 * module.weight.numel()
    if isinstance(output, Tensor) and isinstance(read, Tensor):
        for weight in _bare_matrices(module):
            if weight.shape == (read.shape[-1], output.shape[-1]):  # as in the projector of Gemma 3
                return weight, output.numel() // output.shape[-1], 2 * weight.numel()
    return None


def _bare_matrices(module: nn.Module) -> Iterator[nn.Parameter]:
    """Matrices of a module that may multiply by them itself."""
    if not isinstance(module, nn.Embedding):
        for weight in module.parameters(recurse=False):
            if weight.ndim == 2:
                yield weight
