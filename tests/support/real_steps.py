"""What real steps of a real model take, by the records of PyTorch's allocator."""

from contextlib import nullcontext

import torch
from torch.profiler import ProfilerActivity, profile

from lightning_vlm.losses import batch_loss
from lightning_vlm.losses.tasks import make_task_weights
from lightning_vlm.models.recompute import use_gradient_checkpointing
from lightning_vlm.planning.step import MIXED, storage_bytes


def recorded_peak(run):
    """The most bytes that a function allocates at once, by the records of the allocator."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as records:
        run()
    events = [event for event in records.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


class RealStep:
    """A model with weights, and steps of it that are measured from the second on.

    Args:
        module: A VLMModule, whose model is loaded.
        precision: As of a Trainer.
    """

    def __init__(self, module, precision="32-true"):
        module.configure_model()
        self.model = module.model.train()
        self.dtype = MIXED.get(precision)
        self.trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = module.optimizer(self.trained)

    def run(self, batch):
        """The forward and backward of a step."""
        tasks = make_task_weights(None, sorted(set(batch.tasks)))
        with torch.autocast("cpu", self.dtype) if self.dtype else nullcontext():
            loss = batch_loss.task_sums(self.model, batch, batch.targets, tasks).loss_sum
        loss.backward()

    def measure(self, batch, recompute=False):
        """The bytes of weights, of the optimizer's state, and the most that a step takes beside them."""
        if recompute:
            use_gradient_checkpointing(self.model, True)
        self.run(batch)
        self.optimizer.step()
        self.optimizer.zero_grad()
        forward = recorded_peak(lambda: self.run(batch))
        gradients = sum(weight.grad.nbytes for weight in self.trained if weight.grad is not None)
        update = gradients + recorded_peak(self.optimizer.step)
        self.optimizer.zero_grad()
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return storage_bytes(tensors), storage_bytes(states), max(forward, update)
