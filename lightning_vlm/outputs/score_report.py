"""What a run achieved: the test scores before and after, as a table and a picture."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image
from lightning.pytorch import Trainer
from lightning_vlm_callbacks.runs import run_folder
from PIL import ImageDraw, ImageFont
from rich.table import Table

from lightning_vlm.data.conversation import Conversation, Conversations, Text
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.images import load_image
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.baselines import blind_baselines
from lightning_vlm.metrics.scores import Prediction
from lightning_vlm.nearest import one_line
from lightning_vlm.outputs.wandb_run import send_picture
from lightning_vlm.terminal import print_line, say, short_path

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

SHOWN = 24
"""How many predictions the picture shows."""
COLUMNS, WIDTH, HEIGHT, SIDE, MARGIN = 6, 200, 232, 128, 8
"""The picture's layout: predictions in a row, the size of each with its text and image, in pixels."""
BLACK, GREY = (0, 0, 0), (90, 90, 90)
GREEN, RED = (0, 120, 0), (190, 0, 0)


class ScoreReport:
    """Scores the test data before and after training, and shows both beside blind baselines.

    Args:
        trainer: The picture is saved in its run's folder.
        module: Must generate.
        data: Must have test data.

    Raises:
        UserError: The module doesn't generate.
    """

    def __init__(self, trainer: Trainer, module: "VLMModule", data: VLMDataModule) -> None:
        if module.generation is None:
            raise UserError("a report needs answers; set model.generation, such as {max_new_tokens: 32}")
        self.trainer, self.module, self.data = trainer, module, data
        self._scores: dict[str, float] = {}
        self._answers: list[Prediction] = []

    def before(self) -> None:
        """Score the model as it is."""
        self._scores = self._test()
        self._answers = list(self.module.predictions)

    def after(self) -> None:
        """Score it again; print the table and save the picture."""
        scores = self._test()
        folder = run_folder(self.trainer)  # all ranks must call this
        if not self.trainer.is_global_zero:
            return
        source, answers = self.data.source("test"), self.module.predictions
        picture = draw_predictions(folder / "predictions.png", source, self._answers, answers)
        send_picture(self.trainer, picture)
        say(self._table(scores))
        print_line("picture", short_path(picture))

    def _test(self) -> dict[str, float]:
        scores = self.trainer.test(self.module, self.data, verbose=False)[0]
        return {name.removeprefix("test/"): value for name, value in scores.items()}

    def _table(self, after: dict[str, float]) -> Table:
        size = len(self.data.source("test"))
        table = Table(title=f"Test: {size:,} samples", title_justify="left")
        table.add_column("")
        for column in ("exact match", "token F1", "loss"):
            table.add_column(column, justify="right")
        for name, share in self._baselines().items():
            table.add_row(name, f"{share:.3f}", "", "", style="dim")
        for name, scores, style in (("before", self._scores, ""), ("after", after, "bold")):
            values = [scores.get(key, float("nan")) for key in ("exact_match", "token_f1", "loss")]
            table.add_row(name, *map("{:.3f}".format, values), style=style)
        return table

    def _baselines(self) -> dict[str, float]:
        try:
            return blind_baselines(self.data.source("train"), self.data.source("test"))
        except UserError:  # there are no baselines for conversations of several rounds
            return {}


def draw_predictions(
    path: Path, source: Conversations, before: list[Prediction], after: list[Prediction], shown: int = SHOWN
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
    count = min(len(before), len(after))
    indices = sorted({number * count // shown for number in range(min(shown, count))})
    rows = max(1, math.ceil(len(indices) / COLUMNS))
    sheet = PIL.Image.new("RGB", (COLUMNS * WIDTH, rows * HEIGHT), "white")
    conversations = {conversation.source: conversation for conversation in map(source.__getitem__, indices)}
    for place, index in enumerate(indices):
        conversation = conversations.get(after[index].source)
        if conversation is not None:
            row, column = divmod(place, COLUMNS)
            cell = _draw_sample(conversation, before[index], after[index])
            sheet.paste(cell, (column * WIDTH, row * HEIGHT))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _draw_sample(conversation: Conversation, before: Prediction, after: Prediction) -> PIL.Image.Image:
    cell = PIL.Image.new("RGB", (WIDTH, HEIGHT), "white")
    for image in conversation.images[:1]:
        picture = load_image(image, conversation.source, "image")
        picture = picture.resize((SIDE, SIDE), PIL.Image.Resampling.NEAREST)
        cell.paste(picture, (MARGIN, MARGIN))
    question = [message for message in conversation.messages if message.role == "user"][-1]
    words = "".join(part.text for part in question.parts if isinstance(part, Text))
    lines = [(words, BLACK)]
    for name, answer in (("before", before), ("after", after)):
        is_right = answer.reference is not None and answer.text.strip() == answer.reference.strip()
        lines.append((f"{name}: {answer.text}", GREEN if is_right else RED))
    lines.append((f"right: {after.reference}", GREY))
    pen, font = ImageDraw.Draw(cell), ImageFont.load_default(12)
    for number, (text, colour) in enumerate(lines):
        top = MARGIN + SIDE + 4 + 17 * number
        pen.text((MARGIN, top), one_line(text, 31), fill=colour, font=font)
    return cell
