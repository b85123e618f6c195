"""How a video is turned: what the matrix in its file says, as players show it."""

from typing import TypeAlias

import numpy as np

Turned: TypeAlias = tuple[bool, bool, bool]
"""Whether rows and columns are exchanged, and whether rows and then columns come in the opposite order."""
AS_STORED: Turned = (False, False, False)


def turned_by(matrix: bytes | None) -> Turned:
    """How frames are turned by a display matrix of FFmpeg: quarter turns, and mirror images.

    Args:
        matrix: Nine whole numbers of 32 bits, of which the first two of the first two rows say where a point
            goes: (x, y) to (ax + cy, bx + dy).

    >>> quarter_to_the_left = np.array([0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30], np.int32)
    >>> turned_by(quarter_to_the_left.tobytes())
    (True, True, False)
    """
    if matrix is None or len(matrix) < 36:
        return AS_STORED
    a, b, _, c, d, *_ = (int(value) for value in np.frombuffer(matrix, np.int32, 9))
    if abs(a) + abs(d) < abs(b) + abs(c):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def upright(frame: np.ndarray, turned: Turned) -> np.ndarray:
    """A frame as it is shown.

    Args:
        frame: Array of shape [height, width, channels].
        turned: As from `turned_by`.
    """
    transposed, rows_back, columns_back = turned
    if transposed:
        frame = frame.transpose(1, 0, 2)
    if rows_back:
        frame = frame[::-1]
    if columns_back:
        frame = frame[:, ::-1]
    return frame
