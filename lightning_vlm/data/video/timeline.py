"""When each frame of a video file is shown."""

from dataclasses import dataclass

import numpy as np

from lightning_vlm.data.video.upright import Turned


@dataclass(frozen=True)
class Timeline:
    """The frames of a video file on an even grid of times, as image processors count them.

    Processors take the time of a frame to be its number divided by `fps`. Where frames come unevenly, that is
    wrong for the frames of the file; so frame `n` of the grid is the one that is shown at `n / fps` seconds.
    For an even video that is the n-th frame of the file.

    Args:
        frames: How many there are, on the grid as in the file.
        fps: Frames a second: what the file says if all frames come as evenly as it says, else their mean.
        times: Array of shape [frames], int64: when each frame of the file is shown, in units of its stream,
            in ascending order. None where the file doesn't say it, and frames are counted.
        is_even: Whether the n-th frame of the file is the n-th of the grid.
        keyframes: Array of shape [keyframes], int64: which frames of the file can be decoded without others.
        second: How many units are a second.
        height: As stored, before the video is turned.
        width: As stored.
        turned: How the frames are turned, see `upright.py`.
    """

    frames: int
    fps: float
    times: np.ndarray | None
    is_even: bool
    keyframes: np.ndarray
    second: float
    height: int
    width: int
    turned: Turned

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width of the frames as they are shown."""
        transposed, _, _ = self.turned
        return (self.width, self.height) if transposed else (self.height, self.width)

    def in_file(self, frame: int) -> int:
        """Which frame of the file is shown at a place of the grid."""
        if self.times is None or self.is_even:
            return frame
        time = self.times[0] + frame * self.second / self.fps
        # A unit later, as containers round times.
        return int(np.searchsorted(self.times, time + 1, side="right")) - 1

    def keyframe_before(self, frame: int) -> int:
        """The last frame of the file, up to one of them, at which decoding can begin."""
        place = int(np.searchsorted(self.keyframes, frame, side="right")) - 1
        return int(self.keyframes[place]) if place >= 0 else 0


def rate_of(times: np.ndarray, second: float, length: int, said: float | None) -> tuple[float, bool]:
    """How many frames a second a video has.

    Args:
        times: Of its frames, as of `Timeline`.
        second: As of `Timeline`.
        length: How long the last frame is shown, in the units of `times`; 0 where the file doesn't say it.
        said: The rate that the file says.

    Returns:
        The rate, and whether frames come evenly. It is the one that the file says if no frame is half a frame
        away from where that puts it, else the mean. 0 is an unknown one.

    >>> rate_of(np.array([0, 33, 67, 100]), 1000, 33, 30.0)
    (30.0, True)
    >>> rate_of(np.array([0, 33, 67, 1900]), 1000, 100, 30.0)
    (2.0, False)
    """
    count = len(times)
    if said and _are_even(times, second, said):
        return said, True
    if not length and count > 1:
        length = int(np.median(np.diff(times)))
    units = int(times[-1] - times[0]) + length
    if not units:
        return 0.0, True
    mean = count * second / units
    return mean, _are_even(times, second, mean)


def _are_even(times: np.ndarray, second: float, fps: float) -> bool:
    """Whether no frame is half a frame away from where an even rate puts it."""
    places = (times - times[0]) * (fps / second)
    return bool(np.abs(places - np.arange(len(times))).max() < 0.5)
