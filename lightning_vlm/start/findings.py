"""All that was found out about data and a model, for the config and the summary."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_vlm.errors import DataError
from lightning_vlm.planning import Choice
from lightning_vlm.start.box_unit import BoxUnit
from lightning_vlm.start.files import File
from lightning_vlm.start.image_root import ImageRoot
from lightning_vlm.start.survey import Survey
from lightning_vlm.start.tokens import Tokens


@dataclass(frozen=True)
class Opened:
    """The data of a split, and how it is read.

    Args:
        files: One or several.
        roots: Where the pictures of each lie; None where it names none by path.
    """

    files: Sequence[File]
    roots: Sequence[ImageRoot | None]

    @property
    def named_roots(self) -> list[str | None]:
        """The `image_root` that each file needs; None where it is the folder of the file."""
        return [_needed(file, root) for file, root in zip(self.files, self.roots, strict=True)]


def _needed(file: File, root: ImageRoot | None) -> str | None:
    if root is None:
        return None
    usual = file.path if os.path.isdir(file.path) else os.path.dirname(file.path)
    return None if os.path.realpath(usual or ".") == os.path.realpath(root.folder) else root.folder


@dataclass(frozen=True)
class Findings:
    """What was found out.

    Args:
        command: The words that were typed, to repeat them.
        out: The file of the config.
        splits: The data of `train`, and of `val` and `test` where there is some.
        form: The format, in words.
        columns: For `data.columns`.
        unit: What is known of boxes without a unit; None where there are none, or it was given.
        box_format: For `data.box_format`, where it is known or given.
        survey: What is in the training data.
        faults: What is wrong with samples that can't be read.
        model: For `model.name_or_path`.
        model_why: Why this one.
        memory: As it was given.
        tokens: What was measured; None if the model can't be reached.
        unreachable: Why not.
        choice: The plan's; None likewise.
        left_out: Files of a folder that aren't read.
    """

    command: str
    out: str
    splits: Mapping[str, Opened]
    form: str
    columns: Mapping[str, str]
    unit: BoxUnit | None
    box_format: str | None
    survey: Survey
    faults: Sequence[DataError]
    model: str
    model_why: str
    memory: str | None
    tokens: Tokens | None
    unreachable: str
    choice: Choice | None
    left_out: Sequence[str]

    @property
    def asks_for_addresses(self) -> bool:
        """Whether pictures are fetched from addresses."""
        return self.survey.addresses > 0

    @property
    def must_choose(self) -> bool:
        """Whether `data.box_format` is missing."""
        return self.unit is not None and self.box_format is None
