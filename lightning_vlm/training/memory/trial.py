"""Training steps that are made only to be measured, and leave no trace on a run."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_vlm_callbacks.modes import hold_modes, release_modes
from lightning_vlm_callbacks.run_length import longest_window
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.data.batch.lengths import SampleLength, patches_of
from lightning_vlm.training.memory.meter import Meter
from lightning_vlm.training.memory.search import Point
from lightning_vlm.training.optimizer_steps import OptimizerSteps
from lightning_vlm.training.resume import AccumulationWindow

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule


class Trial:
    """Makes the forward and backward of a training step on batches, and measures them.

    Args:
        module: On its device, with nothing of the fit begun.
        render: Makes a batch of samples.
        patch: Pixels along a side of a patch.
        meter: Measures.
    """

    def __init__(
        self, module: "VLMModule", render: Callable[[Sequence[int]], Batch], patch: int, meter: Meter
    ) -> None:
        self._module = module
        self._render = render
        self._patch = patch
        self._meter = meter
        self.size = SampleLength(0, 0)
        """Of the last batch, whether it fitted or not."""
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._trained = trained
        # From the second micro-batch of a step on, gradients are there before the forward.
        self._accumulates = longest_window(module.trainer) > 1

    def __call__(self, samples: Sequence[int]) -> Point:
        """Measure a step on a batch.

        Raises:
            torch.OutOfMemoryError: There isn't enough memory.
        """
        module = self._module
        batch = self._render(samples)
        batch = module.trainer.precision_plugin.convert_input(batch)
        batch = batch._replace(targets=module.targets(batch))
        self.size = SampleLength(batch.inputs["input_ids"].numel(), patches_of(batch.inputs, self._patch))
        problem = None
        try:
            peak = self._meter.peak(lambda: self._step(batch))
        except torch.OutOfMemoryError as error:
            problem = str(error)  # the error itself holds on to all tensors of the step
        for parameter in self._trained:
            parameter.grad = None
        if problem is not None:
            self._meter.clean()
            raise torch.OutOfMemoryError(problem)
        return Point(self.size, max(peak, self._update()))

    def _step(self, batch: Batch) -> None:
        module = self._module
        if self._accumulates:
            for parameter in self._trained:
                parameter.grad = torch.zeros_like(parameter)
        moved = move_data_to_device(batch, module.device)
        with module.trainer.precision_plugin.train_step_context():
            loss: Any = module.training_step(moved, 0)
        if isinstance(loss, Tensor):
            module.backward(loss)

    def _update(self) -> int:
        """What an update of the weights takes: gradients, and as much again for what is computed of them."""
        return 2 * sum(parameter.nbytes for parameter in self._trained)


@contextmanager
def without_a_trace(module: "VLMModule") -> Iterator[None]:
    """A context in which training steps can be made. Afterwards all is as it was, random numbers too.

    Args:
        module: With its model and its tasks, before the fit has begun.
    """
    of_run = (module.steps, module.tasks, module.callbacks)
    training = [part for part in module.modules() if part.training]
    buffers = {name: buffer.clone() for name, buffer in module.trained.buffers().items()}
    tasks = deepcopy(module.tasks)
    module.steps = OptimizerSteps(AccumulationWindow(), tasks)
    module.tasks = tasks
    module.callbacks = type(module.callbacks)()
    silenced = ("log", "log_dict")
    for name in silenced:
        module.__dict__[name] = _say_nothing
    try:
        with isolate_rng():
            hold_modes(module.model)
            yield
    finally:
        release_modes(module.model)
        module.eval()
        for part in training:
            part.training = True
        for name, buffer in module.trained.buffers().items():
            buffer.copy_(buffers[name])
        for name in silenced:
            del module.__dict__[name]
        module.steps, module.tasks, module.callbacks = of_run


def _say_nothing(*_: Any, **__: Any) -> None:
    """Stands in for `log`, which only works while a loop runs."""


def state_bytes(make: Callable[[Any], Optimizer], parameters: Sequence[nn.Parameter]) -> int:
    """The bytes that an optimizer will keep for its parameters.

    It is asked to make a step on a small one of each dtype.

    Args:
        make: From parameters to the optimizer.
        parameters: All that train.

    >>> state_bytes(torch.optim.AdamW, [nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))])
    4000
    """
    total = 0.0
    for dtype in {parameter.dtype for parameter in parameters}:
        of_dtype = [parameter for parameter in parameters if parameter.dtype == dtype]
        small = nn.Parameter(torch.zeros(128, 128, dtype=dtype, device=of_dtype[0].device))
        small.grad = torch.zeros_like(small)
        optimizer = make([small])
        optimizer.step(lambda: 0.0)
        states = [value for value in optimizer.state[small].values() if isinstance(value, Tensor)]
        kept = sum(state.nbytes for state in states if state.numel() > 1)
        total += kept / small.numel() * sum(parameter.numel() for parameter in of_dtype)
    return int(total)
