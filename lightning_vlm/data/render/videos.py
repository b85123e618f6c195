"""What a processor does with videos: whether it takes them, how large it makes them, by which template."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from transformers import ProcessorMixin
from transformers.video_utils import VideoMetadata

from lightning_vlm.data.batch.picture_sizes import VIDEO_FRAMES
from lightning_vlm.data.conversation import Video
from lightning_vlm.data.render.answer_format import AnswerFormat
from lightning_vlm.data.render.answer_places import AnswerPlaces
from lightning_vlm.data.render.chat import ChatTemplate
from lightning_vlm.data.render.special_tokens import SpecialTokens
from lightning_vlm.data.video.choice import ProcessorChoice
from lightning_vlm.data.video.clip import Clip
from lightning_vlm.data.video.load import load_video, video_shape
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.errors import DataError


class VideoRules:
    """What a processor does with videos.

    Args:
        processor: Of a model.
        special: Its special tokens.
        template: Its chat template.
        answers: Where answers are in what that writes.
        sampling: What a user sets.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        special: SpecialTokens,
        template: ChatTemplate,
        answers: AnswerPlaces,
        sampling: VideoSampling | None,
    ) -> None:
        self._processor = processor
        self._name = type(processor).__name__
        self.are_taken = special.video is not None
        """Whether it takes any."""
        self._sampling = sampling
        self._choose = ProcessorChoice(processor.video_processor) if self.are_taken else None
        self.chat = (template, answers)
        """The chat template of conversations with videos, and where answers are in what it writes."""
        self.frame_size = FrameSize(processor.video_processor, sampling) if self.are_taken else None
        """How budgets of pixels are kept."""
        if self.frame_size is not None and self.frame_size.has_budget and self.frame_size.is_fixed:
            warnings.warn(
                f"data.video: budgets of pixels don't change the number of tokens, because {self._name} "
                "makes every frame the same size",
                stacklevel=3,
            )
        own = _template_of_videos(processor)
        if special.video is not None and own and not template.writes("video", special.video):
            # `apply_chat_template` does so as well.
            chat = ChatTemplate(processor, own)
            eos_token = str(processor.tokenizer.eos_token)
            form = AnswerFormat(chat, special.ends, eos_token, special.next_turn)
            self.chat = (chat, AnswerPlaces(chat, form))

    def check(self, source: str, beside_pictures: bool) -> None:
        """Raise if the processor doesn't take the videos of a sample.

        Args:
            source: Of a sample with a video.
            beside_pictures: Whether it has pictures too.

        Raises:
            DataError: It takes none, or none beside pictures.
        """
        if not self.are_taken:
            found = f"a video, but {self._name} takes pictures only"
            expected = "a model that takes videos (docs/video.md), or some of its frames as pictures"
            raise DataError(source, "messages", found, expected)
        if beside_pictures and not self._takes_both:
            found = f"pictures and videos in one sample, of which {self._name} takes only one"
            raise DataError(source, "messages", found, "samples with either of them, or frames as pictures")

    @cached_property
    def _takes_both(self) -> bool:
        """Whether nothing is lost of a picture and a video in one sample, and the model can tell them apart.

        SmolVLM's processor loses the picture. GLM-4V's model finds both by the same token.
        """
        processor: Any = self._processor
        picture = PIL.Image.new("RGB", (64, 64))
        frames = black(2, 64, 64)
        metadata = VideoMetadata(2, fps=1.0, width=64, height=64, duration=2.0, frames_indices=[0, 1])
        of_picture = {"text": [processor.image_token], "images": [[picture]]}
        of_video = {
            "text": [processor.video_token],
            "videos": [frames],
            "video_metadata": [metadata],
            "do_sample_frames": False,
        }
        of_both = {**of_picture, **of_video, "text": [processor.image_token + processor.video_token]}
        alone = [dict(processor(return_tensors="pt", **options)) for options in (of_picture, of_video)]
        both = dict(processor(return_tensors="pt", **of_both))
        if _pixels(both) < sum(map(_pixels, alone)):
            return False
        image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        return VIDEO_FRAMES not in both or image_token_id not in alone[1]["input_ids"][0].tolist()

    def open(self, video: Video, source: str, key: str) -> Clip:
        """The frames of a video that the user's settings choose, or the processor where they say nothing.

        Raises:
            DataError: As of `load_video`.
        """
        assert self._choose is not None
        return load_video(video, source, key, self._sampling, self._choose)

    def open_blank(self, video: Video, source: str, key: str) -> Clip:
        """As many frames as `open` gives and as large, but black; only the head of a file is read.

        Raises:
            DataError: As of `video_shape`.
        """
        assert self._choose is not None
        shape = video_shape(video, source, key, self._sampling, self._choose)
        return Clip(black(shape.frames, shape.height, shape.width), shape.metadata)

    def options(self, clips: Sequence[Clip]) -> dict[str, Any]:
        """What the processor gets to know of some clips beside them."""
        return {} if self.frame_size is None else self.frame_size.options(clips)


