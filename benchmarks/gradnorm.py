"""What GradNorm adds to a training step, against other ways to the gradients of each task.

    python benchmarks/gradnorm.py [--rounds 12] [--hidden 384] [--layers 8] [--device cuda]

A Llama with random weights, 20 samples of 64 tokens, each of one of 5 tasks; AdamW; weights of tasks change
in each step. Contenders take turns, step by step, in one run of the Trainer, in a new order in each round; a
step is held against the plain one of its round (medians and quartiles over the rounds). On a CPU it is the
processor's time that counts, all threads together, which other programs hardly change:
- "plain": the step without GradNorm.
- "GradNorm": tasks of rows, so all gradients come from the step's one backward.
- "..., total": GradNorm with `TaskWeights.total`, which differentiates each task's loss by itself.
- "autograd.grad": as many calls by hand for the layer's weight, and nothing done with the norms.
- "seed": as many calls for all trained weights, whose norms it takes (seed, 3.2.2).

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
CONTENDERS = ("plain", "GradNorm", "..., total", "autograd.grad", "seed")
ONE_BACKWARD = CONTENDERS[:2]


class Batches(Dataset):
    """Each is there once for every contender."""

    def __init__(self, rounds: int, contenders: int) -> None:
        self.size, self.contenders = rounds * contenders, contenders

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        chance = torch.Generator().manual_seed(index // self.contenders)
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
        if self.way == "seed":
            weights = [one for one in self.parameters() if one.requires_grad]
        for loss in parts.values():
            found = torch.autograd.grad(loss, weights, retain_graph=True)
            self.norm = torch.cat([one.flatten() for one in found]).norm()
        return (self.tasks.weights * torch.stack(list(parts.values()))).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([one for one in self.parameters() if one.requires_grad], lr=1e-4)


class Race(Callback):
    """Lets the contenders take turns, and times their steps."""

    def __init__(self, names: tuple[str, ...], layer: str, device: str) -> None:
        self.names, self.device, self.chance = names, device, random.Random(0)
        ours = [name for name in names if name in ("GradNorm", "..., total")]
        self.gradnorms = {name: GradNorm(layer=layer, picture=False) for name in ours}
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for one in self.gradnorms.values():
            one.on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        turn = batch_idx % len(self.names)
        if turn == 0:
            self.order = self.chance.sample(self.names, len(self.names))
        pl_module.way = self.order[turn]
        self.start = self.now()
        if pl_module.way in self.gradnorms:
            self.gradnorms[pl_module.way].on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if pl_module.way in self.gradnorms:
            self.gradnorms[pl_module.way].on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.seconds[pl_module.way].append(self.now() - self.start)


def race(rounds: int, hidden: int, layers: int, lora: bool, layer: str, device: str) -> Race:
    """The times of all that can run."""
    module = Mixture(hidden, layers, lora, layer)
    able = module.get_submodule(layer).weight.requires_grad
    one = Race(CONTENDERS if able else ONE_BACKWARD, layer, device)
    trainer = Trainer(
        max_epochs=1,
        accelerator=device.replace("cuda", "gpu"),
        devices=1,
        precision="bf16-mixed" if device == "cuda" else "32-true",
        logger=False,
        callbacks=[one],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, DataLoader(Batches(rounds + WARM, len(one.names)), batch_size=None))
    return one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=12)
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
        seconds = {name: times[WARM:] for name, times in found.seconds.items()}
        table = Table(title=f"{plan}, {given.layers} layers, {given.hidden} wide, {given.device}")
        for column in ("", "ms per step", "× plain", "quartiles"):
            table.add_column(column, justify="right" if column else "left")
        for name in found.names:
            ratios = [one / plain for one, plain in zip(seconds[name], seconds["plain"], strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            middle = f"{statistics.median(ratios):.3f}"
            milliseconds = f"{statistics.median(seconds[name]) * 1e3:.0f}"
            table.add_row(name, milliseconds, middle, f"{low:.3f}..{high:.3f}")
        Console(width=110).print(table)


if __name__ == "__main__":
    main()
