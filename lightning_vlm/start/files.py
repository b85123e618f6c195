"""Which files of what a person names are the data of each split."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from lightning_vlm.data.images import FORMATS
from lightning_vlm.data.read.coco import is_coco
from lightning_vlm.data.read.folders import (
    PREFERRED,
    TABLE_FILES,
    TEXT_FILES,
    UNREADABLE_FILES,
    is_saved,
    split_of,
    text_files,
)
from lightning_vlm.data.read.hf_dataset import is_hub_name, split_names
from lightning_vlm.data.streams.files import is_shards
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.nearest import did_you_mean
from lightning_vlm.start.columns import guess_columns
from lightning_vlm.start.peek import dialect_in, is_table, peek

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""Files that are pictures, by their names."""
assert {"JPEG", "PNG", "WEBP"} <= set(FORMATS)
_OURS = {"train": "train", "validation": "val", "test": "test"}
_MOST_PER_SPLIT = 50


class File(NamedTuple):
    """A file, or a data set of files, that `read` or one of its classes opens.

    Args:
        path: Where it is.
        kind: The class that reads it.
        split: Which split of a data set that has several.
    """

    path: str
    kind: Literal["DataFile", "HFDataset", "COCO"]
    split: str | None = None


class Splits(NamedTuple):
    """The files of each split, and what was left out."""

    train: list[File]
    val: list[File]
    test: list[File]
    left_out: list[str]


def find_files(given: Sequence[str]) -> Splits:
    """The files of each split.

    Args:
        given: A file, a folder or the name of a data set on the hub; or two files or three, for training,
            validation and test in this order.

    Raises:
        DataError: Nothing there that can be read.
        UserError: More than three.
    """
    if len(given) > 3:
        raise UserError(f"init: found {len(given)} files; expected one, or those of train, val and test")
    if len(given) > 1:
        train, val, *test = ([_one_file(path)] for path in given)
        return Splits(train, val, test[0] if test else [], [])
    (path,) = given
    if is_shards(path):
        raise UserError(
            f"init: found {path}, which names shards; init looks at data that are read whole: run it on one "
            "file of JSON lines or parquet, then set data.train to the shards and data.streaming to true"
        )
    if os.path.isdir(path) and not is_saved(path):
        files = text_files(path)
        if files:
            return _of_folder(files, path)
    if os.path.isfile(path):
        return _with_siblings(_one_file(path))
    return _of_data_set(path)


def pictures_in(folder: str) -> list[str]:
    """The pictures of a folder and of its subfolders, by their paths from it, sorted."""
    found = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.lower().endswith(PICTURES) and not name.startswith("."):
                found.append(os.path.relpath(os.path.join(where, name), folder))
    return found


def _one_file(path: str) -> File:
    if os.path.isdir(path):
        if is_saved(path) or not text_files(path):
            return _of_data_set(path).train[0]
        raise DataError(path, "", "a folder beside another path", "one folder alone, or files")
    if not os.path.exists(path):
        if is_hub_name(path):
            return _of_data_set(path).train[0]
        raise DataError(path, "", "no such file or folder", f"data to learn from{_near(path)}")
    name = path.lower().removesuffix(".gz")
    if name.endswith(UNREADABLE_FILES):
        readable = ", ".join((*TEXT_FILES, *TABLE_FILES))
        found = f"a file of the type {Path(name).suffix}"
        raise DataError(path, "", found, f"one of {readable}, or a folder with such files or with pictures")
    if is_table(path):
        return File(path, "HFDataset")
    return File(path, "COCO" if is_coco(path) else "DataFile")


def _near(path: str) -> str:
    folder, name = os.path.split(path)
    try:
        return did_you_mean(name, sorted(os.listdir(folder or ".")))
    except OSError:
        return ""


