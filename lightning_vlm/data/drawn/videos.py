"""Drawn videos: a thing moves, is there for a while, or several come one after the other."""

import io
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image as Pillow

from lightning_vlm.data.conversation import Conversation, Image, Message, Text, Video
from lightning_vlm.data.drawn.items import DrawnItems, Split
from lightning_vlm.data.drawn.motion import HAPPEN, LEAST_FRAMES, draw_frames
from lightning_vlm.errors import UserError


class DrawnVideos(DrawnItems):
    """Drawn videos with a question each, which no single frame answers: direction, when, count.

    `direction`: a thing moves to the left, to the right, up or down. `when`: a thing is there in the first or
    in the second half. `count`: one to four things come one after the other.

    The frames are pictures in memory, so that no video has to be decoded. Item `i` is the same in every
    process; it depends on `split`, `seed`, `i` and on the tasks. No thing stands in a video of one split as
    it does in a video of another, before it moves.

    Args:
        split: `train`, `val` or `test`.
        size: How many items it has.
        seed: Another seed, other videos.
        tasks: Which tasks, each as often as the others. None is all three.
        frames: How many frames a video has.
        fps: How many of them come in a second.
        image_size: Side of the square frames in pixels.

    Raises:
        UserError: An unknown split or task, no items, too few frames, or frames too small to see anything on.

    >>> question, answer = DrawnVideos("train", tasks=["direction"])[0].messages
    >>> len(question.parts[0].frames), question.parts[1].text, answer.parts[0].text
    (8, 'Which way does the white moon move?', 'left')
    """

    def __init__(
        self,
        split: Split = "train",
        size: int = 10_000,
        seed: int = 0,
        tasks: list[str] | None = None,
        frames: int = 8,
        fps: float = 2.0,
        image_size: int = 64,
    ) -> None:
        super().__init__(split, size, seed, tasks, image_size, HAPPEN)
        if frames < LEAST_FRAMES or not fps > 0:
            raise UserError(
                f"DrawnVideos: frames {frames} and fps {fps} must be at least {LEAST_FRAMES} and above 0"
            )
        self.frames = frames
        self.fps = fps

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # a source has no slices
        item = self._item(index)
        pictures, question, answer = self._drawn(item)
        video = Video(frames=tuple(map(_png, pictures)), fps=self.fps)
        messages = (Message("user", (video, Text(question))), Message("assistant", (Text(answer),)))
        return Conversation(messages, task=self._task(item), source=f"drawn_video:{item}")

    def write(self, folder: str | Path) -> Path:
        """Write all videos as MP4 files, with a JSONL file beside them that `read` reads.

        Args:
            folder: Is made if it is missing.

        Returns:
            The JSONL file.

        Raises:
            UserError: PyAV, which encodes them, is not installed.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.split}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for index in range(self.size):
                item = self._item(index)
                pictures, question, answer = self._drawn(item)
                name = f"{self.split}_{index}.mp4"
                write_video(folder / name, pictures, self.fps)
                parts = [{"type": "video", "path": name}, {"type": "text", "text": question}]
                turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
                file.write(json.dumps({"messages": turns, "task": self._task(item)}) + "\n")
        return path

    def _drawn(self, item: str) -> tuple[list[Pillow.Image], str, str]:
        """The frames of an item, its question and its answer."""
        task = self._task(item)
        rng = Random(f"{item}/{task}")
        happening = HAPPEN[task](rng, self.split, self.frames)
        return draw_frames(rng, happening.frames, self.image_size), happening.question, happening.answer


def write_video(path: Path, pictures: list[Pillow.Image], fps: float) -> None:
    """Write frames as a video file, in a codec that every PyAV has.

    Raises:
        UserError: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise UserError("writing videos needs PyAV; run `pip install 'lightning-vlm[video]'`") from None
    from fractions import Fraction

    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("mpeg4", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        for picture in pictures:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        output.mux(stream.encode(None))


def _png(picture: Pillow.Image) -> Image:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return Image(data=file.getvalue())