def black(frames: int, height: int, width: int) -> Tensor:
    """Black frames, of shape [frames, 3, height, width], uint8, that take no memory."""
    return torch.zeros((), dtype=torch.uint8).expand(frames, 3, height, width)


def _pixels(inputs: Mapping[str, Any]) -> int:
    return sum(value.numel() for name, value in inputs.items() if name.startswith("pixel_values"))


def _template_of_videos(processor: ProcessorMixin) -> str | None:
    """The chat template that a processor's own module keeps for conversations with videos (SmolVLM)."""
    module = sys.modules.get(type(processor).__module__)
    return getattr(module, "DEFAULT_CHAT_TEMPLATE", None)


class FrameSize:
    """Keeps videos within the budgets of pixels that a user sets, by the video processor's own arithmetic.

    Processors of the Qwen-VL kind resize a video to a number of pixels, which is that of a frame in some and
    of all frames in others. Others make each frame the same size, whatever a budget says.

    Args:
        videos: The video processor.
        sampling: Has the budgets.
    """

    def __init__(self, videos: Any, sampling: VideoSampling | None) -> None:
        self._videos = videos
        self._per_frame = None if sampling is None else sampling.max_pixels_per_frame
        self._whole = None if sampling is None else sampling.max_pixels
        self._counts_all_frames: bool | None = None
        self._edges: tuple[int, int] | None = None
        size = getattr(self._videos, "size", None) or {}
        least, most = size.get("shortest_edge"), size.get("longest_edge")
        if least and most and hasattr(self._videos, "merge_size"):
            self._edges = least, most

    @property
    def is_fixed(self) -> bool:
        """Whether budgets have no effect, because each frame is made the same size."""
        return self._edges is None

    @property
    def has_budget(self) -> bool:
        """Whether a user sets any."""
        return bool(self._per_frame or self._whole)

    def options(self, clips: Sequence[Clip]) -> dict[str, Any]:
        """What the video processor gets to know of the sizes of some clips: the strictest that one needs."""
        if self._edges is None or not self.has_budget or not clips:
            return {}
        if self._counts_all_frames is None:
            self._counts_all_frames = self._probe()
        most = min(self._most_pixels(len(clip.frames)) for clip in clips)
        least, most_of_processor = self._edges
        most = min(most, most_of_processor)
        return {"size": {"shortest_edge": min(least, most), "longest_edge": most}}

    def fixed_option(self) -> dict[str, int] | None:
        """The `size` that holds a budget for videos of any length; None where there is none."""
        if self._edges is None or not self.has_budget:
            return None
        if self._counts_all_frames is None:
            self._counts_all_frames = self._probe()
        budget, other = self._per_frame, self._whole
        if self._counts_all_frames:
            budget, other = other, budget
        if budget is None or other is not None:
            return None
        least, most = self._edges
        return {"shortest_edge": min(least, budget), "longest_edge": min(most, budget)}

    def _most_pixels(self, frames: int) -> int:
        """The most pixels of a clip, counted as the video processor counts them."""
        per_frame = min(self._per_frame or sys.maxsize, (self._whole or sys.maxsize) // frames)
        if not self._counts_all_frames:
            return per_frame
        # It may count fewer frames than there are: an even number of them, rounded.
        at_once = getattr(self._videos, "temporal_patch_size", 1)
        return per_frame * min(frames, max(1, round(frames / at_once)) * at_once)

    def _probe(self) -> bool:
        """Whether more frames get fewer pixels each, with one and the same `size`."""
        side = self._videos.patch_size * self._videos.merge_size
        size = {"shortest_edge": side**2, "longest_edge": 16 * side**2}
        areas = []
        for frames in (2, 8):
            video = black(frames, 4 * side, 4 * side)
            made = self._videos([video], size=size, do_sample_frames=False, return_tensors="pt")
            areas.append(int(made["video_grid_thw"][0, 1:].prod()))
        return areas[0] > areas[1]
