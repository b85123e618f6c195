"""Data files and folders as sources: sequences of conversations, one class for each format."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from lightning_vlm.data import formats
from lightning_vlm.data.conversation import Conversation
from lightning_vlm.data.hf_dataset import HFDataset
from lightning_vlm.data.json_files import Place, parse, places
from lightning_vlm.data.source import OnBadSample, Source
from lightning_vlm.errors import DataError


class JSONSource(Source):
    """A file with one JSON object a line, or with one JSON array of objects."""

    width = len(Place._fields)
    format: ClassVar[formats.Format]

    def __init__(
        self, path: str, image_root: str | None = None, on_bad_sample: OnBadSample = "raise"
    ) -> None:
        self.path = path
        super().__init__(path, image_root or str(Path(path).parent), on_bad_sample)

    def _records(self) -> Iterator[tuple[Place, bytes]]:
        return places(self.path)

    def _record(self, place: tuple[int, ...]) -> bytes:
        where = Place(*place)
        with open(self.path, "rb") as file:
            file.seek(where.start)
            return file.read(where.end - where.start)

    def _build(self, place: tuple[int, ...], record: bytes, look: formats.Look) -> Conversation:
        source = Place(*place).name(self.path)
        return type(self).format(parse(record, source), source, self.root, look)


class Messages(JSONSource):
    r"""Our own format: one JSON object a line, or one JSON array of objects.

    A turn's content is a text, or a list of parts:

    - `{"type": "text", "text": "..."}`: words, whatever they spell: `<image>` is no picture here.
    - `{"type": "image", "path": "..."}` or `{"type": "image", "base64": "..."}`: a picture.
    - `{"type": "box", "box": [x1, y1, x2, y2]}`: a box, in fractions 0..1 of the picture's width and height.
    - `{"type": "entity", "text": "..."}`: words that are a key entity of the answer.

    Beside `messages` there may be `task` (a name) and `weight` (a number >= 0). Any other key is an error. An
    optional system turn comes first, then user and assistant turns in alternation; a sample that ends with a
    user turn is a prompt.

    Args:
        path: The file.
        image_root: The folder that holds the pictures. Nothing outside it is ever opened. None is the folder
            of the file.
        on_bad_sample: `raise` stops at the first bad sample; `skip` leaves bad ones out and lists them in
            `skipped`. A file that can't be read as a whole is an error either way.

    Raises:
        DataError: A bad sample, with its `file:line`, its key, what was found and what to write; no samples;
            no such file; or an array that breaks off, even with `skip`.
        UserError: A wrong argument, or a file with bad samples only.

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

    format = formats.from_messages


class OpenAIMessages(JSONSource):
    r"""OpenAI's chat format: one JSON object a line, or one JSON array of objects.

    A turn's content is a text, or a list of parts `{"type": "text", "text": "..."}` and
    `{"type": "image_url", "image_url": {"url": "..."}}`. The url is the path of a file below the image root
    or `data:image/...;base64,...`; pictures on the network are refused, never fetched. The role `developer`
    is `system`. `task` and `weight` are read as in `Messages`; further keys beside `messages` are left alone,
    but tools are refused, and so are further keys inside a turn (`weight`, `tool_calls`), which would change
    what is learned. Nulls count as absent.

    Args and errors: as `Messages`.

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

    format = formats.from_openai


class LLaVA(JSONSource):
    r"""The format of LLaVA and ShareGPT: one JSON array of objects, or one JSON object a line.

    `conversations` is a list of turns `{"from": ..., "value": ...}`, from `human` or `user`, `gpt` or
    `assistant`, `system`. The pictures of a sample are in `image` or `images`, a path or a list of paths; the
    first `<image>` in the words stands for the first, and so on, and there must be as many of them as
    pictures (a sample without pictures can't spell `<image>`). LLaVA sets placeholders apart by newlines,
    which model templates don't: one newline after each is dropped, and one before those that end a turn.

    A text under `system` becomes the system turn. `task` and `weight` are read as in `Messages`; further keys
    (`id`, `width`, ...) are left alone, but videos, sound and tools are refused.

    Args and errors: as `Messages`. In an array, the place of a sample is `file:line[number]`, counted from 0.

    >>> import json, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "cat.jpg").touch()
    >>> turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]
    >>> _ = (folder / "pets.json").write_text(json.dumps([{"image": "cat.jpg", "conversations": turns}]))
    >>> LLaVA(str(folder / "pets.json"))[0].messages[0].parts[1]
    Text(text='What is this?', entity=False)
    """

    format = formats.from_llava


def read(path: str, image_root: str | None = None, on_bad_sample: OnBadSample = "raise") -> Source:
    """Open a data file or folder whatever its format, which is found by looking at it.

    A folder is a Hugging Face data set. In a file, samples with `conversations` are LLaVA's; those with
    `messages` are OpenAI's where the first picture is an `image_url`, else ours.

    Args and errors: as `Messages`; also a DataError where no format fits.
    """
    if Path(path).is_dir():
        return HFDataset(path, image_root=image_root, on_bad_sample=on_bad_sample)
    for place, data in places(path):
        try:
            record = parse(data, place.name(path))
        except DataError:
            if on_bad_sample == "raise":
                raise
            continue
        kind = _kind(record)
        if kind is not None:
            return kind(path, image_root, on_bad_sample)
    return Messages(path, image_root, on_bad_sample)


def _kind(record: Any) -> type[JSONSource] | None:
    """The format of a record; None if it could be of several, as a conversation without pictures is."""
    if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
        return LLaVA if isinstance(record, dict) and "conversations" in record else Messages
    contents = [turn.get("content") for turn in record["messages"] if isinstance(turn, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    for part in parts:
        if isinstance(part, dict) and part.get("type") != "text":
            return OpenAIMessages if part.get("type") == "image_url" else Messages
    return None
