"""What drawn pictures and drawn videos share: items that are made from a seed, each with a task."""

import zlib
from collections.abc import Collection
from typing import Literal, get_args

from lightning_vlm.data.conversation import Conversations, TaskTable
from lightning_vlm.errors import UserError

Split = Literal["train", "val", "test"]


class DrawnItems(Conversations):
    """Items that a child draws, the same in every process.

    Args:
        split: `train`, `val` or `test`.
        size: How many items it has.
        seed: Another seed, other items.
        tasks: Which tasks, each as often as the others. None is all that there are.
        image_size: Side of the square pictures in pixels.
        all_tasks: The tasks that there are.

    Raises:
        UserError: An unknown split or task, no items, or pictures too small to see anything on.
    """

    only_words = True

    def __init__(
        self,
        split: Split,
        size: int,
        seed: int,
        tasks: list[str] | None,
        image_size: int,
        all_tasks: Collection[str],
    ) -> None:
        name = type(self).__name__
        if split not in get_args(Split):
            splits = ", ".join(get_args(Split))
            raise UserError(f"{name}: there is no split '{split}'; choose one of {splits}")
        wanted = tuple(all_tasks if tasks is None else tasks)
        if not wanted:
            raise UserError(f"{name}: tasks has an empty list; choose among {', '.join(all_tasks)}")
        self._check_names("tasks", wanted, all_tasks)
        if size < 1 or image_size < 32:
            raise UserError(f"{name}: size {size} and image_size {image_size} must be at least 1 and 32")
        self.split = split
        self.size = size
        self.seed = seed
        self.tasks = wanted
        self.image_size = image_size

    def __len__(self) -> int:
        return self.size

    def task_table(self) -> TaskTable:
        """Nothing is drawn for it."""
        return TaskTable.of_samples(self._task(self._item(index)) for index in range(self.size))

    def _item(self, index: int) -> str:
        """What an item is drawn from."""
        return f"{self.seed}/{self.split}/{range(self.size)[index]}"

    def _task(self, item: str) -> str:
        return self.tasks[zlib.crc32(item.encode()) % len(self.tasks)]

    def _check_names(self, option: str, names: Collection[str], known: Collection[str]) -> None:
        unknown = sorted(set(names) - set(known))
        if unknown:
            name = type(self).__name__
            raise UserError(f"{name}: {option} has {', '.join(unknown)}; choose among {', '.join(known)}")
