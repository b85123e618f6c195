"""What the readers of video files raise."""

WHOLE = "a whole video file; make it again, or leave such samples out with data.on_bad_sample: skip"
"""What is expected of a file that is broken."""


class VideoFileError(Exception):
    """A file has no video that can be decoded.

    Args:
        found: What is wrong with it.
        expected: What is accepted instead.
    """

    def __init__(self, found: str, expected: str = WHOLE) -> None:
        self.found = found
        self.expected = expected
        super().__init__(found)
