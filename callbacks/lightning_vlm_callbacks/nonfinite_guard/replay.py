"""Runs a training step again on a copy, to find where NaN or infinity begins. The copy is discarded."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_vlm_callbacks.nonfinite_guard.batches import named_tensors
from lightning_vlm_callbacks.nonfinite_guard.diagnosis import Diagnosis, Statistics
from lightning_vlm_callbacks.nonfinite_guard.isolation import isolated
from lightning_vlm_callbacks.random_states import random_state, set_random_state

__all__ = ["replay"]


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
    try:
        with isolated(module) as twin:
            set_random_state(randomness, module.device)
            if start:
                twin.on_train_batch_start(batch, batch_idx)
            randomness = random_state(module.device)
            watch = _Watch(twin)
            with context():
                loss = _training_step(twin, batch, batch_idx)
            watch.remove_hooks()
            if loss is None:
                return Diagnosis("error", error="training_step gave no loss this time"), randomness
            if loss.isfinite().all():
                twin.backward(loss * factor)
                diagnosis = _diagnose_backward(watch, twin)
            else:
                diagnosis = _diagnose_forward(watch)
            diagnosis.loss = loss.item()
            return diagnosis, randomness
    except Exception as error:  # an error in the replay must not end the run
        return Diagnosis("error", error=f"{type(error).__name__}: {error}"), randomness


def _training_step(module: LightningModule, batch: Any, batch_idx: int) -> Tensor | None:
    if is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2):
        output: Any = module.training_step(batch, batch_idx)
    else:
        output = module.training_step(batch)
    return output["loss"] if isinstance(output, Mapping) else output


@dataclass(eq=False)
class _Call:
    """One call of a module; `parent` is the call in which it happened."""

    name: str
    module: nn.Module
    parent: "_Call | None"
    depth: int
    inputs: list[Statistics]
    outputs: list[Statistics] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.name or 'the LightningModule'} ({type(self.module).__name__})"

    @property
    def has_bad_inputs(self) -> bool:
        return any(statistics.is_bad for statistics in self.inputs)

    @property
    def has_bad_outputs(self) -> bool:
        return any(statistics.is_bad for statistics in self.outputs)


@dataclass
class _Passage:
    """A differentiable tensor: the calls that it comes out of, and those that it goes into."""

    out_of: list[_Call] = field(default_factory=list)
    into: list[_Call] = field(default_factory=list)


class _Watch:
    """Looks at what goes into and out of every module, and at the gradients of both.

    Args:
        root: Watched from now on.
    """

    def __init__(self, root: nn.Module) -> None:
        self.started: list[_Call] = []
        self.ended: list[_Call] = []
        self.first_bad_gradient: str | _Passage | None = None
        """In the order of the backward: the name of a parameter, or what passed between calls."""
        self._running: list[_Call] = []
        self._passages: dict[tuple[int, int], _Passage] = {}
        self._nodes: list[Any] = []  # kept alive so that ids stay unique
        self._handles: list[RemovableHandle] = []
        self.broken = []
        """Parameters and buffers that hold NaN or infinity before the forward, which updates some."""
        for name, tensor in (*root.named_parameters(), *root.named_buffers()):
            if not tensor.detach().isfinite().all():
                self.broken.append(name)
        for name, parameter in root.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(partial(self._see_gradient, name))
        for name, module in root.named_modules():
            before = module.register_forward_pre_hook(partial(self._start, name), with_kwargs=True)
            after = module.register_forward_hook(self._end, with_kwargs=True)
            self._handles += [before, after]

    def remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _start(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = [*named_tensors(args), *named_tensors(kwargs)]
        parent = self._running[-1] if self._running else None
        inputs = [Statistics.of(path, tensor) for path, tensor in given]
        call = _Call(name, module, parent, len(self._running), inputs)
        self._running.append(call)
        self.started.append(call)
        for passage in self._passages_of(given):
            passage.into.append(call)

    def _end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self._running.pop()
        given = list(named_tensors(output))
        call.outputs = [Statistics.of(path, tensor) for path, tensor in given]
        self.ended.append(call)
        for passage in self._passages_of(given):
            passage.out_of.append(call)

    def _passages_of(self, given: Iterable[tuple[str, Tensor]]) -> Iterable[_Passage]:
        for _, tensor in given:
            if not tensor.requires_grad:
                continue
            node = tensor if tensor.grad_fn is None else tensor.grad_fn
            key = (id(node), tensor.output_nr)
            if key not in self._passages:
                passage = self._passages[key] = _Passage()
                self._nodes.append(node)
                tensor.register_hook(partial(self._see_gradient, passage))
            yield self._passages[key]

    def _see_gradient(self, place: str | _Passage, gradient: Tensor) -> None:
        if self.first_bad_gradient is None and not gradient.is_sparse and not gradient.isfinite().all():
            self.first_bad_gradient = place


def _diagnose_forward(watch: _Watch) -> Diagnosis:
    """Inner calls end before the outer ones, so the first that made something bad is the innermost."""
    for call in watch.ended:
        if call.has_bad_outputs and not call.has_bad_inputs:
            return _made_in(call, watch)
    for call in watch.started:
        if call.has_bad_inputs:
            return Diagnosis("input", call.title, inputs=call.inputs)
    return Diagnosis("loss", inputs=watch.ended[-1].outputs if watch.ended else [])


def _made_in(call: _Call, watch: _Watch) -> Diagnosis:
    prefix = f"{call.name}." if call.name else ""
    broken = [name.removeprefix(prefix) for name in watch.broken if name.startswith(prefix)]
    near = ""
    for inner in watch.started:
        if inner.parent is call and inner.has_bad_inputs:
            near = inner.name.removeprefix(prefix)
            break
    return Diagnosis("forward", call.title, near=near, inputs=call.inputs, broken=broken)


def _diagnose_backward(watch: _Watch, module: nn.Module) -> Diagnosis:
    first = watch.first_bad_gradient
    if first is None:
        return _diagnose_size(module)
    if isinstance(first, str):
        owner = first.rpartition(".")[0]
        for call in watch.ended:
            if call.name == owner:
                return Diagnosis("backward", call.title, parameter=first, inputs=call.inputs)
        return Diagnosis("backward", owner or "the LightningModule", parameter=first)
    # The gradient of what went in is bad, and that of what came out wasn't.
    guilty = [call for call in first.into if call not in first.out_of]
    if guilty:
        inner = max(guilty, key=lambda call: call.depth)
        return Diagnosis("backward", inner.title, inputs=inner.inputs)
    if not first.out_of:
        return Diagnosis("backward", "training_step")
    # It came out of a module and met its bad derivative before the next one.
    last = min(first.out_of, key=lambda call: call.depth)
    where = last.parent.title if last.parent else "training_step"
    return Diagnosis("backward", where, near=last.name, inputs=last.outputs)


def _diagnose_size(module: nn.Module) -> Diagnosis:
    """Of gradients that are all finite: whether float32 holds their squares."""
    gradients = {name: one.grad.float() for name, one in module.named_parameters() if one.grad is not None}
    if nn.utils.get_total_norm(gradients.values()).isfinite():
        return Diagnosis("none")
    return Diagnosis("large", parameter=max(gradients, key=lambda name: gradients[name].abs().max().item()))
