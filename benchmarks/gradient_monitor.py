"""What it costs to watch the gradients of a training step, and how often that makes the host wait.

    python benchmarks/gradient_monitor.py [--steps 60] [--device cuda]

Runs of the small shipped VLM through VLMModule, batch 32: with LoRA as in `configs/quickstart.yaml`, and with
all of it trained. The contenders take turns,
step by step, so that all meet the same machine; the time of their hooks is held against the rest of the step
(medians, in the same process):
- "GradientMonitor": seven statistics of each part and in total, logged (the others log nothing).
- "..., no update ratio": without a copy of the weights.
- "..., skip": decides before the step, so that the norms are waited for.
- "grad_norm": `lightning.pytorch.utilities.grad_norm`: norms of all tensors and in total.
- "three .item() a tensor": mean, standard deviation and largest magnitude of each tensor.

Copies to the host are counted on a GPU that is only pretended: the same shapes as fake tensors, with each
copy and each request for a value seen by a dispatch mode.
"""

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_vlm import VLMDataModule, VLMModule

# isort: split
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import grad_norm
from lightning_vlm_callbacks import GradientMonitor

from lightning_vlm.data.drawn import Drawn

BATCH, WARM = 32, 5


def three_items(module: nn.Module) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and largest magnitude, each copied to the host by itself."""
    found = {}
    for name, one in module.named_parameters():
        if one.grad is not None:
            found[name] = {
                "mean": one.grad.mean().item(),
                "std": one.grad.std().item(),
                "max": one.grad.abs().max().item(),
            }
    return found


class Function(Callback):
    """A function of the module, where gradients are complete."""

    def __init__(self, function: Callable[[nn.Module], Any]) -> None:
        self.function = function

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.function(pl_module)


def contenders() -> dict[str, Callback]:
    options: dict[str, Any] = {"every_n_steps": 1}
    return {
        "GradientMonitor": GradientMonitor(**options),
        "..., no update ratio": GradientMonitor(**options, update_ratio=False),
        "..., skip": GradientMonitor(**options, on_anomaly="skip"),
        "grad_norm": Function(lambda module: grad_norm(module, 2)),
        "three .item() a tensor": Function(three_items),
    }


class Race(Callback):
    """Lets the contenders take turns, and times their hooks and the steps."""

    def __init__(self, device: str) -> None:
        self.device, self.contenders = device, contenders()
        self.hooks: defaultdict[str, list[float]] = defaultdict(list)
        self.steps: list[float] = []

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def setup(self, *arguments: Any, **options: Any) -> None:
        for one in self.contenders.values():
            one.setup(*arguments, **options)

    def on_train_start(self, *arguments: Any) -> None:
        for one in self.contenders.values():
            one.on_train_start(*arguments)
        self.end = self.now()

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.name = list(self.contenders)[trainer.global_step % len(self.contenders)]
        self.spent = 0.0

    def timed(self, hook: str, *arguments: Any) -> None:
        start = self.now()
        # Of a monitor this also reads what it measured at its turn before.
        getattr(self.contenders[self.name], hook)(*arguments)
        self.spent += self.now() - start

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        self.timed("on_before_optimizer_step", *arguments)

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.timed("on_train_batch_end", *arguments)
        self.hooks[self.name].append(self.spent)
        self.steps.append(self.now() - self.end - self.spent)
        self.end = self.now()


PLANS: dict[str, dict[str, Any]] = {
    "projector and LoRA": {"projector": "full", "language": {"lora": {"r": 16}}},
    "everything": dict.fromkeys(("vision", "projector", "language"), "full"),
}


def race(plan: str, steps: int, device: str) -> tuple[Race, dict[str, torch.Size]]:
    """The times, and the shapes of what was trained."""
    one = Race(device)
    module = VLMModule(
        "drawn-vlm",
        adapt=PLANS[plan],
        no_gradient_needed=["model.model.vision_tower.post_layernorm"],
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=steps,
            accelerator=device.replace("cuda", "gpu"),
            devices=1,
            logger=CSVLogger(folder),
            callbacks=[one],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        source = Drawn("train", size=BATCH * steps, tasks=["vqa", "caption", "referring"])
        trainer.fit(module, VLMDataModule(train=source, batch_size=BATCH, num_workers=1))
    return one, {name: weight.shape for name, weight in module.named_parameters() if weight.requires_grad}


class Copies(TorchDispatchMode):
    """Counts copies from the pretended GPU to the host; a value that is asked for is a half."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = self.waited = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name, options = str(function), options or {}
        on_gpu = bool(arguments) and getattr(arguments[0], "is_cuda", False)
        if "_local_scalar_dense" in name or "is_nonzero" in name:
            self.begun, self.waited = self.begun + on_gpu, self.waited + on_gpu
            return 0.5
        if "_to_copy" in name and on_gpu and str(options.get("device", "cuda")) == "cpu":
            self.begun, self.waited = self.begun + 1, self.waited + (not options.get("non_blocking"))
        return function(*arguments, **options)


class Fake(nn.Module):
    """The trained parameters, with gradients, on a GPU that isn't there."""

    def __init__(self, shapes: dict[str, torch.Size]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            one = nn.Parameter(torch.empty(shape, device="cuda"))
            one.grad = torch.empty(shape, device="cuda")
            self.register_parameter(name.replace(".", "/"), one)


def copies(shapes: dict[str, torch.Size]) -> dict[str, tuple[int, int]]:
    """How many copies a step of each contender begins, and how many of them the host waits for at once."""
    stream = SimpleNamespace(record_event=lambda: SimpleNamespace(synchronize=lambda: None))
    real, found = torch.tensor, {}

    def tensor(values: Any, **options: Any) -> torch.Tensor:
        """Of a list of tensors torch.tensor asks for each value, in a place where no mode sees it."""
        return real([one.item() if isinstance(one, torch.Tensor) else one for one in values], **options)

    pretended = (
        patch.multiple(torch, tensor=tensor),
        patch("torch.cuda.current_stream", lambda device: stream),
    )
    with FakeTensorMode(), pretended[0], pretended[1], torch.no_grad():
        fake: Any = Fake(shapes)
        for name, one in contenders().items():
            trainer: Any = SimpleNamespace(
                global_step=0,
                precision_plugin=None,
                optimizers=[],
                loggers=[],
                strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
            )
            with Copies() as seen:
                one.on_train_start(trainer, fake)
                one.on_before_optimizer_step(trainer, fake, fake)
                one.on_train_batch_end(trainer, fake, None, None, 0)
                one.on_train_end(trainer, fake)
            found[name] = (seen.begun, seen.waited)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    for plan in PLANS:
        show(plan, given.steps, given.device)


def show(plan: str, steps: int, device: str) -> None:
    """Run one plan and print its table."""
    times, shapes = race(plan, steps, device)
    counts = copies(shapes)
    step = statistics.median(times.steps[WARM:])
    millions = sum(shape.numel() for shape in shapes.values()) / 1e6
    trained = f"{plan} trained: {len(shapes)} tensors, {millions:.2f}M weights, {device}"
    table = Table(title=f"{trained}; a step without: {step * 1e3:.0f} ms")
    for column in ("", "ms per step", "share of a step", "× ours", "copies to the host", "waited for"):
        table.add_column(column, justify="right" if column else "left")
    spent = {name: statistics.median(found[1:]) for name, found in times.hooks.items()}
    for name, seconds in spent.items():
        ratio = seconds / spent["GradientMonitor"]
        cells = f"{seconds * 1e3:.2f}", f"{seconds / step:.2%}", f"{ratio:.2f}"
        table.add_row(name, *cells, *map(str, counts[name]))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
