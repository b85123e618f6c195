"""Which files of a folder, and which split of a data set, are read."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lightning_vlm.data.read.reading import say
from lightning_vlm.data.read.words import quote
from lightning_vlm.errors import UserError

TEXT_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
"""What `readers.DataFile` reads, also with `.gz` at the end."""
TABLE_FILES = (".parquet", ".arrow", ".feather")
"""What `datasets` reads."""
UNREADABLE_FILES = (
    *(".tar", ".tgz", ".zip", ".7z", ".bz2", ".xz", ".zst", ".rar"),
    *(".pkl", ".pickle", ".pt", ".npy", ".npz", ".h5", ".xlsx", ".xls", ".lmdb"),
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tiff", ".mp4"),
    *(".yaml", ".yml", ".py", ".md", ".pdf", ".html", ".ckpt", ".safetensors"),
)
PREFERRED: Mapping[str, list[str]] = {
    "train": ["train"],
    "val": ["validation", "val", "valid", "dev", "test"],
    "test": ["test", "testing", "eval", "validation", "val"],
    "predict": ["test", "validation", "val", "train"],
}
"""The splits that a stage reads, the first that there is."""
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")


def is_saved(folder: str) -> bool:
    """Whether `save_to_disk` of `datasets` wrote a folder."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_dict.json"))


def text_files(folder: str) -> dict[str, list[str]]:
    """The JSON and CSV files of a folder by split; none where there are tables, which `datasets` reads.

    A file belongs to the split that its name or its folder's name has, and to `train` if they have none.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("train.jsonl", "dev.jsonl.gz", "README.md"):
    ...     (folder / name).touch()
    >>> {split: [Path(path).name for path in paths] for split, paths in text_files(str(folder)).items()}
    {'validation': ['dev.jsonl.gz'], 'train': ['train.jsonl']}
    """
    files = [path for path in all_files(folder) if Path(path).name not in _NOT_DATA]
    if any(path.lower().endswith(TABLE_FILES) for path in files):
        return {}
    splits: dict[str, list[str]] = {}
    for path in files:
        if path.lower().removesuffix(".gz").endswith(TEXT_FILES):
            splits.setdefault(split_of(os.path.relpath(path, folder)), []).append(path)
    return splits


def choose_split(splits: Iterable[str], preferred: Sequence[str], path: str) -> str:
    """The split to read: the only one, or the first of those that are preferred, which is then said.

    Raises:
        UserError: There are several and none of them is preferred.
    """
    known = [str(split) for split in splits]
    if len(known) == 1:
        return known[0]
    for split in preferred:
        if split in known:
            say(f"{path}: the split '{split}' is read, of {quote(known)}")
            return split
    raise UserError(
        f"{path}: found the splits {quote(known)}; expected one of {quote(preferred)}; name one with "
        "{class_path: HFDataset, init_args: {path: ..., split: ...}}"
    )


def all_files(folder: str) -> list[str]:
    """The files of a folder and of its subfolders, sorted and without hidden ones."""
    found = []
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        found += [os.path.join(where, name) for name in sorted(files) if not name.startswith(".")]
    return found


def split_of(name: str) -> str:
    """The split that a file belongs to by its name: `train`, `validation` or `test`.

    >>> split_of("pets_dev.jsonl"), split_of("instances_val2017.json"), split_of("pets.jsonl")
    ('validation', 'validation', 'train')
    """
    words = re.split(r"[^a-z]+", name.lower())
    for split, synonyms in _SPLITS.items():
        if any(word in synonyms for word in words):
            return split
    return "train"
