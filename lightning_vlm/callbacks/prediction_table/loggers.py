"""What loggers get: a table on Weights & Biases, and pictures on all others that show them."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning_vlm_callbacks.trackers import log_picture_to, shows_pictures

from lightning_vlm.callbacks.prediction_table.drawing import draw
from lightning_vlm.callbacks.prediction_table.history import Answer
from lightning_vlm.callbacks.prediction_table.marks import Mark
from lightning_vlm.callbacks.prediction_table.samples import Place, Row

KEY = "predictions"
"""What loggers call it."""
POINT = 0.01
"""Half the side of the box that stands for a point on Weights & Biases, which has only boxes."""
UNNAMED = "thing"
"""The class of a box without a label."""


def log_answers(trainer: Trainer, rows: Sequence[Row], answers: Mapping[Place, Answer]) -> None:
    """Send the answers of a validation to the loggers that show pictures.

    Args:
        trainer: On rank zero.
        rows: The samples.
        answers: Their answers; a sample may have none.
    """
    shown = [(row, answers[row.place]) for row in rows if row.place in answers]
    if not shown:
        return
    step = trainer.global_step
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            columns, data = wandb_table(shown)
            logger.log_table(KEY, columns=columns, data=data, step=step)
        elif shows_pictures(logger):
            for number, (row, answer) in enumerate(shown, 1):
                log_picture_to(logger, f"{KEY}/{number:02} {row.task}", draw(row, answer), step)


def wandb_table(shown: Sequence[tuple[Row, Answer]]) -> tuple[list[str], list[list[Any]]]:
    """The columns and the rows of a table; each box is an overlay that can be switched off."""
    import wandb  # takes a second, which runs without it needn't wait

    most = max(len(row.pictures) for row, _ in shown)
    pictures = ["picture", *(f"picture {number}" for number in range(2, most + 1))][:most]
    scores = list(dict.fromkeys(name for _, answer in shown for name in answer.scores))
    columns = ["task", *pictures, "prompt", "target", "prediction", "exact", *scores, "faults", "source"]
    classes = class_labels(shown)
    data = []
    for row, answer in shown:
        images = [
            None if picture is None else wandb.Image(picture, boxes=_layers(row, answer, number, classes))
            for number, picture in enumerate(row.pictures)
        ]
        data.append(
            [
                row.task,
                *images,
                *[None] * (most - len(images)),
                answer.prompt,
                answer.target,
                answer.text,
                answer.right,
                *(answer.scores.get(name) for name in scores),
                "; ".join(answer.faults),
                row.source,
            ]
        )
    return columns, data


def class_labels(shown: Sequence[tuple[Row, Answer]]) -> dict[int, str]:
    """A number for each label, the same in all pictures of a table.

    Labels that only stand in answers come last: a model may write anything.
    """
    right = {mark.label for row, _ in shown for mark in (*row.right, *row.asked)}
    found = {mark.label for _, answer in shown for mark in answer.found}
    names = [*sorted(right - {""}), *sorted(found - right - {""})]
    return dict(enumerate([UNNAMED, *names]))


def _layers(row: Row, answer: Answer, number: int, classes: Mapping[int, str]) -> dict[str, Any]:
    """The boxes of one picture, as Weights & Biases has them; all layers are always there."""
    ids = {name: number for number, name in classes.items()}
    layers = {"right": row.right, "predicted": answer.found, "question": row.asked}
    return {
        name: {
            "box_data": [
                _box(mark, ids[mark.label or UNNAMED], name) for mark in marks if mark.picture == number
            ],
            "class_labels": dict(classes),
        }
        for name, marks in layers.items()
    }


def _box(mark: Mark, class_id: int, layer: str) -> dict[str, Any]:
    x1, y1, x2, y2 = mark.bounds
    if mark.kind == "point":
        x1, y1, x2, y2 = x1 - POINT, y1 - POINT, x2 + POINT, y2 + POINT
    return {
        "position": {"minX": x1, "minY": y1, "maxX": x2, "maxY": y2},
        "class_id": class_id,
        "box_caption": f"{layer}: {mark.label}" if mark.label else layer,
    }
