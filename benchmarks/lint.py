"""How many samples `lightning-vlm lint` checks in a second: 50,000 rows over 3,000 JPEGs, of several tasks.

    python benchmarks/lint.py [--samples 50000] [--pictures 3000] [--workers N]

Its rival is how people check pictures without such a command: Pillow opens each, and loads it at full size.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from random import Random

import PIL.Image

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.lint.run import lint

SIZES = ((640, 480), (480, 640), (800, 600))


def write_data(folder: Path, samples: int, pictures: int) -> Path:
    """Photographs' sizes, noise like a camera's; each row asks something else about one of them."""
    rng = Random(0)
    noise = PIL.Image.effect_noise((1600, 1200), 60).convert("RGB")
    for number in range(pictures):
        width, height = SIZES[number % len(SIZES)]
        x, y = rng.randrange(1600 - width), rng.randrange(1200 - height)
        part = noise.crop((x, y, x + width, y + height))
        for _ in range(12):
            x, y = rng.randrange(width), rng.randrange(height)
            colour = tuple(rng.randrange(256) for _ in range(3))
            part.paste(colour, (x, y, x + rng.randrange(20, 200), y + rng.randrange(20, 200)))
        part.save(folder / f"{number}.jpg", quality=90)
    with (folder / "train.jsonl").open("w") as file:
        for number in range(samples):
            picture = {"type": "image", "path": f"{rng.randrange(pictures)}.jpg"}
            asked = [picture, {"type": "text", "text": f"What is at place {number}?"}]
            answer = [
                {"type": "text", "text": f"Thing {number} "},
                {"type": "box", "box": [0.1, 0.2, 0.5, 0.8]},
            ]
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns, "task": ("vqa", "grounding")[number % 2]}) + "\n")
    return folder / "train.jsonl"


def main() -> None:
    """Print samples per second and the memory of the largest process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--pictures", type=int, default=3_000)
    parser.add_argument("--workers", type=int, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_data(Path(folder), given.samples, given.pictures)
        before = time.process_time()
        start = time.monotonic()
        report = lint(
            VLMModule("drawn-vlm", adapt="full"), VLMDataModule(train=str(path)), workers=given.workers
        )
        seconds = time.monotonic() - start
        own = resource.getrusage(resource.RUSAGE_SELF)
        workers = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = time.process_time() - before + workers.ru_utime + workers.ru_stime
        print(f"lint: {given.samples:,} samples, {report.pictures:,} pictures: {seconds:.1f} s")
        pace = f"{given.samples / seconds:,.0f} samples a second"
        print(f"      {pace}, {cpu:.0f} s of CPU, on {os.cpu_count()} CPUs")
        print(f"      {max(own.ru_maxrss, workers.ru_maxrss) / 1024:,.0f} MiB in the largest process")
        print(f"      found: {report.verdict()}")
        start = time.process_time()
        for number in range(given.pictures):
            PIL.Image.open(Path(folder, f"{number}.jpg")).convert("RGB")
        seconds = time.process_time() - start
        print(f"Pillow, each picture at full size: {given.pictures / seconds:,.0f} a second of CPU")


if __name__ == "__main__":
    main()
