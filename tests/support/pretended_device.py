"""A GPU that is only pretended, on which everything that would make the host wait is counted.

Its tensors say that they are on `cuda:0`, and code takes the way that it would take there; their values are
on the CPU. What waits on a GPU, and what is an error there (tensors of both devices in one operation), is
noted with the line that asked for it. A CPU is enough, and nothing is replaced in the code that runs.
"""

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

from lightning_vlm.training.memory.meter import tensors_in
from tests.support.pretended_kernels import Event, in_place_of

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
_SIZE_IS_A_VALUE = {
    aten.nonzero,
    aten.masked_select,
    aten.masked_scatter_backward,
    aten._unique,
    aten._unique2,
    aten.unique_dim,
    aten.unique_dim_consecutive,
    aten.unique_consecutive,
    aten.bincount,
    aten.equal,
    aten.segment_reduce,
}
"""The host waits to know how large their result is, or what it is."""
_TAKES_BOTH_DEVICES = {aten._to_copy, aten.copy_, aten.index, aten.index_put, aten.index_put_}


class Wait(NamedTuple):
    """Something that a GPU's host would wait for, or that would be an error.

    Args:
        what: `read` (a value goes to the host), `size` (of a result that values decide), `upload` (a blocking
            copy to the device) or `mixed` (an error: tensors of both devices).
        operation: The operation's name.
        where: File, line and function that asked for it, in a package that isn't torch or Lightning.
    """

    what: str
    operation: str
    where: str


class OnDevice(Tensor):
    """A tensor that says it is on the device. For torch's own code, which may lack CUDA, it is on `meta`."""

    value: Tensor
    device = DEVICE  # type: ignore[assignment]
    is_cuda = True
    is_cpu = False
    is_meta = False

    @staticmethod
    def __new__(cls, value: Tensor, requires_grad: bool = False) -> "OnDevice":
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            value.size(),
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device="meta",
            requires_grad=requires_grad,
        )
        made.value = value
        return made

    def tolist(self) -> Any:
        """A copy to the host first."""
        return self.cpu().tolist()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["value"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> "OnDevice":
        return OnDevice(inner["value"])

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.value})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        return PretendedDevice.dispatch(None, function, arguments, options or {})


class PretendedDevice(TorchDispatchMode):
    """While it is entered there is a device `cuda:0`, and `waits` lists what the host would wait for on it.

    >>> with PretendedDevice() as device:
    ...     total = torch.arange(4, device="cuda").sum()
    ...     assert total.is_cuda and not device.waits
    ...     total.item(), device.waits[0].what
    (6, 'read')
    """

    # As this kind of mode it may make tensors on a device that isn't there.
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self._stack = ExitStack()

    def __enter__(self) -> "PretendedDevice":
        for name, value in _CUDA.items():
            self._stack.enter_context(patch(f"torch.{name}", value))
        self._stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        self._stack.enter_context(_setting("only_lift_cpu_tensors"))
        self._stack.enter_context(_swapped_parameters())
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.close()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        return self.dispatch(self, function, arguments, options or {})

    @staticmethod
    def dispatch(mode: "PretendedDevice | None", function: Any, arguments: Any, options: Any) -> Any:
        """Run an operation on the values, note whether the host waits, and say where the result is."""
        operation = function.overloadpacket
        tensors = list(tensors_in((arguments, options)))
        on_device = [one for one in tensors if isinstance(one, OnDevice)]
        on_host = [one for one in tensors if not isinstance(one, OnDevice)]
        target = options.get("device")
        if mode is not None:  # else no device is pretended any more
            what = _why_waits(function, operation, arguments, options, on_device, on_host, target)
            if what:
                mode.waits.append(Wait(what, operation.__name__, _asked_from()))
        to_device = bool(on_device) if target is None else _is_device(target)
        if operation is aten.copy_:
            to_device = isinstance(arguments[0], OnDevice)
        run = in_place_of(function)
        given, with_options = _mapped(lambda one: getattr(one, "value", one), (arguments, options))
        if target is not None:
            with_options["device"] = torch.device("cpu")
            if operation is aten._to_copy and bool(on_device) != to_device:
                given = (given[0].clone(), *given[1:])  # between devices it is always a copy
        found = run(*given, **with_options)
        if not to_device:
            return found
        known = {id(one.value): one for one in on_device}
        made = _mapped(lambda one: known[id(one)] if id(one) in known else _put(one), found)
        if operation is aten._to_copy or run is not function:
            return made
        return return_and_correct_aliasing(function, arguments, options, made)


