"""Whether moving LoRA's rank between layers pays: known ranks, and the small shipped VLM.

    python benchmarks/adaptive_rank.py [--seeds 5] [--tasks flat falling easy-VQA backwards]

Without `--tasks` the first two, a quarter of an hour on two cores; each of the others takes twice as long.

Contenders have the same budget of rank and the same steps. The learning rate is the best for "uniform" on the
first seed; AdaLoRA has its own best, and the weight of its penalty is chosen too, which at 0.5 spoils it:
- "uniform": PEFT's LoRA, every layer of the same rank.
- "AdaLoRA", "AdaLoRA 0.05" (the weight): PEFT's, from 1.5 times the rank, driven as it should be: called
  after each step with gradients still there, its penalty added to the loss, the number of steps known.
- "squared gradients": importance from the squared gradients of batches at the start, shares rounded down.
- "sensitivity", "fisher", "activation": AdaptiveLoRARank.

"Known ranks": a frozen random network learns a teacher, which is the same network plus an unequal rank in
each of 12 layers, 96 in all. All of a layer's directions have one size ("flat"), or their sizes fall and
differ between layers ("falling"). "known" has the teacher's ranks from the start: what could be reached.
"off" is how many ranks are in the wrong place: half the sum of differences from the teacher's.

"VLM": drawn-vlm through VLMModule with LoRA in tower and language model (46 layers), two tasks: easy-VQA, and
drawn pictures whose answers are spelled backwards.
"""

import argparse
import io
import logging
import math
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_vlm import VLMDataModule, VLMModule

# isort: split
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning_vlm_callbacks import AdaptiveLoRARank
from peft import AdaLoraConfig, LoraConfig, inject_adapter_in_model
from peft.tuners.adalora import AdaLoraModel
from torch.utils.data import DataLoader, IterableDataset

from lightning_vlm.data.conversation import Conversation, Conversations, Message, Slice, Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.read.easy_vqa import EasyVQA
from lightning_vlm.optim import Cosine

KNOWN = (1, 1, 2, 2, 4, 4, 8, 8, 12, 16, 18, 20)
RANK = sum(KNOWN) // len(KNOWN)
CONTENDERS = (
    "uniform",
    "AdaLoRA",
    "AdaLoRA 0.05",
    "squared gradients",
    "sensitivity",
    "fisher",
    "activation",
)
RATES = (3e-3, 1e-2, 3e-2, 1e-1)
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}
VLM_RANK, VLM_RATES = 4, (2e-3, 6e-3)


class Result(NamedTuple):
    """What a run came to: times are of all training; ranks by layer, as used in the end."""

    loss: float
    seconds: float
    trained: int
    state: int
    ranks: dict[str, int]


# The problem with a known answer


