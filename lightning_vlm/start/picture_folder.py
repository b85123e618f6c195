"""Rows for a folder of pictures: with a text beside each, or a folder for each class."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_vlm.data.read.folders import split_of
from lightning_vlm.start.files import pictures_in

_FEW_CLASSES = 20
"""Up to so many classes, the question names them."""
_SHARE = 0.5


def rows_of_pictures(folder: str) -> dict[str, list[dict[str, Any]]] | None:
    """Rows for the pictures of a folder, by split; None if nothing says what is on them.

    A text file of the same name beside a picture is its caption. Else the folder that a picture lies in is
    its class. Folders above whose names are those of splits say which one it belongs to.

    Args:
        folder: With pictures.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("cat/1.jpg", "dog/2.jpg"):
    ...     (folder / name).parent.mkdir()
    ...     (folder / name).touch()
    >>> rows_of_pictures(str(folder))["train"][1]
    {'image': 'dog/2.jpg', 'question': 'What is this: cat or dog?', 'answer': 'dog', 'task': 'classification'}
    """
    pictures = pictures_in(folder)
    texts = {picture: str(Path(folder, picture).with_suffix(".txt")) for picture in pictures}
    captioned = [picture for picture in pictures if os.path.isfile(texts[picture])]
    if captioned and len(captioned) >= _SHARE * len(pictures):
        rows: dict[str, list[dict[str, Any]]] = {}
        for picture in captioned:
            caption = Path(texts[picture]).read_text("utf-8", errors="replace").strip()
            row = {"image": Path(picture).as_posix(), "caption": caption, "task": "caption"}
            rows.setdefault(_split(picture), []).append(row)
        return rows
    classes = Counter(_class_of(picture) for picture in pictures)
    if len(classes) < 2 or "" in classes:
        return None
    question = f"What is this{_choices(sorted(classes))}?"
    labelled: dict[str, list[dict[str, Any]]] = {}
    for picture in pictures:
        answer = {"question": question, "answer": _class_of(picture), "task": "classification"}
        labelled.setdefault(_split(picture), []).append({"image": Path(picture).as_posix(), **answer})
    return labelled


def text_of_rows(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _class_of(picture: str) -> str:
    """The name of the folder of a picture, as words; nothing if that is the name of a split."""
    name = Path(picture).parent.name
    is_split = split_of(name) != "train" or name.lower() in ("train", "training")
    return "" if is_split else name.replace("_", " ").strip()


def _split(picture: str) -> str:
    folders = [split_of(name) for name in Path(picture).parts[:-1]]
    split = next((name for name in folders if name != "train"), "train")
    return "val" if split == "validation" else split


def _choices(names: Sequence[str]) -> str:
    if len(names) > _FEW_CLASSES:
        return ""
    return f": {', '.join(names[:-1])} or {names[-1]}"
