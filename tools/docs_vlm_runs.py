"""Runs of the small model inside the package, for `tools.docs_pictures`: each is real and made once."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_vlm import ScheduledSampling, VLMDataModule, VLMModule
from lightning_vlm.cli import main as command
from lightning_vlm.data.conversation import Box
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.kinds import Kind

DRAWN = "{class_path: Drawn, init_args: {split: %s, size: %d, tasks: [%s]}}"
EASY = "{class_path: Slice, init_args: {of: {class_path: EasyVQA, init_args: {split: test}}, stop: %d}}"


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder."""
    before = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def lightning_vlm_command(*words: object) -> None:
    """Run a command of ours as a person does."""
    assert command([str(word) for word in words]) == 0, words


# The small model inside the package


def callbacks(*names: str, **options: dict[str, Any]) -> str:
    """Callbacks of a config: names, and names with their options."""
    listed: list[dict[str, Any]] = [{"class_path": name} for name in names]
    listed += [{"class_path": name, "init_args": value} for name, value in options.items()]
    return json.dumps(listed)


@cache
def drawn(folder: Path) -> Path:
    """A run with LoRA whose ranks move and with weights of tokens that fall."""
    with inside(folder / "drawn"):
        lightning_vlm_command(
            "fit",
            "--model.name_or_path=drawn-vlm",
            "--model.adapt={projector: full, language: {lora: {r: 8}}}",
            "--model.optimizer={class_path: torch.optim.AdamW, init_args: {lr: 4.0e-3}}",
            "--data.train=" + DRAWN % ("train", 1280, "caption, vqa, ocr"),
            "--data.batch_size=8",
            "--trainer.max_steps=160",
            "--trainer.log_every_n_steps=4",
            "--trainer.enable_progress_bar=false",
            "--trainer.logger=false",
            "--trainer.callbacks="
            + callbacks(
                "RunReport",
                AdaptiveLoRARank={"min_rank": 1, "max_rank": 32, "multiple_of": 1},
                TokenWeightSchedule={
                    "between": "linear",
                    "points": [
                        {"at": 0.0, "instruction": 1.0, "entity": 1.0},
                        {"at": 0.6, "instruction": 0.0, "entity": 2.0},
                    ],
                },
                ThroughputMonitor={},
            ),
        )
        (page,) = Path.cwd().rglob("report.html")
    return page


class Seen(Callback):
    """Keeps the tokens of a batch as they come, and as the model reads them.

    Stands behind ScheduledSampling, whose changes are in place.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[list[str], list[str], list[bool]]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep what a batch holds."""
        decode = pl_module.processor.tokenizer.decode
        for row in range(len(batch.kinds)):
            answer = (batch.kinds[row] >= Kind.RESPONSE).nonzero().flatten()
            places = answer.tolist()
            right = {int(place) + 1: int(token) for place, token in targets_of(batch, row)}
            read = batch.inputs["input_ids"][row].tolist()
            self.answers.append(
                (
                    [decode([right.get(place, read[place])]) for place in places],
                    [decode([read[place]]) for place in places],
                    [right.get(place, read[place]) != read[place] for place in places],
                )
            )


def targets_of(batch: Any, row: int) -> Iterator[tuple[int, int]]:
    """Places and right tokens of the targets in a row of a batch."""
    length = batch.kinds.shape[1]
    for position, token in zip(batch.targets.positions.tolist(), batch.targets.labels.tolist(), strict=True):
        if position // length == row:
            yield position % length, token


@cache
def overfitted(folder: Path) -> Path:
    """A run that learns its few samples by heart until it is stopped."""
    with inside(folder / "overfitted"):
        lightning_vlm_command(
            "fit",
            "--model.name_or_path=drawn-vlm",
            "--model.adapt={projector: full, language: full}",
            "--model.optimizer={class_path: torch.optim.AdamW, init_args: {lr: 5.0e-4}}",
            "--data.train=" + EASY % 64,
            "--data.val=" + EASY.replace("test", "train") % 64,
            "--data.batch_size=8",
            "--trainer.max_epochs=60",
            "--trainer.log_every_n_steps=2",
            "--trainer.enable_progress_bar=false",
            "--trainer.logger=false",
            "--trainer.callbacks="
            + callbacks("RunReport", EarlyStopCheckpoint={"monitor": "val/loss", "patience": 6}),
        )
        (page,) = Path.cwd().rglob("report.html")
    return page


