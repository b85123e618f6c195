"""Videos of different lengths in one batch, where a model takes all frames in one tensor.

Such tensors are filled up with frames of zeros (LLaVA-OneVision, LLaVA-NeXT-Video). A model would make
features of these too, for which there are no tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_vlm.data.batch.picture_sizes import VIDEO_FRAMES, frames_of_videos
from lightning_vlm.models.replaced import replaced


@contextmanager
def without_filled_frames(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], frames: Sequence[int] | None = None
) -> Iterator[None]:
    """Let forward passes inside of this context make features of real frames only.

    Args:
        model: Whose base model is called.
        inputs: What it is called with.
        frames: How many each video has; None finds it in the pixels, for which the host waits for a device.

    """
    values = inputs.get(VIDEO_FRAMES)
    if values is None or values.ndim != 5:  # [videos, frames, 3, height, width]
        yield
        return
    frames = frames or frames_of_videos(values)
    if all(count == values.shape[1] for count in frames):
        yield
        return
    base: Any = model.base_model
    own = base.get_video_features

    def features_of_each(pixel_values_videos: Tensor, *args: Any, **kwargs: Any) -> Any:
        lengths = frames
        if len(pixel_values_videos) != len(lengths):  # `generate` repeats rows for beams
            lengths = frames_of_videos(pixel_values_videos)
        features: list[Tensor | None] = [None] * len(lengths)
        output = None
        for count in sorted(set(lengths)):
            places = [place for place, length in enumerate(lengths) if length == count]
            # Indices would be a tensor, for which the host waits.
            alike = torch.stack([pixel_values_videos[place, :count] for place in places])
            output = own(alike, *args, **kwargs)
            found = output.pooler_output
            # In some models it has a row for each video, in others for each frame.
            of_videos = found.reshape(len(places), -1, found.shape[-1])
            for place, feature in zip(places, of_videos, strict=True):
                features[place] = feature
        assert output is not None
        output.pooler_output = torch.cat([feature for feature in features if feature is not None])[None]
        return output

    with replaced(base, "get_video_features", features_of_each):
        yield
