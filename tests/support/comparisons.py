"""Data for comparisons: pictures of a coloured square, and questions about them."""

import json
import random

import PIL.Image
import PIL.ImageDraw

CHECKPOINT = "runs/version_0/checkpoints/last.ckpt"
COLOURS = ("red", "blue", "green", "yellow")


def write_samples(folder, name, count, ask):
    """Pictures of a coloured square, each with a question about it."""
    chance = random.Random(name)
    lines = []
    for number in range(count):
        colour = chance.choice(COLOURS)
        picture = PIL.Image.new("RGB", (64, 64), "white")
        left, top = chance.randrange(8, 30), chance.randrange(8, 30)
        PIL.ImageDraw.Draw(picture).rectangle((left, top, left + 24, top + 24), fill=colour)
        picture.save(folder / f"{name}{number}.png")
        question, answer = ask(colour)
        content = [{"type": "image", "path": f"{name}{number}.png"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        lines.append({"messages": messages, "task": "vqa"})
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))


def warm(colour):
    return "Is it warm?", "warm" if colour in ("red", "yellow") else "cold"


def colour_of(colour):
    return "What colour is it?", colour
