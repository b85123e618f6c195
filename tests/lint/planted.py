"""Data with planted faults, in several formats, and clean data beside it."""

import csv
import json
from pathlib import Path
from random import Random

import numpy as np
import PIL.Image
from PIL import ImageDraw

PICTURES = 30
"""How many pictures a folder gets."""


def picture(number: int, size: tuple[int, int] = (96, 72)) -> PIL.Image.Image:
    """A picture unlike those of other numbers."""
    rng = Random(number)
    noise = np.random.default_rng(number).normal(128, 30, (size[1], size[0])).clip(0, 255)
    made = PIL.Image.fromarray(noise.astype(np.uint8)).convert("RGB")
    draw = ImageDraw.Draw(made)
    for _ in range(5):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        colour = tuple(rng.randrange(256) for _ in range(3))
        draw.rectangle((x, y, x + size[0] // 3, y + size[1] // 3), fill=colour)
    return made


def draw_pictures(folder: Path, count: int = PICTURES, start: int = 0) -> list[str]:
    """Save pictures that are all different; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(start, start + count):
        names.append(f"{number:03}.jpg")
        picture(number).save(folder / names[-1], quality=85)
    return names


def chat(image: str, answer: str, *, task: str = "vqa", question: str = "What is it?", box=None) -> dict:
    """A row in our own format."""
    content: list = [{"type": "text", "text": answer}]
    if box is not None:
        content.append({"type": "box", "box": box})
    asked = [{"type": "image", "path": image}, {"type": "text", "text": question}]
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": content}]
    return {"messages": turns, "task": task}


def write_lines(path: Path, rows: list) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def write_csv(path: Path, rows: list[dict]) -> Path:
    """A table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def cut_off(path: Path) -> None:
    """Leave the first part of a file, as a broken download does; its head stays whole."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def five_mistakes(folder: Path) -> dict[str, tuple[str, str]]:
    """30 pictures, training and validation with five mistakes; the kind of each -> its file and line."""
    names = draw_pictures(folder)
    train = [
        chat(name, f"thing {place}", question=f"What is in {place}?") for place, name in enumerate(names[:24])
    ]
    val = [
        chat(name, f"thing {place}", question=f"What is in {place}?")
        for place, name in enumerate(names[24:], 24)
    ]
    train[3]["messages"][0]["content"][0]["path"] = "03.jpg"
    train[7]["messages"][1]["content"] = ""
    train[11] = chat(names[11], "at", box=[0.2, 0.3, 1.4, 0.8], question="Where?")
    cut_off(folder / names[15])
    val.append(train[19])
    write_lines(folder / "train.jsonl", train)
    write_lines(folder / "val.jsonl", val)
    return {
        "missing_file": ("train.jsonl:4", "03.jpg"),
        "empty_answer": ("train.jsonl:8", ""),
        "box_outside": ("train.jsonl:12", "1.4"),
        "truncated_picture": ("train.jsonl:16", "015.jpg"),
        "leaked_sample": ("val.jsonl:7", "train.jsonl:20"),
    }
