"""A short fit of the shipped model, from the command line, as a person runs it."""

import json
from functools import cache
from pathlib import Path

import PIL.Image

from lightning_vlm.cli import main
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.images import load_image

PLAN = {"projector": "full", "language": {"lora": {"r": 4}}}


def fit(folder: Path, plan: dict = PLAN, **more: object) -> Path:
    """Fit for some steps with a high rate, so that answers change; the checkpoint."""
    words = {
        "model.name_or_path": "drawn-vlm",
        "model.adapt": json.dumps(plan),
        "model.optimizer": "{class_path: torch.optim.AdamW, init_args: {lr: 0.02}}",
        "data.train": "{class_path: Drawn, init_args: {split: train, size: 24}}",
        "data.val": "{class_path: Drawn, init_args: {split: test, size: 8}}",
        "data.batch_size": 8,
        "trainer.max_steps": 3,
        "trainer.log_every_n_steps": 1,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": folder,
        "trainer.logger": json.dumps(
            {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(folder), "name": "run"},
            }
        ),
        "trainer.callbacks": "[{class_path: RunReport}]",
        **more,
    }
    assert main(["fit", *(f"--{key}={value}" for key, value in words.items())]) == 0
    (checkpoint,) = folder.rglob("*.ckpt")
    return checkpoint


@cache
def questions(folder: Path, count: int = 4) -> Path:
    """Questions about drawn pictures as a file, with the pictures beside it."""
    source = Drawn("test", size=count)
    lines = []
    for number in range(count):
        conversation = source[number]
        picture: PIL.Image.Image = load_image(conversation.images[0], "drawn", "image")
        picture.save(folder / f"{number}.png")
        text = conversation.messages[0].parts[-1].text
        content = [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": text}]
        lines.append(json.dumps({"messages": [{"role": "user", "content": content}]}))
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return folder / "questions.jsonl"
