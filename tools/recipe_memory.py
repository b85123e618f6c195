"""The memory that heads of recipes say, beside what `lightning-vlm plan` counts for the same command.

python -m tools.recipe_memory            # of all that say a figure; a minute of a processor each
python -m tools.recipe_memory lora ocr   # of these

The model is `models/qwen2.5-vl-3b` without weights. The data are a sample as the recipe is for: a picture
and an answer of so many words, or a video.
"""

import json
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import PIL.Image

from lightning_vlm.config.moved import with_meant_classes
from lightning_vlm.config.shipped import shipped
from lightning_vlm.config.stage_words import with_stages
from lightning_vlm.planning.asked import Asked, room_of
from lightning_vlm.planning.planner import Planner
from lightning_vlm.training.stages.keys import use_stages
from tests.support.parsers import command_parsers
from tools.published_shapes import make_folder

MODEL = "qwen2.5-vl-3b"
SAID = re.compile(
    r"Memory: ([\d.]+) GiB for Qwen2\.5-VL-3B[^:]*: (an?|\d+) (?:samples?|videos?) of ([\d,]+) tokens"
)
VIDEO = (448, 224)
SECONDS = 32


class Sample(NamedTuple):
    """What a head's figure is for.

    Args:
        picture: Width and height; None is a video.
        answer: Its words, of a token each.
        stage: Of a config with stages, that which takes most.
    """

    picture: tuple[int, int] | None = (1024, 768)
    answer: int = 128
    stage: str = ""


SAMPLES = {
    "ocr": Sample((2000, 2000), 1000),
    "charts": Sample((1600, 1200), 16),
    "video": Sample(None, 64),
    "qwen-vl-stages": Sample((640, 480), 128, "multitask"),
}
"""Those that aren't as most are."""


class Memory(NamedTuple):
    """A figure of a head.

    Args:
        gib: As it is written, such as `10.9`.
        samples: At once.
        tokens: Of each, in hundreds.
    """

    gib: str
    samples: int
    tokens: int


def head_of(name: str) -> list[str]:
    """The comment at the top of a recipe, without its marks."""
    lines = shipped()[f"recipes/{name}"].path.read_text("utf-8").splitlines()
    return [line[1:] for line in lines[: next(n for n, line in enumerate(lines) if not line.startswith("#"))]]


def command_of(name: str) -> list[str]:
    """The command in the head of a recipe: its first indented lines."""
    lines = head_of(name)
    first = next(place for place, line in enumerate(lines) if line.startswith("   "))
    last = next((n for n in range(first, len(lines)) if not lines[n].startswith("   ")), len(lines))
    return shlex.split(" ".join(lines[first:last]))


def said(name: str) -> Memory | None:
    """What a head says; None where it says no figure.

    >>> said("lora").samples
    4
    """
    found = SAID.search(" ".join(line.strip() for line in head_of(name)))
    if found is None:
        return None
    gib, samples, tokens = found.groups()
    return Memory(gib, int(samples) if samples.isdecimal() else 1, int(tokens.replace(",", "")))


def plan_words(name: str, model: Path, sample: Sample) -> list[str]:
    """The words of the head's command, for `plan`, with made data and the model's folder."""
    _, _, *words = command_of(name)
    configs = [words[place + 1] for place, word in enumerate(words) if word == "--config"]
    configs = [f"models/{MODEL}" if one.startswith("models/") else one for one in configs]
    found = [word for config in configs for word in ("--config", config)]
    found += ["--model.name_or_path", str(model), "--data.val", "train.jsonl"]
    keys = [word for word in words if word.endswith("data.train")]
    found += [word for key in keys for word in (key, "train.jsonl")]
    return [*found, *(["--stage", sample.stage] if sample.stage else [])]


def counted(words: list[str]) -> Memory:
    """What a plan of these words counts for the config as it is written.

    Raises:
        UserError: As `lightning-vlm plan`.
    """
    parser = command_parsers()["plan"]
    config = parser.parse_args(with_stages(with_meant_classes(words)))
    made = parser.instantiate_classes(config)  # type: ignore[attr-defined]
    use_stages(made, made.model, made.data, "plan")
    planner = Planner(made.model, made.data, Asked.of(config.trainer), room_of("1TiB"), scan=1)
    written = planner.written()
    assert written is not None
    tokens = round(planner.measured.longest.tokens, -2)
    return Memory(f"{written.bytes / 2**30:.1f}", written.samples, tokens)


def write_data(sample: Sample) -> None:
    """Write `train.jsonl` and what it shows into the current folder."""
    answer = " ".join(["a"] * sample.answer)
    row = {"question": "What is there?", "answer": answer, "task": "referring"}
    if sample.picture is None:
        _write_video(Path("video.mp4"))
        row["video"] = "video.mp4"
    else:
        PIL.Image.new("RGB", sample.picture, "red").save("picture.png")
        row["image"] = "picture.png"
    Path("train.jsonl").write_text(json.dumps(row) + "\n", "utf-8")


def _write_video(path: Path) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=Fraction(1))
        stream.width, stream.height = VIDEO
        for _ in range(SECONDS):
            frame = av.VideoFrame.from_image(PIL.Image.new("RGB", VIDEO, "red"))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def compare(names: list[str]) -> Iterator[tuple[str, Memory]]:
    """Each recipe, and what is counted for it."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        model = make_folder(MODEL, Path(folder) / "model")
        for name in names:
            sample = SAMPLES.get(name, Sample())
            write_data(sample)
            yield name, counted(plan_words(name, model, sample))


def disagreements(names: list[str]) -> list[str]:
    """Print what is counted for each recipe; those whose heads say something else."""
    found = []
    for name, memory in compare(names):
        print(f"{name}: {memory.gib} GiB, {memory.samples} × {memory.tokens:,} tokens", flush=True)
        if memory != said(name):
            print(f"  but its head says {said(name)}", flush=True)
            found.append(name)
    return found


if __name__ == "__main__":
    every = [name.removeprefix("recipes/") for name in shipped() if name.startswith("recipes/")]
    sys.exit(bool(disagreements(sys.argv[1:] or [name for name in every if said(name)])))
