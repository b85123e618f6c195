"""What an exported folder remembers of its training, so that it is asked as it was trained."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FILE = "lightning_vlm.json"
"""The file of an exported folder that holds it."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Record(NamedTuple):
    """What an exported folder remembers.

    Args:
        base: The base model's name on the hub, or that of the shipped one; None where it was a folder.
        revision: Of the base model.
        pixels: How large pictures were, as `str` of a `PixelBudget`.
        video: How videos were sampled, as `str` of a `VideoSampling`.
        boxes: The name of the codec of boxes; None where there were none.
        precision: `trainer.precision` of the run; None where nothing says it.
    """

    base: str | None = None
    revision: str | None = None
    pixels: str = ""
    video: str = ""
    boxes: str | None = None
    precision: str | None = None

    @classmethod
    def of_run(cls, run: Mapping[str, Any], base: str, revision: str | None) -> "Record":
        """From what a checkpoint says of its run.

        Args:
            run: As from `run_of`.
            base: Name or folder of the base model.
            revision: Its revision.

        >>> Record.of_run({"data.max_pixels": "max_pixels 3136"}, "/home/me/llava", None)[:3]
        (None, None, 'max_pixels 3136')
        """
        precision = run.get("trainer.precision")
        return cls(
            public_name(base),
            revision,
            str(run.get("data.max_pixels", "")),
            str(run.get("data.video", "")),
            run.get("data.boxes"),
            None if precision is None else str(precision),
        )

    def save(self, folder: Path) -> None:
        """Write it into an exported folder."""
        text = json.dumps(self._asdict(), indent=2, ensure_ascii=False)
        (folder / FILE).write_text(f"{text}\n", "utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Record":
        """From a folder; of one that this package didn't export nothing is known."""
        try:
            found = json.loads((folder / FILE).read_text("utf-8"))
        except (OSError, ValueError):
            return cls()
        if not isinstance(found, dict):
            return cls()
        return cls(**{name: found[name] for name in cls._fields if name in found})

    @property
    def run(self) -> dict[str, Any]:
        """The same under the names of `of_run`."""
        return {
            "data.max_pixels": self.pixels,
            "data.video": self.video,
            "data.boxes": self.boxes,
            "trainer.precision": self.precision,
        }


def public_name(base: str) -> str | None:
    """The name of a base model for others; None where it is a folder of this machine.

    >>> public_name("Qwen/Qwen2-VL-2B-Instruct"), public_name("drawn-vlm"), public_name("./mine")
    ('Qwen/Qwen2-VL-2B-Instruct', 'drawn-vlm', None)
    """
    return base if _HUB_NAME.fullmatch(base) and not Path(base).exists() else None
