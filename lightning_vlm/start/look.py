"""Looks at data until nothing is left to find out."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from lightning_vlm.data.conversation import Chain, Conversations
from lightning_vlm.data.read.coco import COCO
from lightning_vlm.data.read.coco_content import CocoContent
from lightning_vlm.data.read.data_file import unpack
from lightning_vlm.data.read.faults import BadSamplesError
from lightning_vlm.data.read.hf_dataset import HFDataset
from lightning_vlm.data.read.readers import DataFile
from lightning_vlm.data.read.source import Source
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.start.box_unit import BoxUnit, find_box_unit, names_no_unit
from lightning_vlm.start.columns import guess_columns
from lightning_vlm.start.files import File
from lightning_vlm.start.image_root import ImageRoot, find_image_root, looked_for
from lightning_vlm.start.peek import Peek, dialect_in, peek

_KINDS: dict[str, type[Source]] = {"DataFile": DataFile, "HFDataset": HFDataset, "COCO": COCO}


class Given(NamedTuple):
    """What the user says of the data, each None where it is to be found out.

    Args:
        image_root: Where pictures lie.
        box_format: As `data.box_format`.
        columns: As `data.columns`.
    """

    image_root: str | None
    box_format: str | None
    columns: Mapping[str, str] | None = None


class Look(NamedTuple):
    """How a file is read.

    Args:
        form: Its format, in words.
        columns: As `data.columns`.
        root: Where its pictures lie.
        unit: Of its boxes; None where nothing has to be found out.
        box_format: As `data.box_format`.
    """

    form: str
    columns: Mapping[str, str]
    root: ImageRoot | None
    unit: BoxUnit | None
    box_format: str | None


def look_at(file: File, given: Given) -> Look:
    """Find out how a file is to be read.

    Args:
        file: The file.
        given: What needs no finding out.

    Raises:
        DataError: No format that is known, or no picture is there.
        UserError: As the readers.
    """
    if file.kind == "COCO":
        paths = _paths_of_coco(file.path)
        return Look("detection data of COCO", {}, _root(paths, file, given), None, None)
    rows = _peek(file, {}, None, given.box_format).rows
    columns = guess_columns(rows) if given.columns is None else given.columns
    first = _peek(file, columns, None, given.box_format)
    renamed = {theirs: ours for ours, theirs in columns.items()}
    dialect = next(
        filter(None, (dialect_in({renamed.get(name, name): row[name] for name in row}) for row in rows)), None
    )
    if dialect is None:
        raise first.errors[0] if first.errors else DataError(file.path, "", "no samples", "at least one")
    root = _root(first.paths, file, given)
    folder = root.folder if root is not None else None
    unit, box_format = None, given.box_format
    if box_format is None and names_no_unit(first.errors):
        unit = find_box_unit(lambda name: _peek(file, columns, folder, name, finds_media=True))
        box_format = unit.format
    return Look(dialect.name, columns, root, unit, box_format)


def _peek(
    file: File,
    columns: Mapping[str, str],
    root: str | None,
    box_format: str | None,
    finds_media: bool = False,
) -> Peek:
    with quiet():
        return peek(file.path, columns, root, box_format, file.split, finds_media)


def _root(paths: Sequence[str], file: File, given: Given) -> ImageRoot | None:
    if given.image_root is None:
        return find_image_root(paths, file.path)
    if not os.path.isdir(given.image_root):
        raise UserError(
            f"image_root: found no folder {given.image_root}; expected the one where pictures lie"
        )
    found = looked_for(paths, given.image_root)
    if found.missing and not found.there:
        raise UserError(
            f"image_root: {given.image_root} has no picture of {file.path}, such as {found.missing[0]!r}; "
            "expected the folder that the paths begin at; without it, init looks for it"
        )
    return found


def _paths_of_coco(path: str) -> list[str]:
    content = CocoContent(unpack(path), path, False, True)
    return [str(row["file_name"]) for row in content.rows("picture", False) if "file_name" in row]


def open_all(files: Sequence[File], looks: Sequence[Look]) -> Conversations:
    """Open the files of a split as training does, but without those samples that are bad.

    Raises:
        DataError: The first fault, if no sample is good.
    """
    with quiet():
        sources = [_open(file, look) for file, look in zip(files, looks, strict=True)]
    return sources[0] if len(sources) == 1 else Chain(sources)


def _open(file: File, look: Look) -> Conversations:
    root = None if look.root is None else look.root.folder
    arguments: dict[str, Any] = {"path": file.path, "image_root": root, "on_bad_sample": "skip"}
    if file.kind != "COCO":
        box_format = look.box_format
        if box_format is None and look.unit is not None and look.unit.fits:
            box_format = look.unit.fits[0]  # to count the other things
        arguments |= {"columns": dict(look.columns), "box_format": box_format, "allow_urls": True}
    if file.kind == "HFDataset":
        arguments["split"] = file.split
    try:
        return _KINDS[file.kind](**arguments)
    except DataError:
        raise
    except UserError as error:
        raise _first_fault(file, look, arguments) or error from None


def _first_fault(file: File, look: Look, arguments: dict[str, Any]) -> DataError | None:
    """What is wrong with the first of many bad samples."""
    try:
        _KINDS[file.kind](**{**arguments, "on_bad_sample": "raise"})
    except BadSamplesError as error:
        return error.errors[0]
    except DataError as error:
        return error
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Without the lines that reading prints: the summary has them."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
