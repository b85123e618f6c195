"""`data.streaming`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_vlm.errors import UserError
from lightning_vlm.nearest import refuse_unknown_keys


@dataclass(frozen=True)
class Streaming:
    """How data is read that is never in memory as a whole.

    Args:
        shuffle_window: How many samples are mixed: an epoch takes parts of all shards in a random order, and
            shuffles so many samples of them at a time. Of parquet a window may be smaller, as each worker has
            its row groups in memory: 256 MiB of them.
        tasks: Task -> the shards that are of it, as a pattern of their paths such as `*/ocr-*`, so that tasks
            are known before rows are read, as `data.sampling` needs. Rows then may leave their task out.
            Every shard of `data.train` must fit one; shards of other splits need not.

    Raises:
        UserError: A window of nothing.
    """

    shuffle_window: int = 10_000
    tasks: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.shuffle_window, int) or self.shuffle_window < 1:
            raise UserError(
                f"data.streaming.shuffle_window: found {self.shuffle_window}; expected a number of samples, "
                "at least 1"
            )

    @classmethod
    def read(cls, given: "Streaming | Mapping[str, Any] | bool | None") -> "Streaming | None":
        """From what a config or Python has: an object, its keys, or whether there is streaming at all.

        Raises:
            UserError: A key that there isn't, or another value.

        >>> Streaming.read(True), Streaming.read(False)
        (Streaming(shuffle_window=10000, tasks=None), None)
        """
        if isinstance(given, Mapping):
            refuse_unknown_keys(given, cls.__dataclass_fields__, "data.streaming")
            return cls(**given)
        if isinstance(given, bool):
            return cls() if given else None
        return given
