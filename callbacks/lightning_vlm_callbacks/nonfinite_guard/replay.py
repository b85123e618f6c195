"""Runs a training step again on a copy, to find where NaN or infinity begins. The copy is discarded."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

from lightning_vlm_callbacks.nonfinite_guard.state import (
    Aside,
    tensors,
    trial_copy,
)
from lightning_vlm_callbacks.random_states import random_state, set_random_state

__all__ = ["Diagnosis", "Statistics", "replay"]


# What was found


@dataclass
class Statistics:
    """What a tensor held: read from the device only when asked for."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    values: Tensor
    """Minimum, maximum, mean, how many are NaN or infinite, and whether it is a mask of 0 and -infinity."""

    @classmethod
    def of(cls, path: str, tensor: Tensor) -> "Statistics":
        """Of a tensor of any shape; a complex one is seen as pairs."""
        seen = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
        seen = seen.float() if seen.numel() else torch.zeros(1, device=tensor.device)
        bad = ~seen.isfinite()
        mask = ((seen == 0) | seen.isneginf()).all()
        values = torch.stack((*seen.aminmax(), seen.mean(), bad.sum().float(), mask.float()))
        return cls(path, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), values)

    @property
    def bad(self) -> bool:
        """Whether there is NaN or infinity; -infinity in an attention mask is meant."""
        *_, count, mask = self.values.tolist()
        return count > 0 and not mask

    @property
    def row(self) -> list[str]:
        """For a table: path, shape, type, minimum, maximum, mean, greatest absolute value, how many bad."""
        low, high, mean, count, _ = self.values.tolist()
        numbers = [f"{one:.4g}" for one in (low, high, mean, max(abs(low), abs(high)))]
        return [self.path or "-", str(list(self.shape)), self.dtype, *numbers, f"{count:.0f}"]


@dataclass
class Diagnosis:
    """Where a step went wrong.

    Args:
        phase: `forward`: `module` made NaN or infinity of finite inputs. `input`: they came in from outside
            any module. `loss`: all modules were fine, what training_step does with their outputs wasn't.
            `backward`: the forward was fine, the derivative of `module` wasn't. `none`: all was finite.
            `error`: the replay failed.
        module: The module's name and class, such as "blocks.1.conv (Conv2d)".
        parameter: The first parameter whose gradient went bad, if that was before all else in the backward.
        near: What in the module or training_step comes next (forward) or last (backward).
        inputs: Of the module, or of what comes after all modules.
        broken: Parameters and buffers of the module that hold NaN or infinity themselves.
        loss: As training_step gave it.
        error: Why there was no replay.
    """

    phase: Literal["forward", "input", "loss", "backward", "none", "error"]
    module: str = ""
    parameter: str = ""
    near: str = ""
    inputs: list[Statistics] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    loss: float = 0.0
    error: str = ""

    def __str__(self) -> str:
        """One sentence."""
        near = f", in its own code before {self.near}" if self.near else ""
        if self.phase == "forward" and self.broken:
            return f"NaN or infinity is in {self.module} itself: {', '.join(self.broken)}"
        if self.phase == "forward":
            return f"NaN or infinity comes out of {self.module}, whose inputs are finite{near}"
        if self.phase == "input":
            return f"NaN or infinity comes into {self.module} from outside any module"
        if self.phase == "loss":
            return "all modules' outputs are finite; the loss that training_step makes of them isn't"
        if self.phase == "backward":
            first = f", first in {self.parameter}" if self.parameter else ""
            near = f", after {self.near}" if self.near and not first else ""
            return f"the forward is finite; the gradient goes bad in {self.module}{first}{near}"
        if self.phase == "none":
            return f"not reproducible: run again, loss ({self.loss:.4g}) and gradients are finite"
        return f"the step could not be run again: {self.error}"


# The replay


@dataclass(eq=False)
class _Call:
    """One call of a module."""

    name: str
    module: nn.Module
    above: "_Call | None"
    inputs: list[Statistics]
    outputs: list[Statistics] = field(default_factory=list)
    bad_gradient: bool = False
    """Whether the gradient of an output was already bad."""

    @property
    def title(self) -> str:
        return f"{self.name or 'the LightningModule'} ({type(self.module).__name__})"

    @property
    def wrong(self) -> bool:
        return any(one.bad for one in self.outputs) and not any(one.bad for one in self.inputs)

    def depth(self) -> int:
        return 1 + self.above.depth() if self.above else 0


