"""Hugging Face data sets on disk as a source."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_vlm.data.read.arrow_bytes import holds_bytes, without_bytes
from lightning_vlm.data.read.bounds import OnBadBox
from lightning_vlm.data.read.folders import TABLE_FILES, TEXT_FILES, choose_split, is_saved
from lightning_vlm.data.read.reading import AllowUrls
from lightning_vlm.data.read.source import OnBadSample, Source
from lightning_vlm.data.read.table_rows import TableRows
from lightning_vlm.errors import DataError, UserError

if TYPE_CHECKING:
    import datasets

_AT_ONCE = 1000
_LOOKED_AT = 64
"""Rows that are checked together."""


class HFDataset(Source):
    """A Hugging Face data set (needs the extra `lightning-vlm[datasets]`).

    Its rows may be of any dialect that `read` supports. Pictures may be what `datasets.Image` stores, at any
    depth, bytes, or paths below the image root. Nulls count as absent.

    Args:
        path: A folder that `save_to_disk` wrote, a copy of a repository of the hub, a parquet or arrow file,
            or the name of a data set on the hub.
        split: Which of its splits; needed if it has several. Of a list, the first that there is.
        image_root: The folder that holds pictures given by path. None is `path`, or the folder of a file.
        on_bad_sample: As in `DataFile`.
        columns: As in `DataFile`.
        allow_urls: As in `DataFile`.
        config: Which of its configurations; needed if it has several.
        bad_boxes: As in `DataFile`.
        skip: As in `DataFile`.
        box_format: As in `DataFile`.

    Raises:
        DataError: Bad rows, each with its `folder:row` counted from 0; no such folder; or no rows.
        UserError: `datasets` is not installed, an unknown split, or bad rows only.

    >>> import tempfile
    >>> from datasets import Dataset
    >>> path = tempfile.mkdtemp()
    >>> turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes?"}]
    >>> Dataset.from_dict({"messages": [turns]}).save_to_disk(path)
    >>> HFDataset(path)[0].messages[1].parts
    (Text(text='Yes?', entity=False),)
    """

    place_length = 1

    def __init__(
        self,
        path: str,
        split: str | list[str] | None = None,
        image_root: str | None = None,
        on_bad_sample: OnBadSample = "raise",
        columns: Mapping[str, str] | None = None,
        allow_urls: AllowUrls = False,
        config: str | None = None,
        bad_boxes: OnBadBox = "error",
        box_format: str | None = None,
        skip: str | None = None,
    ) -> None:
        data, name = _split_of(_load(path, config), split, path)
        self._rows = TableRows(data.features)
        self._data = data.with_format("arrow")  # so that pictures stay encoded bytes
        if not image_root:
            image_root = str(Path(path).parent) if Path(path).is_file() else path
        super().__init__(name, image_root, on_bad_sample, columns, allow_urls, bad_boxes, box_format, skip)

    def fingerprint(self) -> str:
        """Of its size, its columns and some of its rows, evenly spread."""
        size = len(self._data)
        digest = hashlib.blake2b(f"{size} {self._rows.stored}".encode(), digest_size=12)
        for number in sorted({place * size // _LOOKED_AT for place in range(_LOOKED_AT)}) if size else ():
            digest.update(repr(self._record((number,))).encode())
        return digest.hexdigest()

    def _records(self) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
        for start in range(0, len(self._data), _AT_ONCE):
            table = self._data[start : start + _AT_ONCE]
            for index, name in enumerate(table.column_names):
                column = table.column(name)
                if holds_bytes(column.type):
                    emptied = without_bytes(column.combine_chunks())
                    table = table.set_column(index, name, emptied)
            for number, record in enumerate(table.to_pylist(), start):
                yield (number,), record

    def _record(self, place: tuple[int, ...]) -> dict[str, Any]:
        (number,) = place
        table = self._data[number : number + 1]
        (record,) = table.to_pylist()
        return record

    def _name_of(self, place: tuple[int, ...]) -> str:
        (number,) = place
        return f"{self.name}:{number}"

    def _row(self, record: dict[str, Any], source: str) -> dict[str, Any]:
        return self._rows.row(record)


def _load(path: str, config: str | None) -> Any:
    """A data set, or a dictionary of its splits."""
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise UserError(
            f"{path} is a Hugging Face data set; run `pip install 'lightning-vlm[datasets]'` to read it"
        ) from None
    if not os.path.exists(path) and not is_hub_name(path):
        expected = "a folder of data, a parquet or arrow file, or the name of a data set on the hub"
        raise DataError(path, "", "no such folder", expected)
    try:
        return _loaded(path, config)
    except Exception as error:  # missing or broken metadata and tables raise anything at all
        reason = " ".join(str(error.__cause__ or error).split())
        if "Config name is missing" in reason:
            raise _several_configs(path, reason) from None
        if "BatchSize must be greater than 0" in reason:  # what Arrow says of a table without rows
            raise DataError(path, "", "no samples", "at least one", "no_samples") from None
        found, expected = _what_failed(path)
        if len(reason) >= 200:
            reason = f"{reason[:200]}..."
        raise DataError(path, "", f"{found} ({reason})", expected) from error


def _several_configs(path: str, reason: str) -> UserError:
    """The error about a data set of several configurations, which `datasets` lists in its own message."""
    configs = re.search(r"\[[^\]\n]*\]", reason)
    known = configs[0] if configs else "see its README"
    return UserError(
        f"{path}: found several configurations, {known}; name one with "
        "{class_path: HFDataset, init_args: {path: ..., config: ...}}"
    )


def _loaded(path: str, config: str | None) -> Any:
    import datasets

    if os.path.isfile(path):
        return datasets.load_dataset(_kind_of_file(path), data_files=path, split="train")
    if is_saved(path):
        return datasets.load_from_disk(path)
    # A partial copy of a repository doesn't have the sizes in its README.
    return datasets.load_dataset(path, config, verification_mode="no_checks")


def _kind_of_file(path: str) -> str:
    return "parquet" if path.lower().endswith(".parquet") else "arrow"


def _what_failed(path: str) -> tuple[str, str]:
    """What was found where no data set could be loaded, and what is expected."""
    if os.path.isfile(path):
        kind = _kind_of_file(path)
        return f"a file that can't be read as {kind}", f"a whole {kind} file"
    if os.path.isdir(path):
        expected = "one that `save_to_disk` of datasets wrote, or a copy of a data set of the hub"
        return "a folder that can't be read", expected
    return (
        "no such file or folder, and no data set on the hub that can be loaded",
        "the path of a data file or folder, or a name on the hub that can be reached from here",
    )


def split_names(path: str) -> list[str]:
    """The splits of a data set; none if it has only one, without a name.

    Args:
        path: As of `HFDataset`.

    Raises:
        DataError: As `HFDataset`.
        UserError: As `HFDataset`.
    """
    data = _load(path, None)
    return [str(split) for split in data] if isinstance(data, dict) else []


def is_hub_name(path: str) -> bool:
    """Whether a path that doesn't exist may be the name of a data set on the hub.

    >>> is_hub_name("HuggingFaceM4/the_cauldron"), is_hub_name("data/train.jsonl"), is_hub_name("../data")
    (True, False, False)
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path) or os.path.exists(path):
        return False
    name = path.lower().removesuffix(".gz")
    return not name.endswith((*TEXT_FILES, *TABLE_FILES))


def _split_of(data: Any, split: str | list[str] | None, path: str) -> tuple["datasets.Dataset", str]:
    """One split of a data set, and what errors call it."""
    if not isinstance(data, dict):
        if isinstance(split, str):
            raise UserError(f"{path}: split is {split}; choose none: it has no splits")
        return data, path
    splits = list(data)
    if isinstance(split, list):
        chosen = choose_split(splits, split, path)
    elif split is not None and split in splits:
        chosen = split
    elif split is None and len(splits) == 1:
        (chosen,) = splits
    else:
        known = ", ".join(map(str, splits))
        raise UserError(f"{path}: split is {split}; choose one of {known}")
    return data[chosen], f"{path}/{chosen}"
