"""Hugging Face data sets on disk as a source."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_vlm.data.conversation import Conversation
from lightning_vlm.data.read.reading import Reading
from lightning_vlm.data.read.rows import any_conversation
from lightning_vlm.data.source import OnBadSample, Source
from lightning_vlm.errors import DataError, UserError

if TYPE_CHECKING:
    import datasets
    import pyarrow

_AT_ONCE = 1000
"""Rows that are checked together."""


class HFDataset(Source):
    """A Hugging Face data set that `save_to_disk` wrote (needs the extra `lightning-vlm[datasets]`).

    Its rows hold their words in one of two columns, their pictures in `images` or `image` (what
    `datasets.Image` stores, bytes, or paths below the image root), and may have `task` and `weight`:

    - `messages`: turns with `role` and `content`. A content is a text, or a list of parts as in `Messages` or
      `OpenAIMessages`; a part that is only `{"type": "image"}` is the next of the row's pictures. Where there
      is a column of pictures, `<image>` in a content that is a text stands for the next one too, as in
      `LLaVA`.
    - `conversations`: as in `LLaVA`.

    There must be as many places for pictures as pictures. Nulls count as absent; other columns are left
    alone, but videos, sound and tools are refused.

    Args:
        path: The folder that `save_to_disk` wrote.
        split: Which of its splits; needed if it has several.
        image_root: The folder that holds pictures given by path. None is `path`.
        on_bad_sample: As in `Messages`.

    Raises:
        DataError: A bad row, with its `folder:row` counted from 0; no such folder; or no rows.
        UserError: `datasets` is not installed, an unknown split, no column of words, or bad rows only.

    >>> import tempfile
    >>> from datasets import Dataset
    >>> path = tempfile.mkdtemp()
    >>> turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes?"}]
    >>> Dataset.from_dict({"messages": [turns]}).save_to_disk(path)
    >>> HFDataset(path)[0].messages[1].parts
    (Text(text='Yes?', entity=False),)
    """

    width = 1

    def __init__(
        self,
        path: str,
        split: str | None = None,
        image_root: str | None = None,
        on_bad_sample: OnBadSample = "raise",
        columns: Mapping[str, str] | None = None,
        allow_urls: bool = False,
    ) -> None:
        self._name = path if split is None else f"{path}/{split}"
        data = _load(path, split)
        self._features = _stored(data.features)
        self._data = data.with_format("arrow")  # so that pictures stay the bytes they are
        super().__init__(self._name, image_root or path, on_bad_sample, columns, allow_urls)

    def _records(self) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
        for start in range(0, len(self._data), _AT_ONCE):
            table = self._data[start : start + _AT_ONCE]
            for index, name in enumerate(table.column_names):
                if _holds_bytes(table.column(name).type):
                    column = _without_bytes(table.column(name).combine_chunks())
                    table = table.set_column(index, name, column)
            for row, record in enumerate(table.to_pylist(), start):
                yield (row,), record

    def _record(self, place: tuple[int, ...]) -> dict[str, Any]:
        row = place[0]
        record: dict[str, Any] = self._data[row : row + 1].to_pylist()[0]
        return record

    def _build(self, place: tuple[int, ...], record: dict[str, Any], reading: Reading) -> Conversation:
        record = self._features.decode_example(record)  # some columns are stored as JSON
        return any_conversation(record, f"{self._name}:{place[0]}", reading)


def _load(path: str, split: str | None) -> "datasets.Dataset":
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{path} is a Hugging Face data set; run `pip install 'lightning-vlm[datasets]'` to read it"
        ) from None
    if not Path(path).is_dir():
        raise DataError(path, "", "no such folder", "a folder that `save_to_disk` of datasets wrote")
    try:
        data = datasets.load_from_disk(path)
    except Exception as error:  # missing or broken metadata and tables raise anything at all
        found = f"a folder that can't be read ({error})"
        raise DataError(path, "", found, "a folder that `save_to_disk` of datasets wrote") from error
    splits = list(data) if isinstance(data, datasets.DatasetDict) else []
    if split is not None or splits:
        split = splits[0] if split is None and len(splits) == 1 else split
        if split not in splits:
            known = f"one of {', '.join(map(str, splits))}" if splits else "none: it has no splits"
            raise UserError(f"{path}: split is {split}; choose {known}")
        data = data[split]
    return data


def _stored(features: Any) -> Any:
    """The same features, but with pictures as they are stored instead of decoded, at any depth."""
    import datasets

    if isinstance(features, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(features, datasets.Features):
        return datasets.Features({name: _stored(feature) for name, feature in features.items()})
    if isinstance(features, dict):
        return {name: _stored(feature) for name, feature in features.items()}
    if isinstance(features, datasets.List | datasets.LargeList):
        return dataclasses.replace(features, feature=_stored(features.feature))
    return features


def _holds_bytes(kind: "pyarrow.DataType") -> bool:
    import pyarrow

    if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        return True
    return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))


def _without_bytes(pictures: "pyarrow.Array") -> "pyarrow.Array":
    """The same pictures with empty bytes: checking a data set must not read all of its pictures."""
    import pyarrow
    import pyarrow.compute

    kind = pictures.type
    if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        return pyarrow.compute.if_else(pictures.is_valid(), b"", None)
    if pyarrow.types.is_struct(kind):
        fields = [_without_bytes(pictures.field(index)) for index in range(kind.num_fields)]
        names = [field.name for field in kind.fields]
        return pyarrow.StructArray.from_arrays(fields, names=names, mask=pictures.is_null())
    if pyarrow.types.is_list(kind):
        values = _without_bytes(pictures.values)
        return pyarrow.ListArray.from_arrays(pictures.offsets, values, mask=pictures.is_null())
    return pictures