class _Watch:
    """Looks at what goes into and out of every module, and at the gradients of both, without waiting."""

    def __init__(self, root: nn.Module) -> None:
        self.calls: list[_Call] = []  # in the order in which they end
        self.started: list[_Call] = []
        self.gradients: list[tuple[Any, Tensor]] = []  # in the order of the backward
        self.ends: dict[
            Any, list[tuple[_Call, str]]
        ] = {}  # of each tensor: which calls it goes into or out of
        self._inside: list[_Call] = []
        self._nodes: list[Any] = []  # kept alive so that ids stay unique
        self._handles: list[Any] = []
        for name, one in root.named_modules():
            before = one.register_forward_pre_hook(partial(self._before, name), with_kwargs=True)
            after = one.register_forward_hook(self._after, with_kwargs=True)
            self._handles += [before, after]
        # Before the forward, which updates buffers.
        held = (*root.named_parameters(), *root.named_buffers())
        self.broken = {name: ~one.detach().isfinite().all() for name, one in held}
        for name, parameter in root.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(partial(self._gradient, name))

    def remove(self) -> None:
        for one in self._handles:
            one.remove()

    def _before(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = [("", args[0]), *tensors(kwargs)] if len(args) == 1 and isinstance(args[0], Tensor) else None
        given = given or list(tensors((*args, kwargs) if kwargs else args))
        above = self._inside[-1] if self._inside else None
        call = _Call(name, module, above, [Statistics.of(path, one) for path, one in given])
        self._inside.append(call)
        self.started.append(call)
        self._ends(call, "in", given)

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self._inside.pop()
        call.outputs = [Statistics.of(path, one) for path, one in tensors(output)]
        self.calls.append(call)
        self._ends(call, "out", tensors(output))

    def _ends(self, call: _Call, role: str, found: Any) -> None:
        for _, one in found:
            if not one.requires_grad:
                continue
            node = one if one.grad_fn is None else one.grad_fn
            key = (id(node), one.output_nr)
            if key not in self.ends:
                self.ends[key] = []
                self._nodes.append(node)
                one.register_hook(partial(self._gradient, key))
            self.ends[key].append((call, role))

    def _gradient(self, key: Any, gradient: Tensor) -> None:
        if not gradient.is_sparse:
            self.gradients.append((key, gradient.isfinite().all()))


def replay(
    module: LightningModule,
    batch: Any,
    batch_idx: int,
    randomness: Mapping[str, Any],
    *,
    factor: float = 1.0,
    context: Callable[[], AbstractContextManager] = nullcontext,
    start: bool = False,
) -> tuple[Diagnosis, Mapping[str, Any]]:
    """Run one micro-batch's forward and backward again, on this rank alone, and say where it goes wrong.

    Afterwards parameters, gradients, buffers, metrics, attributes, logs and random states are as before.

    Args:
        module: Any LightningModule with automatic optimization.
        batch: On the module's device.
        batch_idx: Its number in the epoch.
        randomness: As `random_state` gave it before the step.
        factor: What the loss is multiplied by before the backward: loss scale / accumulated batches.
        context: Of the trainer's precision.
        start: Call the module's `on_train_batch_start` first, which may seed.
    Returns:
        The diagnosis, and the random state right before training_step.
    """
    device = module.device
    before = random_state(device)
    try:
        trial = trial_copy(module)
        set_random_state(randomness, device)
        with ExitStack() as stack:
            aside = stack.enter_context(Aside(module))
            stack.callback(aside.take_back)
            stack.enter_context(torch.enable_grad())
            if start:
                trial.on_train_batch_start(batch, batch_idx)
            randomness = random_state(device)
            return _diagnose(trial, batch, batch_idx, factor, context), randomness
    except Exception as error:  # an error in the replay must not end the run
        return Diagnosis("error", error=f"{type(error).__name__}: {error}"), randomness
    finally:
        set_random_state(before, device)


def _diagnose(
    trial: LightningModule,
    batch: Any,
    batch_idx: int,
    factor: float,
    context: Callable[[], AbstractContextManager],
) -> Diagnosis:
    watch = _Watch(trial)
    indexed = is_param_in_hook_signature(trial.training_step, "batch_idx", min_args=2)
    with context():
        output = trial.training_step(*((batch, batch_idx) if indexed else (batch,)))
    watch.remove()
    loss = output["loss"] if isinstance(output, Mapping) else output
    if loss is None:
        return Diagnosis("error", error="training_step gave no loss this time")
    if loss.isfinite().all():
        trial.backward(loss * factor)
        found = _backward(watch)
    else:
        found = _forward(watch)
    found.loss = loss.item()
    return found


def _forward(watch: _Watch) -> Diagnosis:
    wrong = next((call for call in watch.calls if call.wrong), None)
    if wrong is not None:
        inner = [one for one in watch.started if one.above is wrong and any(i.bad for i in one.inputs)]
        inside = f"{wrong.name}." if wrong.name else ""
        broken = [
            name.removeprefix(inside) for name, bad in watch.broken.items() if name.startswith(inside) and bad
        ]
        near = _below(inner[0], wrong) if inner else ""
        return Diagnosis("forward", wrong.title, near=near, inputs=wrong.inputs, broken=broken)
    touched = next((one for one in watch.started if any(i.bad for i in one.inputs)), None)
    if touched is not None:
        return Diagnosis("input", touched.title, inputs=touched.inputs)
    return Diagnosis("loss", inputs=watch.calls[-1].outputs if watch.calls else [])


def _backward(watch: _Watch) -> Diagnosis:
    first = None
    for key, finite in watch.gradients:
        if not finite:
            first = key if first is None else first
            for call, role in watch.ends.get(key, ()):
                call.bad_gradient |= role == "out"
    if first is None:
        return Diagnosis("none")
    if isinstance(first, str):  # a parameter
        owner = first.rpartition(".")[0]
        calls = [call for call in watch.calls if call.name == owner]
        title = calls[0].title if calls else owner or "the LightningModule"
        return Diagnosis("backward", title, parameter=first, inputs=calls[0].inputs if calls else [])
    ends = watch.ends[first]
    guilty = [call for call, role in ends if role == "in" and not call.bad_gradient]
    if guilty:
        inner = max(guilty, key=_Call.depth)
        return Diagnosis("backward", inner.title, inputs=inner.inputs)
    # It came out of a module and met its bad derivative before the next one.
    last = min((call for call, role in ends if role == "out"), key=_Call.depth, default=None)
    if last is None:
        return Diagnosis("backward", "training_step")
    where = last.above.title if last.above else "training_step"
    return Diagnosis("backward", where, near=last.name, inputs=last.outputs)


def _below(call: _Call, above: _Call) -> str:
    return call.name.removeprefix(above.name).lstrip(".")
