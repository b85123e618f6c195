"""The project that the pages of the documentation take for granted, of drawn pictures."""

import functools
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import PIL.Image

from lightning_vlm.cli import main
from lightning_vlm.data.conversation import Conversation, Text
from lightning_vlm.data.drawn import Drawn
from tests.support.pages import ROOT
from tests.support.shards import write_shard

MY_YAML = """\
model:
  name_or_path: drawn-vlm
  adapt:
    projector: full
    language: {lora: {r: 8}}
  optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 2.0e-3}}
data:
  train: train.jsonl
  val: val.jsonl
  test: val.jsonl
  predict: questions.jsonl
  batch_size: 2
  eval_batch_size: 4
"""


def make(folder: Path) -> None:
    """Write the project."""
    (folder / "pictures").mkdir()
    (folder / "photos").mkdir()
    for name, size in {"cat": (64, 48), "street": (300, 200), "cat2": (64, 48)}.items():
        for kind in ("jpg", "png"):
            PIL.Image.new("RGB", size, "gray").save(folder / f"{name}.{kind}")
    for name, number, tasks in (
        ("train", 16, ("vqa", "ocr", "caption")),
        ("val", 4, ("vqa", "ocr", "caption")),
        ("questions", 3, ("vqa",)),
    ):
        samples = Drawn("test" if name == "questions" else "train", size=number, tasks=list(tasks))
        write(folder / f"{name}.jsonl", [_row(folder, name, *item) for item in enumerate(samples)])
    for number, sample in enumerate(Drawn("test", size=3)):
        (folder / "photos" / f"{number}.png").write_bytes(sample.images[0].data)
    write(folder / "boxes.jsonl", [_boxes(number) for number in range(8)])
    for shard in range(4):
        write_shard(folder / "shards" / f"{shard:04}.tar", range(9 * shard, 9 * shard + 9))
    for task in ("vqa", "ocr"):
        write_shard(folder / "shards" / f"{task}-0.tar", range(9))
    (folder / "my.yaml").write_text(MY_YAML)
    (folder / "configs").symlink_to(ROOT / "configs")


def write(file: Path, rows: Iterable[object]) -> None:
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _row(folder: Path, name: str, number: int, sample: Conversation) -> dict:
    path = f"pictures/{name}{number}.png"
    (folder / path).write_bytes(sample.images[0].data)
    texts = []
    for turn in sample.messages:
        texts.append("".join(part.text for part in turn.parts if isinstance(part, Text)))
    asked = [{"type": "image", "path": path}, {"type": "text", "text": texts[-2]}]
    turns = [{"role": "user", "content": asked}]
    if name != "questions":
        turns.append({"role": "assistant", "content": texts[-1]})
    return {"messages": turns, "task": sample.task}


def _boxes(number: int) -> dict:
    left = 10 * number
    box = {"type": "box", "box": [left, 40, left + 100, 171], "pixels": True, "label": "car"}
    asked = [{"type": "image", "path": "street.jpg"}, {"type": "text", "text": "Find all cars."}]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": [box]}]
    return {"messages": turns, "task": ("detection", "grounding")[number % 2]}


@functools.cache
def checkpoint() -> Path:
    """A checkpoint of `my.yaml` after a step; made once for all pages of a process."""
    folder = Path(tempfile.mkdtemp(prefix="pages-"))
    make(folder)
    before = os.getcwd()
    os.chdir(folder)
    try:
        words = (
            "fit --config my.yaml --trainer.max_steps 1 --trainer.limit_val_batches 0 --trainer.logger false"
        )
        assert main([*words.split(), "--trainer.accelerator", "cpu"]) == 0
    finally:
        os.chdir(before)
    (made,) = folder.rglob("*.ckpt")
    return made
