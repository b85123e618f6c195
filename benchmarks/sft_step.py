"""Fine-tuning steps end to end: tokens per second and peak memory; and who computes what is meant.

    python benchmarks/sft_step.py [--model tiny|30m|both] [--steps 40] [--rounds 3] [--device cuda]

The same model, pictures, questions, batch of 32, threads and fused AdamW for all; every parameter trains.
Each contender runs in a process of its own, from a data set to updated weights, with one worker. They take
turns for several rounds, and the fastest round of each counts, as other tenants of a machine only take time:
- "limit": a hand-written loop of forward, loss, backward, clipping and step on batches already in memory.
  Nothing that trains this model with these numbers can be faster.
- "Trainer": transformers' Trainer on our collated batches with exact labels, so that only it is compared.
- "TRL": SFTTrainer with its own collator, as one writes it for a VLM; the best settings that it takes.
- "ours": Lightning's Trainer with VLMModule and VLMDataModule.

Below, on a tiny Qwen2.5-VL: how far the first update of 4×2 accumulated samples is from that of 8 at once,
with answers of very uneven length (plain SGD, no clipping); and which share of the tokens of pictures and
prompts is supervised by default. All should be 0.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.batch.collate import Batch, Item, collate
from lightning_vlm.data.conversation import Conversation, Conversations, Image, Message, Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.images import load_image
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.kinds import Kind
from lightning_vlm.models.shipped import SHIPPED
from tests.support.tiny import build

BATCH, WARM, LEARNING_RATE = 32, 10, 1e-4
CONTENDERS = ("limit", "Trainer", "TRL", "ours")


class Uneven(Conversations):
    """Eight questions; the first four have short answers, the others very long ones."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]
        asked = Drawn("val", size=8, tasks=["referring"])[index]
        picture, words = asked.images[0], "red" if index < 4 else " ".join(["a red circle and"] * 12)
        ask = Message("user", (picture, Text("What is this?")))
        return Conversation((ask, Message("assistant", (Text(words),))), source=f"uneven:{index}")


def make_model(size: str, folder: Path) -> str:
    """The shipped model, or the same architecture with about 30 million random parameters."""
    if size == "tiny":
        return str(SHIPPED["drawn-vlm"])
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    base = SHIPPED["drawn-vlm"]
    config = AutoConfig.from_pretrained(base)
    for part, layers in ((config.text_config, 8), (config.vision_config, 4)):
        part.hidden_size, part.num_hidden_layers = 512, layers
        part.intermediate_size = 1408 if part is config.text_config else 1024
        part.num_attention_heads = 8
    config.text_config.num_key_value_heads, config.text_config.head_dim = 8, 64
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(base).save_pretrained(folder)
    return str(folder)


class Clock:
    """When each step ended, and the peak memory from the first on."""

    def __init__(self, device: str) -> None:
        self.device, self.times = device, [time.perf_counter()]

    def step(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())

    def result(self, tokens_per_step: float) -> dict[str, float]:
        if self.device == "cuda":
            peak = torch.cuda.max_memory_allocated()
        else:
            with open("/proc/self/status") as file:
                peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
        # The median, since other tenants of a machine steal time in bursts.
        seconds = statistics.median(b - a for a, b in itertools.pairwise(self.times[WARM:]))
        return {"tokens per second": tokens_per_step / seconds, "peak": peak, "step": seconds}


def batches_of(source: Conversations, processor: Any, batch: int) -> list[Batch]:
    """All of a source, rendered and collated."""
    renderer = Renderer(processor)
    items = [Item(renderer.example(source[index]), None, None) for index in range(len(source))]
    pad = processor.tokenizer.pad_token_id
    return [collate(items[start : start + batch], pad, [], []) for start in range(0, len(items), batch)]


def with_labels(batch: Batch) -> dict[str, Any]:
    """What a model's own forward takes."""
    labels = batch.inputs["input_ids"].masked_fill(batch.kinds < Kind.RESPONSE, -100)
    return {**batch.inputs, "labels": labels}


def rows_of(source: Conversations) -> Any:
    """A source as TRL wants it: a data set of messages and pictures."""
    import datasets

    rows = []
    for index in range(len(source)):
        conversation = source[index]
        messages, images = [], []
        for message in conversation.messages:
            content = []
            for part in message.parts:
                if isinstance(part, Image):
                    images.append(load_image(part, conversation.source, "image"))
                    content.append({"type": "image", "text": None})
                else:
                    words = part.text if isinstance(part, Text) else str(part)
                    content.append({"type": "text", "text": words})
            messages.append({"role": message.role, "content": content})
        rows.append({"messages": messages, "images": images})
    word = datasets.Value("string")
    turn = {"role": word, "content": datasets.List({"type": word, "text": word})}
    features = {"messages": datasets.List(turn), "images": datasets.List(datasets.Image())}
    return datasets.Dataset.from_list(rows, features=datasets.Features(features))


