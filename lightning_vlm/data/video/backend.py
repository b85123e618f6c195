"""Which package decodes video files: torchcodec where it works, else PyAV."""

import importlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, BinaryIO, Protocol

import numpy as np

from lightning_vlm.errors import UserError

_READERS = {"torchcodec": ("torchcodec.decoders", "torchcodec_file"), "pyav": ("av", "av_file")}
"""Name -> what must be importable, and our module that reads with it. The first that works is taken."""


class Measured(Protocol):
    """What a reader knows of a file before it decodes."""

    @property
    def frames(self) -> int:
        """How many there are."""

    @property
    def fps(self) -> float:
        """How many a second."""

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width as they are shown."""


class Reader(Protocol):
    """A module that reads video files."""

    def measure(self, file: BinaryIO) -> Measured:
        """See `av_file.measure`."""

    def decode(self, file: BinaryIO, measured: Any, wanted: Sequence[int]) -> Iterator[np.ndarray]:
        """See `av_file.decode`."""


@lru_cache(maxsize=1)
def reader() -> tuple[str, Reader]:
    """The name of the package that decodes here, and our module that reads with it.

    Raises:
        UserError: None is installed, or none works.
    """
    reasons = []
    for name, (needed, module) in _READERS.items():
        try:
            importlib.import_module(needed)
        except (ImportError, OSError, RuntimeError) as error:  # torchcodec without the libraries of FFmpeg
            reasons.append(f"{name}: {_first_line(error)}")
            continue
        ours: ModuleType = importlib.import_module(f"lightning_vlm.data.video.{module}")
        return name, ours
    raise UserError(
        "video files need torchcodec or PyAV; run `pip install 'lightning-vlm[video]'` "
        f"({'; '.join(reasons)}). A folder or a list of frames needs neither"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:120]