_make_tensor = torch.tensor


def _tensor(data: Any, **options: Any) -> Tensor:
    """`torch.tensor`, which reads values of tensors in a list past all modes."""
    if isinstance(data, list | tuple):
        data = tree_map_only(OnDevice, lambda one: one.item(), data)
    return _make_tensor(data, **options)


_CUDA: dict[str, Any] = {
    "backends.cuda.is_flash_attention_available": lambda: True,
    "cuda.get_device_capability": lambda device=None: (9, 0),
    "cuda.get_device_name": lambda device=None: "NVIDIA H100 80GB HBM3",
    "cuda.max_memory_allocated": lambda device=None: 0,
    "cuda.get_rng_state": lambda device=None: torch.get_rng_state(),
    "cuda.current_stream": lambda device=None: SimpleNamespace(record_event=Event),
    "cuda.Event": Event,
    "tensor": _tensor,
}
"""What is asked about a GPU without an operation."""


def counts(waits: list[Wait]) -> dict[str, int]:
    """How often the host waits at each place, the most frequent first."""
    return dict(Counter(f"{wait.what}: {wait.operation} at {wait.where}" for wait in waits).most_common())


def _is_device(target: Any) -> bool:
    return torch.device(target).type in ("cuda", "meta")


def _put(found: Tensor) -> Tensor:
    return found if isinstance(found, OnDevice) else OnDevice(found)


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """What an operation is given or gives, with other tensors; several times faster than torch's pytree."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)([_mapped(change, one) for one in value])
    if type(value) is dict:
        return {key: _mapped(change, one) for key, one in value.items()}
    return value


def _why_waits(
    function: Any,
    operation: Any,
    arguments: Any,
    options: Any,
    on_device: list[OnDevice],
    on_host: list[Tensor],
    target: Any,
) -> str | None:
    if operation is aten._to_copy or operation is aten.copy_:
        source = arguments[0] if operation is aten._to_copy else arguments[1]
        goes_to = arguments[0].is_cuda if target is None else _is_device(target)
        blocks = not (options.get("non_blocking") or (operation is aten.copy_ and len(arguments) > 2))
        if source.is_cuda == goes_to or not blocks:
            return None
        return "read" if source.is_cuda else "upload"
    if not on_device:
        return None
    if operation is aten._local_scalar_dense:
        return "read"
    if operation in _SIZE_IS_A_VALUE:
        return "size"
    if operation is aten.repeat_interleave and options.get("output_size") is None:
        return "size"
    if operation in (aten.index, aten.index_put, aten.index_put_):
        return _why_indexing_waits(operation, arguments)
    if operation not in _TAKES_BOTH_DEVICES and any(one.ndim for one in on_host):
        return "mixed"
    return None


def _why_indexing_waits(operation: Any, arguments: Any) -> str | None:
    into, indices = arguments[0], [one for one in arguments[1] if one is not None]
    if not isinstance(into, OnDevice):
        return "mixed"
    if operation is not aten.index:
        values = arguments[2]
        if values.ndim and not isinstance(values, OnDevice):
            return "mixed"
        if values.numel() == 1 and len(indices) == 1:
            return None  # a mask is filled in
    if any(one.dtype in (torch.bool, torch.uint8) for one in indices):
        return "size"
    return "upload" if any(not isinstance(one, OnDevice) for one in indices) else None


def _asked_from() -> str:
    """The innermost line that isn't of torch, Lightning or this file."""
    packages = "/torch/", "/lightning/", "contextlib", __file__
    for frame, line in traceback.walk_stack(sys._getframe()):
        name = Path(frame.f_code.co_filename).as_posix()
        if name.startswith("<") or any(package in name for package in packages):
            continue
        short = name.split("/site-packages/")[-1]
        short = short.removeprefix(f"{_ROOT}/").removeprefix("callbacks/")
        return f"{short}:{line} {frame.f_code.co_name}"
    return "unknown"


_ROOT = Path(__file__).parents[2].as_posix()


@contextmanager
def _setting(name: str) -> Iterator[None]:
    before = getattr(torch._C, f"_{name}")()
    change = getattr(torch._C, f"_set_{name}")
    change(True)
    try:
        yield
    finally:
        change(before)


@contextmanager
def _swapped_parameters() -> Iterator[None]:
    """Let modules keep the identity of parameters that move."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
