"""What a run achieved: the test scores before and after, as a table and a picture."""

from pathlib import Path

import PIL.Image
from lightning.pytorch import Trainer
from lightning_vlm_callbacks.runs import run_folder
from PIL import ImageDraw, ImageFont
from rich.table import Table

from lightning_vlm.data.conversation import Conversations, Text
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.images import load_image
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.baselines import blind_baselines
from lightning_vlm.metrics.scores import Prediction
from lightning_vlm.module import VLMModule
from lightning_vlm.outputs.terminal import say
from lightning_vlm.outputs.wandb_run import send_pictures

SHOWN = 24
"""Predictions on the picture."""


class Report:
    """Scores the test data before and after training, and shows both beside blind baselines.

    Args:
        trainer: Its log folder gets the picture.
        module: Must generate.
        data: Must have test data.

    Raises:
        UserError: One of these is not so.
    """

    def __init__(self, trainer: Trainer, module: VLMModule, data: VLMDataModule) -> None:
        if module.generation is None:
            raise UserError("a report needs answers; set model.generation, such as {max_new_tokens: 32}")
        self.trainer, self.module, self.data = trainer, module, data
        self._before: dict[str, float] = {}
        self._answers: list[Prediction] = []

    def before(self) -> None:
        """Score the model as it is."""
        self._before, self._answers = self._test(), list(self.module.predictions)

    def after(self) -> None:
        """Score it again; print the table and save the picture."""
        scores = self._test()
        folder = run_folder(self.trainer)  # all ranks must call this
        if not self.trainer.is_global_zero:
            return
        picture = draw_predictions(
            folder / "predictions.png", self.data.source("test"), self._answers, self.module.predictions
        )
        send_pictures(self.trainer, [picture])
        table = Table(title=f"Test: {len(self.data.source('test')):,} samples", title_justify="left")
        for name in ("", "exact match", "token F1", "loss"):
            table.add_column(name, justify="left" if not name else "right")
        for name, share in self._baselines().items():
            table.add_row(name, f"{share:.3f}", "", "", style="dim")
        for name, row in (("before", self._before), ("after", scores)):
            cells = [f"{row.get(key, float('nan')):.3f}" for key in ("exact_match", "token_f1", "loss")]
            table.add_row(name, *cells, style="bold" if name == "after" else "")
        say(table)

    def _test(self) -> dict[str, float]:
        scores = self.trainer.test(self.module, self.data, verbose=False)[0]
        return {name.removeprefix("test/"): value for name, value in scores.items()}

    def _baselines(self) -> dict[str, float]:
        try:
            return blind_baselines(self.data.source("train"), self.data.source("test"))
        except UserError:  # there are no baselines for conversations of several rounds
            return {}


def draw_predictions(
    path: Path,
    source: Conversations,
    before: list[Prediction],
    after: list[Prediction],
    shown: int = SHOWN,
) -> Path:
    """Save a picture of questions with the answers from before and after, the right ones in green.

    Args:
        path: Where to save it.
        source: What was asked.
        before: Answers to its items, in order.
        after: Answers to the same items later.
        shown: How many of them, evenly spread.
    Returns:
        The path.
    """
    columns, side, wide, high = 6, 128, 200, 232
    count = min(len(before), len(after))
    chosen = sorted({index * count // shown for index in range(min(shown, count))})
    pairs = [(before[index], after[index]) for index in chosen]
    rows = -(-len(pairs) // columns)
    sheet = PIL.Image.new("RGB", (columns * wide, max(1, rows) * high), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    conversations = {one.source: one for one in (source[index] for index in chosen)}
    for place, (first, second) in enumerate(pairs):
        x, y = place % columns * wide + 8, place // columns * high + 8
        conversation = conversations.get(second.source)
        if conversation is None:
            continue
        for image in conversation.images[:1]:
            picture = load_image(image, conversation.source, "image")
            picture = picture.resize((side, side), PIL.Image.Resampling.NEAREST)
            sheet.paste(picture, (x, y))
        question = [message for message in conversation.messages if message.role == "user"][-1]
        words = "".join(part.text for part in question.parts if isinstance(part, Text))
        pen.text((x, y + side + 4), _fit(words, 31), fill="black", font=font)
        for line, (name, answer) in enumerate((("before", first), ("after", second))):
            right = answer.reference is not None and answer.text.strip() == answer.reference.strip()
            ink = (0, 120, 0) if right else (190, 0, 0)
            pen.text((x, y + side + 22 + 16 * line), _fit(f"{name}: {answer.text}", 31), fill=ink, font=font)
        reference = f"right: {second.reference}"
        pen.text((x, y + side + 54), _fit(reference, 31), fill=(90, 90, 90), font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _fit(words: str, length: int) -> str:
    words = " ".join(words.split())
    return words if len(words) <= length else f"{words[: length - 1]}…"