def arguments_of(folder: str, steps: int, device: str, **more: Any) -> dict[str, Any]:
    """What transformers' Trainer and TRL both take; their best settings for this job."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": LEARNING_RATE,
        "optim": "adamw_torch_fused",
        "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
        "dataloader_num_workers": 1,
        "dataloader_persistent_workers": True,
        "logging_steps": 20,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cpu": device == "cpu",
        "bf16": False,
        **more,
    }


def run_limit(model: Any, batches: list[Batch], clock: Clock, steps: int) -> None:
    """The loop that nothing can beat: our loss, no data work, no logging."""
    module = VLMModule("none")
    module.model = model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    ready = [batch._replace(targets=module.targets(batch)) for batch in batches]
    move = module.transfer_batch_to_device
    ready = [move(batch, model.device, 0) for batch in ready]
    for step in range(steps):
        sums = module.loss_sums(ready[step % len(ready)])
        (sums.loss_sum / sums.weight_sum).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.step()


class InOrder(torch.utils.data.Sampler):
    """Samples in the order that they have, for all contenders alike."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        return iter(range(self.count))


def huggingface(
    name: str, model: Any, processor: Any, source: Conversations, options: dict, clock: Any
) -> Any:
    """transformers' Trainer, or TRL's."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Tick(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step()

    ticks = [Tick()] if clock else []
    if name == "Trainer":
        renderer = Renderer(processor)

        def join(rows: list[Conversation]) -> dict[str, Any]:
            items = [Item(renderer.example(row), None, None) for row in rows]
            return with_labels(collate(items, processor.tokenizer.pad_token_id, [], []))

        trainer = Trainer(
            model, TrainingArguments(**options), train_dataset=source, data_collator=join, callbacks=ticks
        )
    else:
        from trl import SFTConfig, SFTTrainer

        trainer = SFTTrainer(
            model,
            SFTConfig(**options, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=rows_of(source),
            processing_class=processor,
            callbacks=ticks,
        )
    trainer._get_train_sampler = lambda *_: InOrder(len(source))
    trainer.train()


def lightning(
    path: str, source: Conversations, trainer_options: dict, module_options: dict, **data: Any
) -> Any:
    """Ours, with Lightning's Trainer."""
    from lightning.pytorch import Trainer

    module = VLMModule(
        path, adapt=dict.fromkeys(("vision", "projector", "language"), "full"), **module_options
    )
    trainer = Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **trainer_options,
    )
    trainer.fit(module, VLMDataModule(train=source, shuffle=False, **data))
    return module


def run_ours(path: str, source: Conversations, clock: Clock, steps: int, device: str) -> None:
    """VLMModule and VLMDataModule as a config would make them."""
    from lightning.pytorch.callbacks import Callback

    class Tick(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            clock.step()

    lightning(
        path,
        source,
        {
            "max_steps": steps,
            "accelerator": device.replace("cuda", "gpu"),
            "devices": 1,
            "callbacks": [Tick()],
        },
        {
            "optimizer": lambda groups: torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True),
            "no_gradient_needed": ["model.model.vision_tower.post_layernorm"],
        },
        batch_size=BATCH,
        num_workers=1,
    )


def speed(name: str, size: str, steps: int, device: str) -> dict[str, float]:
    """One contender's speed, in this process."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with tempfile.TemporaryDirectory() as folder:
        path = make_model(size, Path(folder) / "model")
        processor = AutoProcessor.from_pretrained(path)
        source = Drawn("train", size=BATCH * steps, tasks=["vqa", "caption", "referring"])
        batches = batches_of(source, processor, BATCH)
        tokens = sum(batch.tokens for batch in batches[WARM:]) / (steps - WARM)
        clock = Clock(device)
        if name == "ours":
            run_ours(path, source, clock, steps, device)
            return clock.result(tokens)
        model = AutoModelForImageTextToText.from_pretrained(path, dtype="auto").to(device)
        if name == "limit":
            run_limit(model, batches, clock, steps)
        else:
            options = arguments_of(folder, steps, device)
            huggingface(name, model, processor, source, options, clock)
        return clock.result(tokens)


def first_update(name: str, path: str, accumulate: int) -> torch.Tensor:
    """By how much one SGD step on eight samples moves the weights."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    source = Uneven()
    model = AutoModelForImageTextToText.from_pretrained(path)
    start = torch.cat([one.detach().flatten().clone() for one in model.parameters()])
    if name == "ours":
        module = lightning(
            path,
            source,
            {"max_steps": 1, "accelerator": "cpu", "accumulate_grad_batches": accumulate},
            {
                "optimizer": lambda groups: torch.optim.SGD(groups, lr=0.1),
                "clip": None,
            },
            batch_size=8 // accumulate,
        )
        model = module.model
    else:
        with tempfile.TemporaryDirectory() as folder:
            options = arguments_of(
                folder,
                1,
                "cpu",
                per_device_train_batch_size=8 // accumulate,
                gradient_accumulation_steps=accumulate,
                optim="sgd",
                learning_rate=0.1,
                max_grad_norm=0.0,
                lr_scheduler_type="constant",
                dataloader_num_workers=0,
                dataloader_persistent_workers=False,
            )
            huggingface(name, model, AutoProcessor.from_pretrained(path), source, options, None)
    return torch.cat([one.detach().flatten() for one in model.parameters()]) - start


