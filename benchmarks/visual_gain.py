"""Chatty answers: does it help to weigh words by how much they need the picture?

    python benchmarks/visual_gain.py [--steps 160] [--seeds 1] [--chatter after before]

The shipped model is fine-tuned on drawn questions whose answers are one or two words among a dozen of random
chatter, after the words that count or before them. Compared are plain cross-entropy, `VisualGainWeights`, and
as the best that weights could do a weight of ten on exactly the words that count, which only the data can
say. What counts is the share of 600 held-out answers whose every word that counts is the likeliest one, with
the right words before it. On one thread a run takes three to six minutes.
"""

import argparse
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

import lightning_vlm  # noqa: F401

# isort: split
from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_vlm import VisualGainWeights, VLMDataModule, VLMModule
from lightning_vlm.data.conversation import Conversation, Conversations, Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.kinds import Kind
from lightning_vlm.losses.batch_loss import own_logits
from lightning_vlm.losses.weights import KindWeights

CHATTER: tuple[Sequence[str], ...] = (
    ("Well", "Sure", "Okay", "Fine", "Gladly", "Happily", "Right", "Certainly"),
    (
        "let me look",
        "I looked at it",
        "after a careful look",
        "to be honest",
        "as far as I can see",
        "since you ask",
        "when I look closely",
        "with a glance",
    ),
    (
        "I would say",
        "it seems to be",
        "my answer is",
        "I believe it is",
        "one could say",
        "it must be",
        "I think",
        "the answer is",
    ),
    (
        "Is there more?",
        "I hope that helps.",
        "Ask me again any time.",
        "That was a nice question.",
        "What a picture!",
        "Please tell me if you need more.",
        "It was my pleasure.",
        "Anything else?",
    ),
)
BATCH, HELD_OUT = 16, 600
CONTENDERS = ("before training", "plain", "visual gain", "the words that count ×10")


class Chatty(Conversations):
    """Drawn questions with chatty answers, in which the words that count are marked.

    Args:
        split: As of `Drawn`.
        size: How many.
        after: Whether the chatter follows the words that count.
    """

    def __init__(self, split: str, size: int, after: bool) -> None:
        self._of = Drawn(split, size=size, tasks=["vqa"], rounds=1)  # type: ignore[arg-type]
        self._after = after

    def __len__(self) -> int:
        return len(self._of)

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # a source has no slices
        conversation = self._of[index]
        chance = random.Random(conversation.source)
        last = conversation.messages[-1]
        answer = Text("".join(getattr(part, "text", "") for part in last.parts), entity=True)
        a, b, c, d = map(chance.choice, CHATTER)
        chatty = (Text(f"{a}, {b}, {c} "), answer, Text(f". {d}"))
        if self._after:
            chatty = (answer, Text(f". {a}, {b}, {c} so. {d}"))
        return conversation.with_messages((*conversation.messages[:-1], replace(last, parts=chatty)))


@torch.no_grad()
def share_right(module: VLMModule, after: bool) -> float:
    """The share of held-out answers whose words that count are all right."""
    held_out = Chatty("val", HELD_OUT, after)
    data = VLMDataModule(train=held_out, batch_size=100, shuffle=False, processor=module.processor)
    module.eval()
    right = 0
    for batch in data.train_dataloader():
        likeliest = own_logits(module.model, batch)[:, :-1].argmax(-1)
        counts = batch.kinds[:, 1:] == Kind.ENTITY
        right += int(((likeliest == batch.inputs["input_ids"][:, 1:]) | ~counts).all(1).sum())
    return right / HELD_OUT


def run(contender: str, seed: int, steps: int, after: bool) -> tuple[float, float]:
    """The share that is right at the end, and how many seconds the steps took."""
    seed_everything(seed, verbose=False)
    module = VLMModule(
        "drawn-vlm",
        adapt={"projector": "full", "vision": {"lora": {"r": 8}}, "language": {"lora": {"r": 16}}},
        optimizer=partial(torch.optim.AdamW, lr=2e-3),
        token_weights=KindWeights(entity=10.0 if "count" in contender else 1.0),
    )
    callbacks: list[Callback] = [VisualGainWeights()] if contender == "visual gain" else []
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    data = VLMDataModule(train=Chatty("train", steps * BATCH, after), batch_size=BATCH, seed=seed)
    start = time.perf_counter()
    if contender == "before training":
        module.configure_model()
    else:
        trainer.fit(module, data)
    return share_right(module, after), time.perf_counter() - start


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--chatter", nargs="+", choices=("after", "before"), default=["after", "before"])
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    table = Table("chatter", "weights", "right, each seed", "seconds")
    for place in options.chatter:
        for contender in CONTENDERS:
            runs = [run(contender, seed, options.steps, place == "after") for seed in range(options.seeds)]
            shares = ", ".join(f"{share:.1%}" for share, _ in runs)
            table.add_row(place, contender, shares, f"{min(seconds for _, seconds in runs):.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