@cache
def sampled(folder: Path) -> Path:
    """Answers of a batch, and what the model reads in their place; a page."""
    seen = Seen()
    module = VLMModule("drawn-vlm", adapt={"projector": "full", "language": {"lora": {"r": 8}}})
    data = VLMDataModule(train=Drawn("train", size=64, tasks=["caption"]), batch_size=8)
    sampling = ScheduledSampling(probability=0.5, decay="constant")
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[sampling, seen],
    )
    seed_everything(0, verbose=False)
    trainer.fit(module, data)
    rows = sorted(seen.answers, key=lambda answer: -sum(answer[2]))[:3]
    page = folder / "sampled.html"
    page.write_text(tokens_page(rows), "utf-8")
    return page


def tokens_page(rows: list[tuple[list[str], list[str], list[bool]]]) -> str:
    """Answers token by token: the right ones above those that are read."""
    style = """
      body { margin: 0; padding: 10px 14px; font: 14px system-ui; color: #222; background: #fff }
      table { border-spacing: 2px 1px; margin: 6px 0 12px }
      td { font: 12px monospace; padding: 2px 3px; background: #d5f3de; border-radius: 3px; white-space: pre }
      td.other { background: #ffd9a8; font-weight: 700 }
      th { font-weight: 500; text-align: left; padding-right: 8px; color: #57606a; white-space: nowrap }
    """
    body = []
    for right, read, other in rows:
        first = "".join(f"<td>{escape(token)}</td>" for token in right)
        second = "".join(
            f"<td{' class=other' if differs else ''}>{escape(token)}</td>"
            for token, differs in zip(read, other, strict=True)
        )
        body.append(f"<table><tr><th>answer{first}<tr><th>the model reads{second}</table>")
    return f"<!doctype html><meta charset=utf-8><style>{style}</style>{''.join(body)}"


@cache
def gains(folder: Path) -> Path:
    """A preview that says which words need the picture."""
    with inside(folder / "gains"):
        lightning_vlm_command(
            "preview",
            "--model.name_or_path=drawn-vlm",
            "--data.train=" + DRAWN % ("test", 20, "caption"),
            "--samples=4",
            "--gain=true",
        )
    return folder / "gains" / "preview.html"


@cache
def chat(folder: Path) -> Path:
    """A preview of a chat with a caption and a box, about a drawn picture."""
    drawn_one = Drawn("val", size=30, seed=3, tasks=["detection", "grounding", "caption"], max_things=3)[16]
    box = drawn_one.messages[-1].parts[0]
    assert isinstance(box, Box)
    assert isinstance(drawn_one.images[0].data, bytes)
    caption = ["A yellow triangle", " at the top right and ", "a red star", " at the bottom right."]
    described = [
        {"type": "text" if place % 2 else "entity", "text": text} for place, text in enumerate(caption)
    ]
    found = {"type": "box", "box": [round(64 * one) for one in box.xyxy], "pixels": True, "label": box.label}
    picture = {"type": "image", "path": "scene.png"}
    turns = [
        {"role": "user", "content": [picture, {"type": "text", "text": "What is drawn?"}]},
        {"role": "assistant", "content": described},
        {"role": "user", "content": "Where is the triangle?"},
        {"role": "assistant", "content": [found]},
    ]
    with inside(folder / "chat"):
        Path("scene.png").write_bytes(drawn_one.images[0].data)
        Path("train.jsonl").write_text(json.dumps({"messages": turns}))
        lightning_vlm_command("preview", "--model.name_or_path=drawn-vlm", "--data.train=train.jsonl")
    return folder / "chat" / "preview.html"


@cache
def answers(folder: Path) -> Path:
    """The answers of the model as it is shipped to questions about drawn pictures."""
    with inside(folder / "answers"):
        lightning_vlm_command(
            "predict",
            "--model.name_or_path=drawn-vlm",
            "--data.predict=" + DRAWN % ("test", 8, "vqa, ocr, grounding, caption"),
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            "--trainer.callbacks=" + callbacks(AnswerWriter={"page": True, "show": 0}),
        )
        (page,) = Path.cwd().rglob("answers.html")
    return page


@cache
def grounded(folder: Path) -> Path:
    """The small model learns to find things, with the config of the repository; the page of its answers."""
    config = Path(__file__).parent.parent / "configs" / "examples" / "grounding.yaml"
    with inside(folder / "grounded"):
        table = {"class_path": "PredictionTable", "init_args": {"samples": 12}}
        Path("table.yaml").write_text(json.dumps({"trainer": {"callbacks+": [table]}}))
        lightning_vlm_command(
            "fit",
            "--config",
            config,
            "--config",
            "table.yaml",
            "--data.val.init_args.size=60",
            "--data.eval_batch_size=60",
            "--trainer.max_steps=600",
            "--trainer.val_check_interval=100",
            "--trainer.enable_progress_bar=false",
        )
        (page,) = Path.cwd().rglob("predictions.html")
    return page