class Block(nn.Module):
    def __init__(self, wide: int, inner: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(wide), nn.Linear(wide, inner), nn.Linear(inner, wide)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def network() -> nn.Sequential:
    return nn.Sequential(*(Block(48, 96) for _ in range(6)))


def teach(base: nn.Module, seed: int, falling: bool) -> tuple[nn.Module, dict[str, int]]:
    """A teacher and its ranks."""
    chance = torch.Generator().manual_seed(seed)
    teacher = network()
    teacher.load_state_dict(base.state_dict())
    names = [f"{i}.{name}" for i in range(6) for name in ("up", "down")]
    ranks = dict(zip(names, (KNOWN[i] for i in torch.randperm(12, generator=chance)), strict=True))
    for name, rank in ranks.items():
        weight = teacher.get_submodule(name).weight
        u, v = (torch.linalg.qr(torch.randn(n, rank, generator=chance))[0] for n in weight.shape)
        sizes = torch.full((rank,), 0.6)
        if falling:
            low, high = math.log(0.4), math.log(1.6)
            factor = torch.empty(1).uniform_(low, high, generator=chance).exp()
            sizes = sizes * factor * (torch.linspace(1.5, 0.3, rank) if rank > 1 else 1.0)
        weight.data += u * sizes @ v.T
    return teacher.requires_grad_(False), ranks


class Batches(IterableDataset[Tensor]):
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Iterator[Tensor]:
        chance = torch.Generator().manual_seed(self.seed)
        while True:
            yield torch.randn(64, 48, generator=chance)


class Learner(LightningModule):
    """A student with adapters, and its teacher."""

    def __init__(self, seed: int, falling: bool, rate: float) -> None:
        super().__init__()
        seed_everything(seed, verbose=False)
        self.model: Any = network()
        self.teacher, self.known = teach(self.model, seed, falling)
        self.rate, self.tuner = rate, None

    def loss(self, x: Tensor) -> Tensor:
        return (self.model(x) - self.teacher(x)).square().mean()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            [parameter for parameter in self.parameters() if parameter.requires_grad],
            lr=self.rate,
            weight_decay=0.0,
        )
        steps = self.trainer.max_steps
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.02, 1 - step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def learn(contender: str, seed: int, task: str, rate: float, steps: int) -> tuple[Result, dict[str, int]]:
    def fresh(rate: float) -> Any:
        return Learner(seed, task == "falling", rate)

    data = DataLoader(Batches(seed + 100), batch_size=None)
    known = fresh(rate).known
    start = known if contender == "known" else dict.fromkeys(known, RANK)
    module, result = run(contender, fresh, rate, data, start, steps)
    x = torch.randn(4096, 48, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        return result._replace(loss=float(module.loss(x))), known


# Contenders


def run(
    contender: str, fresh: Callable[[float], Any], rate: float, data: Any, ranks: dict[str, int], steps: int
) -> tuple[Any, Result]:
    """Train a module that `fresh` makes with a learning rate; the loss is still to be found."""
    if contender == "squared gradients":
        trial, scores = fresh(1e-12), SquaredGradients()  # it learns nothing yet
        adapters(trial, contender, ranks, steps)
        train(trial, data, [scores], 10)
        ranks = scores.ranks(sum(ranks.values()))
    module = fresh(rate)
    callbacks = adapters(module, contender, ranks, steps)
    seconds, trained, state = train(module, data, callbacks, steps)
    return module, Result(math.nan, seconds, trained, state, used(module))


def adapters(module: Any, contender: str, ranks: dict[str, int], steps: int) -> list[Callback]:
    """Put a contender's adapters, of scale 1, into `module.model`."""
    names = {name: re.escape(name) for name in ranks}
    targets, rank = "|".join(names.values()), round(statistics.mean(ranks.values()))
    if contender.startswith("AdaLoRA"):
        settings = AdaLoraConfig(
            orth_reg_weight=float(contender.partition(" ")[2] or 0.5),
            target_modules=targets,
            init_r=rank + rank // 2,
            target_r=rank,
            lora_alpha=rank,
            tinit=steps // 10,
            tfinal=3 * steps // 10,
            deltaT=max(1, steps // 100),
            total_step=steps,
        )
        tuner = AdaLoraModel(module.model, {"default": settings}, "default")
        del module.model.peft_config  # by which VLMModule would look for plain LoRA
        return [Drive(tuner)]
    patterns: dict[str, Any] = {f"^{names[name]}": rank for name, rank in ranks.items()}
    config = LoraConfig(
        target_modules=targets, r=rank, lora_alpha=rank, rank_pattern=patterns, alpha_pattern=patterns
    )
    inject_adapter_in_model(config, module.model)
    if contender in ("sensitivity", "fisher", "activation"):
        bounds = {"min_rank": 2, "max_rank": 32, "multiple_of": 2}
        return [AdaptiveLoRARank(importance=contender, **bounds)]  # type: ignore[arg-type]
    return []


class Drive(Callback):
    """AdaLoRA as its authors drive it. Their penalty goes through a backward of its own."""

    def __init__(self, tuner: Any) -> None:
        self.tuner = tuner

    def on_before_optimizer_step(self, *_: Any) -> None:
        named = self.tuner.model.named_parameters()
        pairs = [
            (parameter, "lora_A" in name) for name, parameter in named if "lora_A" in name or "lora_B" in name
        ]
        grams = [matrix @ matrix.T if wide else matrix.T @ matrix for matrix, wide in pairs]
        penalty = sum((gram - torch.eye(len(gram))).norm() for gram in grams) / len(grams)
        (self.tuner.peft_config["default"].orth_reg_weight * penalty).backward()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.tuner.update_and_allocate(trainer.global_step)


class SquaredGradients(Callback):
    """Squared gradients of batches; the score of a layer is that of its tensors."""

    def __init__(self) -> None:
        self.scores: defaultdict[str, float] = defaultdict(float)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for name, parameter in pl_module.model.named_parameters():
            if parameter.grad is not None:
                self.scores[name.partition(".lora_")[0]] += float((parameter.grad**2).sum())

    def ranks(self, budget: int) -> dict[str, int]:
        total = sum(self.scores.values())
        shares = {name: int(score / total * budget) for name, score in self.scores.items()}
        return {name: min(64, max(4, share)) // 4 * 4 for name, share in shares.items()}


def used(module: Any) -> dict[str, int]:
    """The ranks in the end; of AdaLoRA what isn't masked."""
    return {
        name: int((layer.lora_E["default"] != 0).sum())
        if hasattr(layer, "lora_E")
        else layer.r.get("default", 0)
        for name, layer in module.model.named_modules()
        if hasattr(layer, "lora_A")
    }


def train(
    module: LightningModule, data: Any, callbacks: list[Callback], steps: int
) -> tuple[float, int, int]:
    """Seconds, trained parameters and bytes of optimizer state, at the end."""
    trainer = Trainer(max_steps=steps, callbacks=callbacks, limit_val_batches=0, **QUIET)
    start = time.process_time()
    with redirect_stdout(io.StringIO()):  # VLMModule prints its plan
        trainer.fit(module, data)
    seconds = time.process_time() - start
    states = [value for state in trainer.optimizers[0].state.values() for value in state.values()]
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return seconds, trained, sum(value.nbytes for value in states if isinstance(value, Tensor))


# The small VLM


class Backwards(Conversations):
    """Answers spelled backwards."""

    def __init__(self, of: Conversations) -> None:
        self.of = of

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, index: int) -> Conversation:
        conversation = self.of[index]
        turned = [
            Message(m.role, tuple(Text(p.text[::-1]) if isinstance(p, Text) else p for p in m.parts))
            if m.role == "assistant"
            else m
            for m in conversation.messages
        ]
        return Conversation(tuple(turned), conversation.task, conversation.weight, conversation.source)


def sources(task: str) -> tuple[Conversations, Conversations]:
    if task == "easy-VQA":
        return EasyVQA("train"), Slice(EasyVQA("test"), stop=1000)
    kinds = ["vqa", "ocr"]
    return Backwards(Drawn("train", 20000, tasks=kinds)), Backwards(Drawn("val", 1000, tasks=kinds))


def tune(contender: str, seed: int, task: str, rate: float, steps: int) -> tuple[Result, dict[str, int]]:
    learned, held = sources(task)
    data = VLMDataModule(train=learned, val=held, batch_size=32, eval_batch_size=250, seed=seed)

    def fresh(rate: float) -> Any:
        seed_everything(seed, verbose=False)
        module = VLMModule(
            "drawn-vlm",
            adapt={"projector": "full"},
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=rate, weight_decay=0.0),
            schedule=Cosine(warmup=0.05),
        )
        module.configure_model()
        assert module.model is not None
        module.model.requires_grad_(False)
        return module

    inside = re.compile(r".*layers\.\d+\..*(_proj|fc[12])")
    linear = [name for name, _ in fresh(rate).model.named_modules() if inside.fullmatch(name)]
    module, result = run(contender, fresh, rate, data, dict.fromkeys(linear, VLM_RANK), steps)
    (found,) = Trainer(**QUIET).validate(module, data, verbose=False)
    return result._replace(loss=found["val/loss"]), {}


# All of it


def compare(title: str, learner: Callable[..., tuple[Result, dict[str, int]]], task: str, given: Any) -> None:
    """Run all contenders on a task and print their table."""
    known = learner is learn
    steps, rates = (given.steps, RATES) if known else (given.vlm_steps, VLM_RATES)
    contenders = [name for name in CONTENDERS if name == "uniform" or name in given.of]
    found, best = dict[str, list[tuple[Result, dict[str, int]]]](), dict[str, float]()
    for name in (*contenders, *(["known"] if known else [])):
        best[name] = best.get("uniform", 0.0)
        if name.startswith(("uniform", "AdaLoRA")):
            tried = {rate: learner(name, 0, task, rate, steps) for rate in rates}
            best[name] = min(rates, key=lambda rate: tried[rate][0].loss)
        found[name] = [learner(name, seed, task, best[name], steps) for seed in range(given.seeds)]
        print(title, name, *(f"{result.loss:.5g}" for result, _ in found[name]), flush=True)
    table = Table(title=f"{title}: {task}, {steps} steps, {given.seeds} seeds")
    columns = [
        "",
        "rate",
        "loss",
        "× uniform",
        "of a seed",
        "better",
        "ranks",
        "off",
        "parameters",
        "bytes",
        "time",
    ]
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for name, runs in found.items():
        results = [result for result, _ in runs]
        ratios = [a.loss / b.loss for a, (b, _) in zip(results, found["uniform"], strict=True)]
        times = [a.seconds / b.seconds for a, (b, _) in zip(results, found["uniform"], strict=True)]
        off = [
            sum(abs(result.ranks[key] - rank) for key, rank in truth.items()) / 2 for result, truth in runs
        ]
        table.add_row(
            name,
            f"{best[name]:g}",
            f"{statistics.mean(result.loss for result in results):.4g}",
            f"{statistics.mean(ratios):.3f}",
            f"{min(ratios):.3f}..{max(ratios):.3f}",
            f"{sum(ratio < 1 for ratio in ratios)} of {len(ratios)}",
            f"{statistics.mean(sum(result.ranks.values()) for result in results):.0f}",
            f"{statistics.mean(off):.0f}" if known else "",
            f"{statistics.mean(result.trained for result in results):,.0f}",
            f"{statistics.mean(result.state for result in results):,.0f}",
            f"{statistics.median(times):.2f}",
        )
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--vlm_steps", type=int, default=150)
    parser.add_argument("--tasks", nargs="+", default=["flat", "falling"], choices=list(TASKS))
    parser.add_argument("--of", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for task in given.tasks:
        compare(*TASKS[task], task, given)


TASKS: dict[str, tuple[str, Callable[..., Any]]] = {
    "flat": ("Known ranks", learn),
    "falling": ("Known ranks", learn),
    "easy-VQA": ("VLM", tune),
    "backwards": ("VLM", tune),
}

if __name__ == "__main__":
    main()
