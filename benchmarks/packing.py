"""What padding costs: tokens per second on samples whose lengths differ by a factor of 16.

    python benchmarks/packing.py [--samples 192] [--rounds 1] [--device cuda]

The model with 30 million random parameters of `sft_step.py`, everything trains, fused AdamW, one worker. Each
sample has a picture, and an answer such that lengths are spread log-uniformly from 48 to 768 tokens. Padded
batches have 16 samples; `tokens` and `packed` get as many tokens as 16 samples have on average. Only real
tokens are counted. Each contender trains on the same samples in a process of its own:
- "TRL": SFTTrainer with its own collator. It refuses to pack samples with pictures.
- "Trainer": transformers' Trainer on our padded batches.
- "ours, padded" and so on: VLMModule and VLMDataModule with that `data.batching`.
"""

import argparse
import json
import math
import random
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
from sft_step import arguments_of, batches_of, huggingface, lightning, make_model

from lightning_vlm.data.conversation import Conversation, Conversations, Message, Text
from lightning_vlm.data.drawn import Drawn

BATCH, SHORTEST, LONGEST, SEED = 16, 48, 768, 0
OURS = ("padded", "length", "tokens", "packed")
CONTENDERS = ("TRL", "Trainer", *OURS)


class LogUniform(Conversations):
    """Questions about drawn pictures whose answers have very different lengths."""

    def __init__(self, size: int) -> None:
        chance = random.Random(SEED)
        spread = math.log(LONGEST / SHORTEST)
        self._drawn = Drawn("train", size=size, tasks=["caption"])
        self._words = [int(SHORTEST * math.exp(spread * chance.random())) for _ in range(size)]

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]
        question = self._drawn[index].messages[0]
        # What the question and its picture take is a part of the sample's length.
        words = max(1, self._words[index] - 30)
        answer = " ".join(["red"] * words)
        return Conversation((question, Message("assistant", (Text(answer),))), source=f"uneven:{index}")


class Clock:
    """When each step ended, and how many tokens it had."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens: list[int] = []

    def step(self, tokens: int = 0) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.tokens.append(tokens)

    def speed(self) -> float:
        """Tokens per second behind the first step, which also starts everything."""
        return sum(self.tokens[1:]) / (self.times[-1] - self.times[0])


def train(name: str, samples: int, device: str) -> dict[str, float]:
    """One contender's pass over the samples, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        path = make_model("30m", Path(folder) / "model")
        processor = AutoProcessor.from_pretrained(path)
        source = LogUniform(samples)
        batches = batches_of(source, processor, BATCH)
        total = sum(batch.tokens for batch in batches)
        clock = Clock()
        if name in OURS:
            run_ours(path, source, name, BATCH * total // samples, clock, device)
        else:
            model = AutoModelForImageTextToText.from_pretrained(path, dtype="auto").to(device)
            options = arguments_of(folder, len(batches), device, per_device_train_batch_size=BATCH)
            huggingface(name, model, processor, source, options, clock)
            clock.tokens = [batch.tokens for batch in batches]
        return {"speed": clock.speed(), "steps": len(clock.times)}


def run_ours(
    path: str, source: Conversations, batching: str, max_tokens: int, clock: Clock, device: str
) -> None:
    """VLMModule and VLMDataModule as a config would make them."""
    from lightning.pytorch.callbacks import Callback

    class Tick(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            clock.step(batch.tokens)

    budget = {"max_tokens": max_tokens} if batching in ("tokens", "packed") else {"batch_size": BATCH}
    lightning(
        path,
        source,
        {"max_epochs": 1, "accelerator": device.replace("cuda", "gpu"), "devices": 1, "callbacks": [Tick()]},
        {
            "optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-4, fused=True),
            "no_gradient_needed": ["model.model.vision_tower.post_layernorm"],
        },
        batching=batching,
        num_workers=1,
        **budget,
    )


def ask(name: str, given: argparse.Namespace) -> dict[str, float] | str:
    """One measurement, in another process; or why there is none."""
    words = [sys.executable, __file__, "--one", name]
    words += ["--samples", str(given.samples), "--device", given.device]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1][:80]
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", choices=CONTENDERS, help="used by this script")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(train(given.one, given.samples, given.device)))
        return
    names = [name for name in CONTENDERS if name != "TRL" or find_spec("trl")]
    rounds = [{name: ask(name, given) for name in names} for _ in range(given.rounds)]
    table = Table(title=f"{given.samples} samples of 48 to 768 tokens, best of {given.rounds}")
    for column in ("", "tokens per second", "of the best padded rival", "steps"):
        table.add_column(column, justify="right" if column else "left")
    best: dict[str, dict[str, float]] = {}
    for name in names:
        found = [results[name] for results in rounds]
        done = [result for result in found if not isinstance(result, str)]
        if len(done) < len(found):
            table.add_row(name, f"failed: {next(result for result in found if isinstance(result, str))}")
        else:
            best[name] = max(done, key=lambda result: result["speed"])
    rival = max(result["speed"] for name, result in best.items() if name not in OURS)
    for name, result in best.items():
        title = f"ours, {name}" if name in OURS else name
        share = f"{result['speed'] / rival:.2f}"
        table.add_row(title, f"{result['speed']:,.0f}", share, f"{result['steps']:.0f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
