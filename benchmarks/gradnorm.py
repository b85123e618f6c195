"""What GradNorm adds to a training step, against other ways to the gradients of each task.

    python benchmarks/gradnorm.py [--rounds 24] [--hidden 384] [--layers 8] [--device cuda]

A Llama with random weights, 20 samples of 64 tokens, each of one of 5 tasks; AdamW; weights of tasks change
in each step. Contenders take turns, step by step, in one run of the Trainer, in a new order in each round; a
step is held against the plain one of its round (medians and quartiles over the rounds). On a CPU it is the
processor's time that counts, all threads together, which other programs hardly change:
- "plain": the step without GradNorm.
- "GradNorm": tasks of rows, so all gradients come from the step's one backward.
- "..., total": GradNorm with `TaskWeights.total`, which differentiates each task's loss by itself.
- "autograd.grad": as many calls by hand for the layer's weight, and nothing done with the norms.
- "all weights": as many calls for all trained weights, whose norms it takes.

Those that differentiate by themselves can't where the layer is frozen. "frozen" is a layer with LoRA around
it, "LoRA" the last LoRA B, which is what GradNorm takes by default there.
"""

import argparse
import logging
import random
import statistics
import time
from collections import defaultdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import lightning_vlm  # noqa: F401

# isort: split
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_vlm_callbacks import GradNorm, TaskWeights
from peft import LoraConfig, inject_adapter_in_model
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM

TASKS, BATCH, TOKENS, WORDS, WARM = 5, 20, 64, 8192, 2
CONTENDERS = ("plain", "GradNorm", "..., total", "autograd.grad", "all weights")
Turns = list[tuple[int, str]]
"""Round and contender of each step."""


def turns(rounds: int, able: bool) -> Turns:
    """Who is to run when.

    Args:
        able: Whether those can run that differentiate by themselves. That of all weights, which takes long
            and is far off, is in every fourth round.
    """
    chance, found = random.Random(0), []
    for number in range(rounds):
        names = CONTENDERS[: (5 if number % 4 == WARM else 4) if able else 2]
        found += [(number, name) for name in chance.sample(names, len(names))]
    return found


class Batches(Dataset):
    """All contenders of a round get the same batch."""

    def __init__(self, steps: Turns) -> None:
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        chance = torch.Generator().manual_seed(self.steps[index][0])
        words = torch.randint(WORDS, (BATCH, TOKENS), generator=chance)
        return words, torch.arange(BATCH)[torch.randperm(BATCH, generator=chance)] % TASKS


class Mixture(LightningModule):
    """A language model; `way` says how the step finds the gradients of tasks."""

    def __init__(self, hidden: int, layers: int, lora: bool, layer: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=WORDS,
            hidden_size=hidden,
            intermediate_size=11 * hidden // 4,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            use_cache=False,
        )
        self.model: Any = LlamaForCausalLM(config)
        if lora:
            inject_adapter_in_model(LoraConfig(r=16, target_modules="all-linear"), self.model.model)
            for name, weight in self.model.named_parameters():
                weight.requires_grad_("lora_" in name)
        self.tasks = TaskWeights([f"task{number}" for number in range(TASKS)])
        self.layer, self.way = layer, "plain"

    def losses(self, words: Tensor) -> Tensor:
        """Of each sample, shape [batch]."""
        logits = self.model(input_ids=words).logits[:, :-1]
        each = nn.functional.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten(), reduction="none")
        return each.view(len(words), -1).mean(1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        words, ids = batch
        self.tasks.rows = None
        if self.way == "GradNorm":
            self.tasks.rows = ids.cpu()
        losses = self.losses(words)
        if self.way == "GradNorm":
            self.tasks.add_rows(losses.detach(), ids)
        if self.way in ("plain", "GradNorm"):
            return (self.tasks.weights[ids] * losses).mean()
        parts = {name: losses[ids == task].sum() / BATCH for task, name in enumerate(self.tasks.names)}
        if self.way == "..., total":
            return self.tasks.total(parts)
        weights = [self.get_submodule(self.layer).weight]
        if self.way == "all weights":
            weights = [parameter for parameter in self.parameters() if parameter.requires_grad]
        for loss in parts.values():
            found = torch.autograd.grad(loss, weights, retain_graph=True)
            self.norm = torch.cat([gradient.flatten() for gradient in found]).norm()
        return (self.tasks.weights * torch.stack(list(parts.values()))).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            [parameter for parameter in self.parameters() if parameter.requires_grad], lr=1e-4
        )


class Race(Callback):
    """Lets the contenders take turns, and times their steps."""

    def __init__(self, steps: Turns, layer: str, device: str) -> None:
        self.steps, self.device = steps, device
        self.gradnorms = {name: GradNorm(layer=layer) for name in ("GradNorm", "..., total")}
        self.seconds: defaultdict[str, dict[int, float]] = defaultdict(dict)

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for gradnorm in self.gradnorms.values():
            gradnorm.on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.round, pl_module.way = self.steps[batch_idx]
        self.start = self.now()
        if pl_module.way in self.gradnorms:
            self.gradnorms[pl_module.way].on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if pl_module.way in self.gradnorms:
            self.gradnorms[pl_module.way].on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.seconds[pl_module.way][self.round] = self.now() - self.start


def race(rounds: int, hidden: int, layers: int, lora: bool, layer: str, device: str) -> Race:
    """The times of all that can run."""
    module = Mixture(hidden, layers, lora, layer)
    steps = turns(rounds + WARM, able=module.get_submodule(layer).weight.requires_grad)
    racer = Race(steps, layer, device)
    trainer = Trainer(
        max_epochs=1,
        accelerator=device.replace("cuda", "gpu"),
        devices=1,
        precision="bf16-mixed" if device == "cuda" else "32-true",
        logger=False,
        callbacks=[racer],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, DataLoader(Batches(steps), batch_size=None))
    return racer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    down = f"model.model.layers.{given.layers - 1}.mlp.down_proj"
    plans = {
        "everything trains; down_proj": (False, down),
        "LoRA trains; the last LoRA B": (True, f"{down}.lora_B.default"),
        "LoRA trains; frozen down_proj": (True, f"{down}.base_layer"),
    }
    for plan, (lora, layer) in plans.items():
        found = race(given.rounds, given.hidden, given.layers, lora, layer, given.device)
        table = Table(title=f"{plan}, {given.layers} layers, {given.hidden} wide, {given.device}")
        for column in ("", "ms per step", "× plain", "quartiles"):
            table.add_column(column, justify="right" if column else "left")
        plain = found.seconds["plain"]
        for name in (contender for contender in CONTENDERS if contender in found.seconds):
            seconds = {number: value for number, value in found.seconds[name].items() if number >= WARM}
            ratios = [value / plain[number] for number, value in seconds.items()]
            low, _, high = statistics.quantiles(ratios, n=4)
            middle = f"{statistics.median(ratios):.3f}"
            milliseconds = f"{statistics.median(seconds.values()) * 1e3:.0f}"
            table.add_row(name, milliseconds, middle, f"{low:.3f}..{high:.3f}")
        Console(width=110).print(table)


if __name__ == "__main__":
    main()
