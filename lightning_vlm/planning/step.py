"""A step of training that is counted rather than made: how much memory it takes, and when."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, ProcessorMixin

from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.losses import batch_loss
from lightning_vlm.losses.tasks import make_task_weights
from lightning_vlm.models.loading.load import make_ready, model_without_weights
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.models.parts import find_parts, vision_tower
from lightning_vlm.models.plan.adapt import adapt
from lightning_vlm.models.plan.new_tokens import add_rows, new_token_ids, train_new_rows
from lightning_vlm.models.precision import keep_weights
from lightning_vlm.models.recompute import use_gradient_checkpointing
from lightning_vlm.models.source import ModelSource
from lightning_vlm.planning.optimizers import bitsandbytes_states, is_of_bitsandbytes
from lightning_vlm.planning.pretend import Pretence
from lightning_vlm.planning.quantised import pretend_quantised
from lightning_vlm.training.memory.meter import AllocationCounter

UNLIMITED = 2**62
TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Method(NamedTuple):
    """What is trained, and how.

    Args:
        name: For people.
        plan: As `model.adapt`.
        quantization: What is quantised, if anything.
    """

    name: str
    plan: dict[str, Any]
    quantization: Quantization | None = None


class Need(NamedTuple):
    """The bytes that a step needs.

    Args:
        weights: Of all parameters and buffers.
        states: Of the optimizer.
        gradients: Of all that trains.
        vision: Kept for the backward by the vision side.
        language: Likewise by the language model.
        loss: Likewise by the loss.
        forward: The most at once of forward and backward, gradients included.
        update: The most at once of the optimizer's step, gradients included.
        buckets: What DDP sends gradients from.
    """

    weights: int
    states: int
    gradients: int
    vision: int
    language: int
    loss: int
    forward: int
    update: int
    buckets: int = 0

    @property
    def held(self) -> int:
        """What is there all the time."""
        return self.weights + self.states + self.buckets

    @property
    def step(self) -> int:
        """What a step takes beyond that."""
        return max(self.forward, self.update)

    @property
    def peak(self) -> int:
        """The most at once."""
        return self.held + self.step


def skeleton(
    source: ModelSource, method: Method, precision: str, processor: ProcessorMixin | None = None
) -> PreTrainedModel:
    """A model as it would be trained, on the meta device.

    Args:
        source: How the model is made; its plan and its quantisation don't matter.
        method: What is trained.
        precision: As of a Trainer.
        processor: Only new tokens need it.

    Raises:
        UserError: As in a fit.
    """
    source = replace(source, plan=method.plan, quantization=method.quantization)
    options: dict[str, Any] = {} if source.dtype == "auto" else {"dtype": getattr(torch, source.dtype)}
    if source.attn_implementation not in (None, "auto", "flash_varlen"):
        options["attn_implementation"] = source.attn_implementation
    model = model_without_weights(
        source.name_or_path,
        revision=source.revision,
        trust_remote_code=source.trust_remote_code,
        family=source.hooks,
        **options,
    )
    make_ready(model, source.attn_implementation)
    with torch.device("meta"):
        if method.quantization:
            pretend_quantised(model, method.quantization)
        if processor is not None and source.new_tokens:
            add_rows(model, new_token_ids(processor, source.new_tokens))
        adapt(model, method.plan, find_parts(model))
        train_new_rows(model)
    if precision in MIXED and source.dtype == "auto":
        keep_weights(model, MIXED[precision])
    if precision in TRUE:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(TRUE[precision])
    return model


class CountedStep:
    """Counts what steps of a model take.

    Args:
        model: As from `skeleton`; takes weights without values here.
        precision: As of a Trainer.
        make_optimizer: From what trains to the optimizer; None counts no update.
        accumulates: Whether gradients of an earlier micro-batch are there before the forward.
        more: The losses of boxes and masks, as of `batch_loss.task_sums`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        precision: str,
        make_optimizer: Callable[[Any], Optimizer] | None,
        accumulates: bool,
        more: Sequence[Any] = (None, None),
    ) -> None:
        self._pretence = Pretence()
        self._pretence.take_weights(model)
        self._model = model
        self._autocast = MIXED.get(precision)
        self._make_optimizer = make_optimizer
        self._accumulates = accumulates
        self._more = more
        self._updates: dict[int, tuple[int, int]] = {}
        self.trained = [weight for weight in model.parameters() if weight.requires_grad]
        self.weights = storage_bytes([*model.parameters(), *model.buffers()])

    def recompute(self, on: bool) -> None:
        """Use gradient checkpointing, or don't."""
        use_gradient_checkpointing(self._model, on)

    def __call__(self, batch: Batch) -> Need:
        """Count the bytes of a step on a batch of the training data, with its targets."""
        counter = AllocationCounter(UNLIMITED)
        marks = _Marks(self._model, counter)
        with self._pretence, counter:
            if self._accumulates:
                for weight in self.trained:
                    weight.grad = torch.zeros_like(weight)
            before = counter.live
            with marks:
                loss = self._loss(batch)
            kept = counter.live - before
            loss.backward()
            del loss
            forward = counter.peak
            gradients = sum(weight.grad.nbytes for weight in self.trained if weight.grad is not None)
            live = counter.live
            if gradients not in self._updates:  # the same for all batches, and an eighth of the time
                self._updates[gradients] = self._update(counter)
            states, more = self._updates[gradients]
            update = live + more
        for weight in self.trained:
            weight.grad = None
        vision, hidden = marks.vision, marks.hidden or kept + before
        return Need(
            weights=self.weights,
            states=states,
            gradients=gradients,
            vision=vision,
            language=max(0, hidden - before - vision),
            loss=max(0, kept - (hidden - before)),
            forward=forward,
            update=update,
        )

    def operations(self, batch: Batch) -> int:
        """Count the floating-point operations of a forward and backward, what is computed again included."""
        with self._pretence, FlopCounterMode(display=False) as counter:
            self._loss(batch).backward()
        for weight in self.trained:
            weight.grad = None
        return counter.get_total_flops()

    def _loss(self, batch: Batch) -> Tensor:
        batch = batch._replace(inputs={name: self._input(value) for name, value in batch.inputs.items()})
        assert batch.targets is not None
        tasks = make_task_weights(None, sorted(set(batch.tasks)))
        model = self._model.train()
        with torch.autocast("cpu", self._autocast) if self._autocast else nullcontext():
            return batch_loss.task_sums(model, batch, batch.targets, tasks, *self._more).loss_sum

    def _update(self, counter: AllocationCounter) -> tuple[int, int]:
        """The bytes of the optimizer's state, and the most that its step takes beside that and gradients."""
        if self._make_optimizer is None or not self.trained:
            return 0, 0
        before = counter.live
        counter.peak = before
        optimizer = self._make_optimizer(self.trained)
        if is_of_bitsandbytes(optimizer):
            return bitsandbytes_states(type(optimizer).__name__, self.trained), 0
        optimizer.step()
        found = [value for state in optimizer.state.values() for value in state.values()]
        states = storage_bytes([value for value in found if isinstance(value, Tensor)])
        return states, counter.peak - states - before

    def _input(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 1024:
            return self._pretence.without_values(value)
        return value


class _Marks:
    """Notes what is alive where parts of a forward end."""

    def __init__(self, model: PreTrainedModel, counter: AllocationCounter) -> None:
        self.vision = self.hidden = 0
        self._counter = counter
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        tower = vision_tower(self._model)
        if tower is not None:
            start: list[int] = []
            self._handles.append(tower.register_forward_pre_hook(lambda *_: start.append(self._counter.live)))
            self._handles.append(tower.register_forward_hook(lambda *_: self._end_tower(start)))
        head: Any = self._model.get_output_embeddings()
        base = getattr(self._model, self._model.base_model_prefix, None)
        if isinstance(base, nn.Module) and base is not head:
            self._handles.append(base.register_forward_hook(lambda *_: self._end_base()))

    def _end_tower(self, start: list[int]) -> None:
        self.vision += self._counter.live - start.pop()

    def _end_base(self) -> None:
        self.hidden = self._counter.live

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()


def storage_bytes(tensors: Sequence[Tensor]) -> int:
    """The bytes of some tensors, each storage once.

    >>> weight = torch.zeros(4)
    >>> storage_bytes([weight, weight[:2]])
    16
    """
    return sum({id(one.untyped_storage()): one.untyped_storage().nbytes() for one in tensors}.values())
