"""Steps of a model without weights: what depends on weights or pixels has a size and no values.

A forward asks for values too: where pictures stand among tokens, how many patches each has. Those don't
depend on weights. So here tensors of whole numbers, and all that is computed of them alone, are real, while
weights, pixels and what follows from them are torch's `FakeTensor`s. Any model whose shapes don't depend on
what it has learned goes through a true step of training in seconds, and allocates what it would allocate.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from lightning_vlm.training.memory.meter import tensors_in

_aten = torch.ops.aten
_DEVICE = torch.ops.prim.device.default
_CPU = torch.device("cpu")
_INDICES = {
    _aten.topk.default: 1,
    _aten.sort.default: 1,
    _aten.argsort.default: None,
    _aten.argmax.default: None,
}
"""Operations that choose by what is learned, as routers of experts do, and which output has the choice."""
_PLACES = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._unsafe_index.Tensor}
"""Operations at places that a mask may say."""
_NEVER = {_aten.isinf.default, _aten.isnan.default, _aten.eq.Scalar}
"""What isn't so where values aren't known."""
_SMALL = 2**20
"""Masks of no more elements than this get values; larger ones are those of dropout and of pixels."""


class Pretence(TorchDispatchMode):
    """A context in which operations on tensors without values give tensors without values.

    Where a router chooses experts, it chooses all of them alike often. A mask without values is true
    everywhere (such a one says which pictures aren't empty). A single number that is asked for is 0.

    >>> pretence = Pretence()
    >>> with pretence:
    ...     product = pretence.empty([2, 3], torch.float32) @ torch.ones(3, 4)
    >>> type(product).__name__, product.shape
    ('FakeTensor', torch.Size([2, 4]))
    """

    def __init__(self) -> None:
        super().__init__()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor without values."""
        with self._fake:
            return torch.empty(shape, dtype=dtype, device="cpu")

    def without_values(self, tensor: Tensor) -> Tensor:
        """A tensor like another."""
        with self._fake:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")

    def take_weights(self, model: nn.Module) -> None:
        """Put the weights of a model that is on the meta device onto a CPU, without values. In place."""
        given: dict[int, nn.Parameter] = {}
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is None:
                    continue
                if id(weight) not in given:
                    given[id(weight)] = self._parameter(weight)
                module._parameters[name] = given[id(weight)]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    is_number = not buffer.is_floating_point()
                    module._buffers[name] = (
                        torch.zeros(buffer.shape, dtype=buffer.dtype)
                        if is_number
                        else self.empty(buffer.shape, buffer.dtype)
                    )

    def _parameter(self, weight: nn.Parameter) -> nn.Parameter:
        made = nn.Parameter(self.empty(weight.shape, weight.dtype), requires_grad=weight.requires_grad)
        for name, value in weight.__dict__.items():  # such as `no_decay`
            made.__dict__.setdefault(name, value)
        return made

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _DEVICE:  # asked for more often than all else
            return _CPU
        tensors = list(tensors_in((args, kwargs)))
        fakes = sum(isinstance(value, FakeTensor) for value in tensors)
        if not fakes:
            return func(*args, **kwargs)
        if func is _aten._local_scalar_dense.default:
            return 0.0 if args[0].is_floating_point() else 0
        if func is _aten.nonzero.default:
            return _places(args[0])
        if func is _aten._grouped_mm.default:
            return self.empty(_grouped_shape(args[0], args[1], args[2:] or kwargs.get("offs")), args[0].dtype)
        if func is _aten.masked_select.default:
            func, args = _aten.index.Tensor, (args[0], [args[1]])
            fakes = -1
        if func in _PLACES:
            args = (args[0], _without_masks(args[1]), *args[2:])
            fakes = -1
        if fakes != len(tensors):
            args, kwargs = tree_map(self._as_fake, (args, kwargs))
        with self._fake:
            result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.dtype == torch.bool and result.numel() <= _SMALL:
            return torch.full(result.shape, func not in _NEVER)
        return _with_balanced_choice(func, args, result) if func in _INDICES else result

    def _as_fake(self, value: Any) -> Any:
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
            return self._fake.from_tensor(value)
        return value


def _places(mask: Tensor) -> Tensor:
    """Where a mask is true: everywhere, if it has no values."""
    known = torch.ones(mask.shape, dtype=torch.bool) if isinstance(mask, FakeTensor) else mask
    return known.nonzero()


def _without_masks(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Indices with numbers in place of masks."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            found += _places(index).unbind(1)
        else:
            found.append(index)
    return found


def _grouped_shape(one: Tensor, other: Tensor, ends: Any) -> tuple[int, ...]:
    """The shape of products of groups of rows, each with a matrix of its own, or of its gradients."""
    if isinstance(ends, tuple):
        ends = ends[0]
    if one.ndim == 2 and other.ndim == 2:
        return len(ends), one.shape[0], other.shape[1]
    if one.ndim == 2 or other.ndim == 2:
        return one.shape[-2], other.shape[-1]
    return one.shape[0], one.shape[1], other.shape[2]


def _with_balanced_choice(func: Any, args: Sequence[Any], result: Any) -> Any:
    """The result of a choice, with numbers that choose all there is in turn."""
    place = _INDICES[func]
    shape = (result if place is None else result[place]).shape
    sizes = args[0].shape
    choices = sizes[-1] if sizes else 1
    numbers = (torch.arange(shape.numel()) % max(1, choices)).reshape(shape)
    return numbers if place is None else (result[0], numbers)
