"""What published shapes cost: tokens of pictures, weights, and the steps of recipes, counted as `plan` does.

python -m tools.model_memory            # those that aren't in tools/model_memory.yaml, one after another
python -m tools.model_memory NAME ...   # these again
"""

import copy
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from torch.optim import AdamW
from transformers import PreTrainedModel

from lightning_vlm.data.batch.blank_pictures import BlankPicture
from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.data.conversation import Conversation, Conversations, Image, Message, Text
from lightning_vlm.data.pixel_budget import PixelBudget
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.rendered import RenderedBatches
from lightning_vlm.kinds import Kind
from lightning_vlm.models.loading.quantize import Quantization, QuantMethod
from lightning_vlm.models.plan.plan import expand
from lightning_vlm.module import VLMModule
from lightning_vlm.planning.parts import parts_of
from lightning_vlm.planning.samples import MakeBatch
from lightning_vlm.planning.search import Counts
from lightning_vlm.planning.step import CountedStep, Method, skeleton, storage_bytes
from tests.support import tiny
from tools.published_shapes import Published, make_folder, published

FILE = Path(__file__).with_suffix(".yaml")
RECIPES = Path(__file__).parents[1] / "configs" / "recipes"
COUNTED = ("lora", "qlora")
PRECISION = "bf16-mixed"
PICTURE = (1024, 768)
LARGE = ((4096, 4096), (4096, 3072), (3072, 4096), (6144, 2048))
WORDS = 128
"""The sample: a picture, a question, and an answer of so many words of a token each."""


class Shape:
    """A published shape without weights.

    Args:
        row: With a shape.
        folder: Of it, as from `make_folder`.
    """

    def __init__(self, row: Published, folder: Path) -> None:
        template = None if tiny.FAMILIES[row.family].template else "plain"
        self.row = row
        self._module = VLMModule(str(folder), chat_template=template)
        PixelBudget(most=row.max_pixels).apply(self._module.processor)
        self._renderer = Renderer(self._module.processor)

    def skeleton(self, plan: str | Mapping[str, Any], quantization: QuantMethod | None) -> PreTrainedModel:
        """The model as it would be trained."""
        method = Method("", expand(plan), Quantization(quantization) if quantization else None)
        return skeleton(self._module.source, method, PRECISION)

    def batches(self, model: PreTrainedModel, picture: tuple[int, int]) -> MakeBatch:
        """Batches of the sample."""
        renderer = copy.copy(self._renderer)
        renderer.open_picture = lambda *_: BlankPicture(picture)
        rendered = RenderedBatches.for_model(model, _One(), renderer, learn=True, prompts=False, pack=False)

        def make(count: int) -> Batch:
            batch = rendered[[0] * count]
            if batch.skipped:
                raise batch.skipped[0]
            return batch._replace(targets=self._module.targets(batch))

        return make

    def held(self, recipe: Mapping[str, Any]) -> int:
        """The bytes that a recipe needs at all times: weights, gradients, and the states of AdamW."""
        settings = recipe["model"]
        model = self.skeleton(settings["adapt"], settings.get("quantization"))
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        return storage_bytes([*model.parameters(), *model.buffers()]) + 3 * storage_bytes(trained)

    def step(self, recipe: Mapping[str, Any]) -> dict[str, int]:
        """The micro-batch of a recipe, and the most bytes of a step of it."""
        settings = recipe["model"]
        model = self.skeleton(settings["adapt"], settings.get("quantization"))
        accumulates = recipe["trainer"].get("accumulate_grad_batches", 1) > 1
        counts = Counts(CountedStep(model, PRECISION, AdamW, accumulates), self.batches(model, PICTURE))
        size = recipe["data"]["batch_size"]
        need = counts.need(bool(settings.get("gradient_checkpointing")), size)
        return {"batch": size, "bytes": need.peak}


class _One(Conversations):
    """The sample."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        asked = Message("user", (Image(url="made"), Text("What is in the picture?")))
        return Conversation((asked, Message("assistant", (Text(" ".join(["a"] * WORDS)),))))


def weights_of(shape: Shape) -> dict[str, Any]:
    """The parts, and the bytes of weights in 16 and in 4 bits."""
    full = shape.skeleton({}, None)
    four = shape.skeleton({}, "nf4")
    return {
        "parts": {part.name: part.parameters for part in parts_of(full)},
        "bytes": 2 * sum(weight.numel() for weight in full.parameters()),
        "bytes_4": storage_bytes([*four.parameters()]),
    }


def tokens_of(shape: Shape) -> dict[str, int]:
    """The tokens of the sample, of its picture, and the most of some large ones."""
    model = shape.skeleton({}, None)
    batch, *large = (shape.batches(model, size)(1) for size in (PICTURE, *LARGE))
    picture, *others = (int((one.kinds == Kind.IMAGE).sum()) for one in (batch, *large))
    return {"sample": batch.kinds.numel(), "picture": picture, "large": max(picture, *others)}


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe as it is written."""
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text("utf-8"))


def weigh(name: str) -> dict[str, Any]:
    """What needs no steps: tokens and weights."""
    with tempfile.TemporaryDirectory() as folder:
        shape = Shape(published()[name], make_folder(name, Path(folder)))
        held = {recipe: shape.held(read_recipe(recipe)) for recipe in COUNTED}
        return {"tokens": tokens_of(shape), **weights_of(shape), "held": held}


def count(name: str) -> dict[str, Any]:
    """The steps of the recipes."""
    with tempfile.TemporaryDirectory() as folder:
        shape = Shape(published()[name], make_folder(name, Path(folder)))
        return {recipe: shape.step(read_recipe(recipe)) for recipe in COUNTED}


@cache
def known() -> dict[str, dict[str, Any]]:
    """What was measured, by name."""
    return (yaml.safe_load(FILE.read_text("utf-8")) or {}) if FILE.exists() else {}


def write(name: str, found: Mapping[str, Any]) -> None:
    """Add to what is known."""
    every = {**known(), name: {**known().get(name, {}), **found}}
    order = {one: every[one] for one in published() if one in every}
    text = yaml.safe_dump(order, sort_keys=False, default_flow_style=None, width=110)
    FILE.write_text("# Written by `python -m tools.model_memory`.\n" + text, encoding="utf-8")
    known.cache_clear()


def main(names: list[str]) -> None:
    """Measure, and write after each, so that a stop loses nothing."""
    every = [row.name for row in published().values() if row.source]
    for name in names or [one for one in every if "held" not in known().get(one, {})]:
        write(name, weigh(name))
    for name in names or [one for one in every if COUNTED[0] not in known().get(one, {})]:
        write(name, count(name))


if __name__ == "__main__":
    main(sys.argv[1:])
