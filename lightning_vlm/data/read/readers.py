"""Data files and folders as sources: sequences of conversations, one class for each format."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_vlm.data.conversation import Chain, Conversations
from lightning_vlm.data.read.bounds import OnBadBox
from lightning_vlm.data.read.coco import COCO, is_coco
from lightning_vlm.data.read.csv_layout import CsvLayout
from lightning_vlm.data.read.data_file import Layout, Place, unpack
from lightning_vlm.data.read.folders import (
    PREFERRED,
    TABLE_FILES,
    TEXT_FILES,
    UNREADABLE_FILES,
    choose_split,
    is_saved,
    text_files,
)
from lightning_vlm.data.read.hf_dataset import HFDataset, is_hub_name
from lightning_vlm.data.read.json_layout import JsonLayout
from lightning_vlm.data.read.own_format import own_conversation
from lightning_vlm.data.read.reading import AllowUrls
from lightning_vlm.data.read.source import OnBadSample, Source
from lightning_vlm.data.skip_list import fingerprint_of_file
from lightning_vlm.errors import DataError, UserError


class DataFile(Source):
    r"""A file of samples in any dialect: JSON, JSON lines, CSV or TSV, each also as `.gz`.

    Each row is read alone, so that one file may hold several dialects. `read` says which there are.

    Args:
        path: The file.
        image_root: The folder that holds the pictures. Nothing outside it is ever opened. None is the folder
            of the file.
        on_bad_sample: `raise` reports all bad samples in one error; `skip` leaves them out and lists them in
            `skipped`. A file that can't be read as a whole is an error either way.
        columns: Our names for keys -> the names that they have in the file, such as
            `{question: query, image: img}`.
        allow_urls: Whether pictures at http and https addresses are fetched; `private`: local ones too.
        bad_boxes: `error` refuses boxes that reach beyond their picture, `clip` cuts them off at its edge.
        box_format: The unit and order of boxes where the data doesn't say it, such as `pixels`, `fractions`,
            `0-1000` or `pixels xywh`; `text` leaves what looks like boxes in texts as words.
        skip: A list of rows that are left out, as `lightning-vlm lint --fix skip` writes it.

    Raises:
        DataError: Bad samples, each with its `file:line`, its key, what was found and what to write; no
            samples; no such file; or an array that breaks off, even with `skip`.
        UserError: A wrong argument, or a file with bad samples only.

    >>> import json, tempfile
    >>> path = Path(tempfile.mkdtemp(), "pets.jsonl")
    >>> _ = path.write_text(json.dumps({"query": "What is this?", "response": "A cat."}))
    >>> [turn.parts[0].text for turn in DataFile(str(path))[0].messages]
    ['What is this?', 'A cat.']
    """

    place_length = len(Place._fields)

    def __init__(
        self,
        path: str,
        image_root: str | None = None,
        on_bad_sample: OnBadSample = "raise",
        columns: Mapping[str, str] | None = None,
        allow_urls: AllowUrls = False,
        bad_boxes: OnBadBox = "error",
        box_format: str | None = None,
        skip: str | None = None,
    ) -> None:
        path = os.fspath(path)
        self._file = unpack(path)
        suffix = Path(self._file).suffix.lower()
        self._layout: Layout
        if suffix in (".csv", ".tsv"):
            self._layout = CsvLayout(self._file, path, tabs=suffix == ".tsv")
        else:
            self._layout = JsonLayout(self._file, path)
        image_root = image_root or str(Path(path).parent)
        super().__init__(path, image_root, on_bad_sample, columns, allow_urls, bad_boxes, box_format, skip)

    def fingerprint(self) -> str:
        """Of the contents of the file."""
        try:
            return fingerprint_of_file(self._file)
        except OSError:  # reading it says why
            return ""

    @property
    def rows_are_lines(self) -> bool:
        """Whether each row is a line of its own, so that some can be left out of a copy."""
        is_as_given = self._file == self.name
        return is_as_given and isinstance(self._layout, JsonLayout) and self._layout.rows_are_lines

    def _records(self) -> Iterator[tuple[Place, bytes]]:
        return self._layout.rows()

    def _record(self, place: tuple[int, ...]) -> bytes:
        start, end, *_ = place
        with open(self._file, "rb") as file:
            file.seek(start)
            return file.read(end - start)

    def _name_of(self, place: tuple[int, ...]) -> str:
        return Place(*place).name(self.name)

    def _row(self, record: bytes, source: str) -> Any:
        return self._layout.parse(record, source)


class Messages(DataFile):
    r"""Our own format: one JSON object a line, or one JSON array of objects.

    A turn's content is a text, or a list of parts:

    - `{"type": "text", "text": "..."}`: words, taken literally: `<image>` is no picture here.
    - `{"type": "image", "path": "..."}` or `{"type": "image", "base64": "..."}`: a picture.
    - `{"type": "video", "path": "..."}`: a video; a folder of frames, or `frames`, a list of their
      paths, with `fps`; `sampling` goes before `data.video`. See docs/video.md.
    - `{"type": "box", "box": [x1, y1, x2, y2]}`: a box, in fractions 0..1 of the picture's width and height;
      with `"pixels": true` in pixels of the upright picture. `label` says what is in it, and `image` the
      number of its picture in the sample, from 0 (else it is the last one before it).
    - `{"type": "point", "point": [x, y]}` and `{"type": "region", "region": [x1, y1, x2, y2, x3, y3, ...]}`:
      a point and the outline of an area, with the same keys.
    - `{"type": "nothing"}`: in an answer, that what was asked for isn't in the picture.
    - `{"type": "entity", "text": "..."}`: words that are a key entity of the answer.

    Beside `messages` there may be `task` (a name), `weight` (a number from 0 to a million) and `tools` (JSON
    schemas), and beside `role` and `content` a `weight` of the turn; in turns of the assistant `reasoning`
    and `tool_calls` (`[{"name": ..., "arguments": {...}}]`); in those of a `tool`, which hold the result of a
    call, `tool_call_id` and `name`. Answers keep the `id` of their sample. For scores alone there may be
    `references`, a list of all right answers, and `level`, what the answer is about: object, attribute,
    relation or scene. Any other key is an error. An optional system turn comes first, then user and assistant
    turns, usually in alternation; a sample that ends with a user turn is a prompt.

    Args and errors: as `DataFile`.

    >>> import json, tempfile
    >>> path = Path(tempfile.mkdtemp(), "pets.jsonl")
    >>> sample = {
    ...     "messages": [
    ...         {"role": "user", "content": "Where does the cat sit, at most?"},
    ...         {"role": "assistant", "content": [
    ...             {"type": "text", "text": "The "},
    ...             {"type": "entity", "text": "cat"},
    ...             {"type": "text", "text": " sits at "},
    ...             {"type": "box", "box": [0.1, 0.2, 0.5, 0.8]},
    ...         ]},
    ...     ],
    ...     "task": "grounding",
    ...     "weight": 2.0,
    ... }
    >>> _ = path.write_text(json.dumps(sample) + "\n")
    >>> Messages(str(path))[0].messages[1].parts[1]
    Text(text='cat', entity=True)
    """

    conversation_of = staticmethod(own_conversation)


class OpenAIMessages(DataFile):
    r"""Chats as OpenAI, TRL, LLaMA-Factory and ms-swift write them: rows that must have `messages`.

    A turn's content is a text, or a list of parts. A part is `{"type": "text", "text": "..."}` or a picture
    such as `{"type": "image_url", "image_url": {"url": "..."}}` or `{"type": "image", "image": "..."}`: the
    path of a file below the image root, `file://...`, base64, or with `allow_urls` an address. Pictures may
    also stand beside the turns in `images` or `image`; then a part `{"type": "image"}`, or `<image>` in a
    text, is the place of the next one, and without any place they stand before the first question. Videos
    are written likewise: `video`, `video_url`, `videos`, `<video>`; with Qwen-VL's settings beside them.

    `weight`, `loss` or `train` of a turn say how much it is learned. The role `developer` is `system`.
    `task`, `weight` and `id` are read as in `Messages`. Tools stand in `tools`, their calls in `tool_calls`
    or in turns of the role `tool_call`, their results in turns of the role `tool`; reasoning in
    `reasoning_content`, `reasoning` or `thinking`. Further keys are ignored, with a line that names them, but
    sound is refused. Nulls count as absent.

    Args and errors: as `DataFile`.

    >>> import json, tempfile
    >>> path = Path(tempfile.mkdtemp(), "pets.jsonl")
    >>> sample = {"messages": [
    ...     {"role": "user", "content": [
    ...         {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
    ...         {"type": "text", "text": "What is this?"},
    ...     ]},
    ...     {"role": "assistant", "content": "A cat."},
    ... ]}
    >>> _ = path.write_text(json.dumps(sample) + "\n")
    >>> OpenAIMessages(str(path))[0].images[0].data
    b'\x89PNG\r\n\x1a\n'
    """

    needs = "messages"


class LLaVA(DataFile):
    r"""The format of LLaVA and ShareGPT: rows that must have `conversations`.

    They are a list of turns `{"from": ..., "value": ...}`, from `human` or `user`, `gpt` or `assistant`,
    `system`; or with `role` and `content` as in `OpenAIMessages`. The pictures of a sample are in `image` or
    `images`, a path or a list of paths; the first `<image>` in the words stands for the first, and so on, and
    there must be as many of them as pictures (a sample without pictures can't spell `<image>`). Videos are
    in `video` or `videos`; `<video>` stands for one, and `<image>` where there are no pictures. LLaVA sets
    placeholders apart by newlines, which model templates don't: one newline after each is dropped, and one
    before those that end a turn.

    A text under `system` becomes the system turn. `task`, `weight` and `id` are read as in `Messages`.
    Further keys (`width`, ...) are ignored, with a line that names them, but sound is refused. Turns from
    `function_call` and `observation` are calls of the tools in `tools`, and their results.

    Args and errors: as `DataFile`. In an array, the place of a sample is `file:line[number]`, counted from 0.

    >>> import json, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "cat.jpg").touch()
    >>> turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]
    >>> _ = (folder / "pets.json").write_text(json.dumps([{"image": "cat.jpg", "conversations": turns}]))
    >>> LLaVA(str(folder / "pets.json"))[0].messages[0].parts[1]
    Text(text='What is this?', entity=False)
    """

    needs = "conversations"


def read(
    path: str,
    image_root: str | None = None,
    on_bad_sample: OnBadSample = "raise",
    columns: Mapping[str, str] | None = None,
    allow_urls: AllowUrls = False,
    split: str = "train",
    bad_boxes: OnBadBox = "error",
    box_format: str | None = None,
    skip: str | None = None,
) -> Conversations:
    """Open data of any supported format, which is found by looking at each row.

    Files: JSON lines, JSON (an array, or an object with one list of objects), CSV and TSV, each also as
    `.gz`, parquet and arrow; a file of COCO, see `COCO`. Folders: what `save_to_disk` of `datasets` wrote, a
    copy of a repository of the hub, pictures with a `metadata.jsonl` or `.csv`. A name such as
    `HuggingFaceM4/the_cauldron` is asked for on the hub. `lightning_vlm.data.read.dialects` is the table of
    what rows may look like.

    Args:
        path: The file, folder or name.
        image_root: As in `DataFile`.
        on_bad_sample: As in `DataFile`.
        columns: As in `DataFile`.
        allow_urls: As in `DataFile`.
        split: Which of several splits is read: the one for `train`, `val`, `test` or `predict`, or the one
            with this name.
        bad_boxes: As in `DataFile`.
        box_format: As in `DataFile`.
        skip: As in `DataFile`.

    Raises:
        DataError: As in `DataFile`; also for rows that no dialect fits.
        UserError: As in `DataFile`; also if there are several splits and none for this.
    """
    path = os.fspath(path)
    options: dict[str, Any] = {
        "image_root": image_root,
        "on_bad_sample": on_bad_sample,
        "columns": columns,
        "allow_urls": allow_urls,
        "bad_boxes": bad_boxes,
        "box_format": box_format,
        "skip": skip,
    }
    preferred = PREFERRED.get(split, [split])
    is_folder = os.path.isdir(path)
    if is_folder and not is_saved(path) and (files := text_files(path)):
        chosen = choose_split(files, preferred, path)
        sources: list[Conversations] = [DataFile(file, **options) for file in files[chosen]]
        return sources[0] if len(sources) == 1 else Chain(sources)
    suffix = Path(path).suffix.lower()
    if suffix in TABLE_FILES and not os.path.exists(path):
        raise DataError(path, "", "no such file", f"a {suffix} file")
    if is_folder or suffix in TABLE_FILES or is_hub_name(path):
        return HFDataset(path, split=preferred, **options)
    if suffix in UNREADABLE_FILES:
        readable = ", ".join((*TEXT_FILES, *TABLE_FILES))
        expected = f"one of {readable}, or a folder with such files"
        raise DataError(path, "", f"a file of the type {suffix}", expected)
    if is_coco(path):
        _check_for_coco(columns, box_format)
        return COCO(path, image_root, on_bad_sample, bad_boxes=bad_boxes, skip=skip)
    return DataFile(path, **options)


def _check_for_coco(columns: Mapping[str, str] | None, box_format: str | None) -> None:
    """Raise if a file of COCO should be read in another way than such files are."""
    if columns or box_format not in (None, "pixels", "pixels xywh"):
        name = "data.columns" if columns else "data.box_format"
        raise UserError(
            f"{name} has no effect on a file of COCO, whose boxes are x, y, width, height in pixels"
        )