def _with_siblings(file: File) -> Splits:
    """A file, and the files beside it whose names say that they are for validation or test."""
    splits = Splits([file], [], [], [])
    folder, name = os.path.split(file.path)
    if split_of(name) != "train":
        return splits
    suffix = _suffix(name)
    beside = sorted(
        other for other in os.listdir(folder or ".") if other != name and _suffix(other) == suffix
    )
    for split, ours in (("validation", splits.val), ("test", splits.test)):
        candidates = [other for other in beside if split_of(other) == split]
        candidates = [other for other in candidates if os.path.isfile(os.path.join(folder, other))]
        named_alike = [other for other in candidates if _base(other) == _base(name)]
        bare = [other for other in candidates if not _base(other)]
        chosen = named_alike or bare
        if chosen:
            one = _one_file(os.path.join(folder, chosen[0]))
            if one.kind == file.kind and _is_data(one):
                ours.append(one)
    return splits


def _suffix(name: str) -> str:
    return "".join(Path(name.lower()).suffixes[-2 if name.lower().endswith(".gz") else -1 :])


def _base(name: str) -> str:
    """A name without its split: `pets_train.jsonl` and `pets_val.jsonl` have one base."""
    stem = name.lower().split(".")[0]
    words = [word for word in stem.replace("-", "_").split("_") if word]
    return "_".join(word for word in words if split_of(word) == "train" and word not in ("train", "training"))


def _of_folder(files: dict[str, list[str]], folder: str) -> Splits:
    """The data among the JSON and CSV files of a folder."""
    found = Splits([], [], [], [])
    is_detection = any(is_coco(path) for paths in files.values() for path in paths)
    for split, paths in files.items():
        ours: list[File] = getattr(found, _OURS[split])
        for path in paths[:_MOST_PER_SPLIT]:
            file = _one_file(path)
            if _is_data(file) and (not is_detection or file.kind == "COCO"):
                ours.append(file)
            else:
                found.left_out.append(path)
    if (
        is_detection
    ):  # `captions_train2017.json` and `person_keypoints_train2017.json` have the lists of COCO too
        for ours in (found.train, found.val, found.test):
            instances = [file for file in ours if Path(file.path).name.startswith("instances")]
            if instances:
                found.left_out.extend(file.path for file in ours if file not in instances)
                ours[:] = instances
    if not (found.train or found.val or found.test):
        peek(next(iter(files.values()))[0])  # says what is wrong with it
        raise DataError(
            folder, "", "no file that can be read as samples", "a JSONL, JSON or CSV file of samples"
        )
    if not found.train:
        found.train.extend(found.val or found.test)
        (found.val or found.test).clear()
    return found


def _is_data(file: File) -> bool:
    """Whether the rows of a file are samples, as far as their keys say."""
    if file.kind != "DataFile":
        return True
    try:
        rows = peek(file.path).rows
    except UserError:
        return False
    fitting = sum(dialect_in(row) is not None for row in rows)
    return bool(rows) and (2 * fitting > len(rows) or bool(guess_columns(rows)))


def _of_data_set(path: str) -> Splits:
    """The splits of a data set that `datasets` reads, or one on the hub."""
    if os.path.isdir(path) and not is_saved(path) and not _has_tables(path):
        pictures = pictures_in(path)
        found = (
            f"a folder with {len(pictures):,} pictures and no texts" if pictures else "a folder without data"
        )
        expected = (
            "a JSONL, JSON or CSV file in it, a text beside each picture (cat.jpg, cat.txt), or a folder of "
            "pictures for each class"
        )
        raise DataError(path, "", found, expected)
    if not os.path.exists(path) and not is_hub_name(path):
        raise DataError(path, "", "no such file or folder", f"data to learn from{_near(path)}")
    names = split_names(path)
    if not names:
        return Splits([File(path, "HFDataset")], [], [], [])
    wanted = {
        "train": PREFERRED["train"],
        "val": ["validation", "val", "valid", "dev"],
        "test": ["test", "testing", "eval"],
    }
    chosen = {ours: [name for name in theirs if name in names][:1] for ours, theirs in wanted.items()}
    if not chosen["train"]:
        chosen = {"train": [names[0]], "val": [], "test": []}
    files = {ours: [File(path, "HFDataset", name) for name in theirs] for ours, theirs in chosen.items()}
    used = {name for theirs in chosen.values() for name in theirs}
    return Splits(files["train"], files["val"], files["test"], [name for name in names if name not in used])


def _has_tables(folder: str) -> bool:
    return any(name.lower().endswith(TABLE_FILES) for _, _, names in os.walk(folder) for name in names)