def supervised(name: str, path: str) -> tuple[float, float]:
    """The share of picture tokens and of prompt tokens that a contender supervises by default."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(path)
    (batch,) = batches_of(Uneven(), processor, 8)
    if name == "TRL":
        from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

        labels = DataCollatorForVisionLanguageModeling(processor)(list(rows_of(Uneven())))["labels"]
    else:
        labels = with_labels(batch)["labels"]
    learned, image = labels != -100, batch.kinds == Kind.IMAGE
    prompt = (batch.kinds == Kind.INSTRUCTION) | (batch.kinds == Kind.SPECIAL)
    return learned[image].float().mean().item(), learned[prompt].float().mean().item()


def one(name: str, size: str, what: str, steps: int, device: str) -> dict[str, float]:
    """One measurement, in this process."""
    if what == "speed":
        return speed(name, size, steps, device)
    with tempfile.TemporaryDirectory() as folder:
        path = str(build("qwen2_5_vl", Path(folder)))
        whole, split = first_update(name, path, 1), first_update(name, path, 2)
        image, prompt = supervised(name, path)
    return {"update": ((split - whole).norm() / whole.norm()).item(), "image": image, "prompt": prompt}


def ask(name: str, size: str, what: str, given: argparse.Namespace) -> dict[str, float] | str:
    """One measurement, in another process; or why there is none."""
    words = [sys.executable, __file__, "--one", name, size, what]
    words += ["--steps", str(given.steps), "--device", given.device]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1][:80]
    return json.loads(done.stdout.strip().splitlines()[-1])


def race(size: str, names: list[str], given: argparse.Namespace) -> Table:
    """The fastest of several rounds of each contender."""
    rounds = [{name: ask(name, size, "speed", given) for name in names} for _ in range(given.rounds)]
    table = Table(title=f"Model {size}, batch {BATCH}, {given.device}, best of {given.rounds} rounds")
    for column in ("", "tokens per second", "of the limit", "slowest round", "peak MiB"):
        table.add_column(column, justify="right" if column else "left")
    limit = 0.0
    for name in names:
        found = [one[name] for one in rounds]
        failed = [one for one in found if isinstance(one, str)]
        if failed:
            table.add_row(name, f"failed: {failed[0]}")
            continue
        speeds, peaks = ([one[key] for one in found] for key in ("tokens per second", "peak"))
        limit = limit or max(speeds)
        table.add_row(
            name,
            f"{max(speeds):,.0f}",
            f"{max(speeds) / limit:.3f}",
            f"{min(speeds):,.0f}",
            f"{max(peaks) / 2**20:,.0f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("tiny", "30m", "both"), default="both")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", nargs=3, metavar=("NAME", "MODEL", "WHAT"), help="used by this script")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(*given.one, given.steps, given.device)))
        return
    console, taking_part = (
        Console(width=100),
        [name for name in CONTENDERS if name != "TRL" or find_spec("trl")],
    )
    for size in ("tiny", "30m") if given.model == "both" else (given.model,):
        console.print(race(size, taking_part, given))
    table = Table(title="Is it what was meant? All should be 0")
    for column in ("", "update of 4×2 off 8 by", "pictures supervised", "prompts supervised"):
        table.add_column(column, justify="right" if column else "left")
    for name in taking_part[1:]:
        found = ask(name, "tiny", "meaning", given)
        if isinstance(found, str):
            table.add_row(name, f"failed: {found}")
            continue
        ours = "(ours)" if name == "Trainer" else ""
        shares = [f"{found[key]:.1%} {ours}".strip() for key in ("image", "prompt")]
        table.add_row(name, f"{found['update']:.1e}", *shares)
    console.print(table)


if __name__ == "__main__":
    main()
