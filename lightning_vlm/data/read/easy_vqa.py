"""easy-VQA: a public benchmark of simple questions about simple pictures (Victor Zhou, MIT licence)."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from lightning_vlm.data.conversation import Conversation, Conversations, Image, Message, TaskTable, Text
from lightning_vlm.errors import UserError


class EasyVQA(Conversations):
    """The easy-VQA data set, read from the files of the PyPI package `easy-vqa`.

    4,000 training and 1,000 test pictures of 64×64 pixels, each with one shape; 38,575 and 9,673 questions
    with 13 different answers. Questions and answers are used as they are. There is no validation split: cut
    one off `train`.

    Args:
        split: `train` or `test`.

    Raises:
        UserError: An unknown split, or the package is not installed.

    >>> ask, answer = EasyVQA("train")[0].messages
    >>> ask.parts[1].text, answer.parts[0].text
    ('what is the blue shape?', 'rectangle')
    """

    def __init__(self, split: Literal["train", "test"] = "train") -> None:
        if split not in get_args(Literal["train", "test"]):
            raise UserError(f"EasyVQA: there is no split '{split}'; choose 'train' or 'test'")
        package = find_spec("easy_vqa")
        if package is None or package.origin is None:
            raise UserError("EasyVQA: its package is not installed; run `pip install easy-vqa`")
        self.split = split
        self._root = Path(package.origin).parent / "data"
        self._rows: list[tuple[str, str, int]] = json.loads(
            (self._root / split / "questions.json").read_text("utf-8")
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # a source has no slices
        question, answer, picture = self._rows[index]
        image = Image(path=Path(self.split, "images", f"{picture}.png"), root=self._root)
        return Conversation(
            (Message("user", (image, Text(question))), Message("assistant", (Text(answer),))),
            task="vqa",
            source=f"easy_vqa/{self.split}/questions.json:{index % len(self)}",
        )

    def task_table(self) -> TaskTable:
        """There is one task."""
        return TaskTable.of_samples("vqa" for _ in self._rows)
