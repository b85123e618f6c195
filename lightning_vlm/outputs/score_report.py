"""What a run achieved: scores of the test data before and after, as a table and a picture."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image
from lightning.pytorch import Trainer
from lightning_vlm_callbacks.runs import run_folder
from lightning_vlm_callbacks.trackers import log_picture
from lightning_vlm_callbacks.whole_files import written_whole
from PIL import ImageDraw, ImageFont
from rich.table import Table

from lightning_vlm.data.conversation import Conversation, Conversations, Text
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.images import load_image
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.baselines import blind_baselines
from lightning_vlm.metrics.known_scores import is_score, place_of
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.score_table import heading
from lightning_vlm.nearest import one_line
from lightning_vlm.outputs.score_printer import is_limited, what_is_scored
from lightning_vlm.terminal import print_line, say, short_path

if TYPE_CHECKING:
    from lightning_vlm.module import VLMModule

SHOWN = 24
"""How many predictions the picture shows."""
COLUMNS = 6
"""How many predictions stand in a row."""
WIDTH = 200
HEIGHT = 232
"""The size of each prediction with its image and its text, in pixels."""
SIDE = 128
"""The width and height of its image."""
MARGIN = 8
LINE_HEIGHT = 17
BLACK = (0, 0, 0)
GREY = (90, 90, 90)
GREEN = (0, 120, 0)
RED = (190, 0, 0)


class ScoreReport:
    """Scores the test data before and after training, and shows both beside blind baselines.

    Without test data, it is the validation data that are scored. Where the trainer's limit leaves some out,
    there are no baselines, which would be of other samples.

    Args:
        trainer: The trainer in whose run folder the picture is saved.
        module: The module; it must generate.
        data: The data; it must have test or validation data.

    Raises:
        UserError: The module doesn't generate, or there is nothing to score.
    """

    def __init__(self, trainer: Trainer, module: "VLMModule", data: VLMDataModule) -> None:
        if module.generation is None:
            raise UserError("a report needs answers; set model.generation, such as {max_new_tokens: 32}")
        self.split = next((split for split in ("test", "val") if data.given[split] is not None), "")
        """Which data are scored."""
        if not self.split:
            raise UserError(
                "a report needs data to score; set data.test, or data.val, such as 10% of the training data"
            )
        self.trainer = trainer
        self.module = module
        self.data = data
        self._scores: dict[str, float] = {}
        self._answers: list[Prediction] = []

    def before(self) -> None:
        """Score the model as it is, and say what it costs."""
        start = time.monotonic()
        self._scores = self._test()
        instead = "" if self.split == "test" else " (there is no data.test)"
        if self.trainer.is_global_zero:
            took = f"took {time.monotonic() - start:,.0f} s with loading; they are scored again at the end"
            scored = what_is_scored(self.trainer, self.data, self.split)
            print_line("report", f"scoring {scored} of data.{self.split}{instead} {took}")
        self._answers = list(self.module.predictions)

    def after(self) -> None:
        """Score the model again, print the table and save the picture."""
        scores = self._test()
        folder = run_folder(self.trainer)  # all ranks must call this
        if not self.trainer.is_global_zero:
            return
        path = folder / "predictions.png"
        draw_predictions(path, self.data.samples(self.split), self._answers, self.module.predictions)
        log_picture(self.trainer, f"pictures/{path.stem}", path)
        say(self._table(scores))
        print_line("picture", short_path(path))

    def _test(self) -> dict[str, float]:
        run = self.trainer.test if self.split == "test" else self.trainer.validate
        scores = run(self.module, datamodule=self.data, verbose=False)[0]
        return {name.removeprefix(f"{self.split}/"): value for name, value in scores.items()}

    def _table(self, after: dict[str, float]) -> Table:
        name = "Test" if self.split == "test" else "Validation"
        scored = what_is_scored(self.trainer, self.data, self.split)
        columns = sorted(filter(is_score, after), key=place_of)
        if "loss" in after:
            columns.append("loss")
        table = Table(title=f"{name}: {scored}", title_justify="left")
        table.add_column("")
        for column in columns:
            table.add_column(heading(column), justify="right")
        if "exact_match" in columns:
            for name, share in self._baselines().items():
                cells = [f"{share:.3f}" if column == "exact_match" else "" for column in columns]
                table.add_row(name, *cells, style="dim")
        table.add_row("before", *_score_cells(self._scores, columns))
        table.add_row("after", *_score_cells(after, columns), style="bold")
        return table

    def _baselines(self) -> dict[str, float]:
        if is_limited(self.trainer, self.split):
            return {}
        try:
            return blind_baselines(self.data.source("train"), self.data.source(self.split))
        except UserError:  # there are no baselines for conversations of several rounds
            return {}


def _score_cells(scores: dict[str, float], columns: Sequence[str]) -> list[str]:
    return [f"{scores.get(name, math.nan):.3f}" for name in columns]


def draw_predictions(
    path: Path, source: Conversations, before: list[Prediction], after: list[Prediction]
) -> None:
    """Save a picture of questions, evenly spread, with the answers before and after, the right ones in green.

    Args:
        path: Where to save it.
        source: What was asked.
        before: The answers to its items, in order.
        after: The answers to the same items later.
    """
    count = min(len(before), len(after))
    indices = sorted({number * count // SHOWN for number in range(min(SHOWN, count))})
    rows = max(1, math.ceil(len(indices) / COLUMNS))
    sheet = PIL.Image.new("RGB", (COLUMNS * WIDTH, rows * HEIGHT), "white")
    conversations = {}
    for index in indices:
        conversation = source[index]
        conversations[conversation.source] = conversation
    for place, index in enumerate(indices):
        asked = conversations.get(after[index].source)
        if asked is not None:
            row, column = divmod(place, COLUMNS)
            cell = _draw_sample(asked, before[index], after[index])
            sheet.paste(cell, (column * WIDTH, row * HEIGHT))
    with written_whole(path) as unfinished:
        sheet.save(unfinished)


def _draw_sample(conversation: Conversation, before: Prediction, after: Prediction) -> PIL.Image.Image:
    cell = PIL.Image.new("RGB", (WIDTH, HEIGHT), "white")
    for image in conversation.images[:1]:
        picture = load_image(image, conversation.source, "image")
        picture = picture.resize((SIDE, SIDE), PIL.Image.Resampling.NEAREST)
        cell.paste(picture, (MARGIN, MARGIN))
    questions = [message for message in conversation.messages if message.role == "user"]
    texts = [part.text for part in questions[-1].parts if isinstance(part, Text)]
    lines = [
        ("".join(texts), BLACK),
        (f"before: {before.text}", _colour(before)),
        (f"after: {after.text}", _colour(after)),
        (f"right: {after.reference}", GREY),
    ]
    pen = ImageDraw.Draw(cell)
    font = ImageFont.load_default(12)
    top = MARGIN + SIDE + 4
    for text, colour in lines:
        pen.text((MARGIN, top), one_line(text, 31), fill=colour, font=font)
        top += LINE_HEIGHT
    return cell


def _colour(answer: Prediction) -> tuple[int, int, int]:
    is_right = answer.reference is not None and answer.text.strip() == answer.reference.strip()
    return GREEN if is_right else RED
