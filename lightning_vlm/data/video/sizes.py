"""How large the frames of a video are made."""

import math

from lightning_vlm.data.video.sampling import VideoSampling

MOST_PIXELS = 64_000_000
"""The most pixels of a frame before it is reduced, as of a picture."""

MOST_FRAMES = 4_000_000
"""The most frames of a file: 18 hours at 60 a second. Their times are found in about a minute."""
MOST_SECONDS = 7 * 86_400
"""The longest video: a week. Some processors take time and memory for each second of it."""
MOST_DECODED = 1 << 40
"""The most pixels that are decoded of a file: five hours of 1920×1080 at 30 a second without a jump."""


def frame_size(height: int, width: int, frames: int, sampling: VideoSampling) -> tuple[int, int]:
    """The height and width of frames within the budget of pixels, in the shape that they have.

    Args:
        height: As they are.
        width: As they are.
        frames: How many are chosen.
        sampling: The budgets. The largest size goes before the smallest.

    >>> frame_size(1080, 1920, 10, VideoSampling(max_pixels_per_frame=518_400))
    (540, 960)
    >>> frame_size(1080, 1920, 10, VideoSampling(max_pixels=10 * 518_400))
    (540, 960)
    """
    pixels = height * width
    most = sampling.max_pixels_per_frame or math.inf
    if sampling.max_pixels is not None:
        most = min(most, sampling.max_pixels // max(frames, 1))
    wanted = min(max(pixels, sampling.min_pixels_per_frame or 0), most)
    if wanted == pixels:
        return height, width
    scale = math.sqrt(wanted / pixels)
    larger = math.ceil(height * scale), math.ceil(width * scale)
    if scale > 1 and larger[0] * larger[1] <= most:
        return larger
    # A tiny excess over a whole number is that of the square root.
    return max(1, int(height * scale + 1e-6)), max(1, int(width * scale + 1e-6))
