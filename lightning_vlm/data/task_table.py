"""Which task each sample has."""

from array import array
from collections.abc import Iterable
from typing import NamedTuple

from lightning_vlm.errors import UserError

OTHER = "other tasks"
"""What stands for all tasks that aren't named."""


class TaskTable(NamedTuple):
    """Which task each sample of a source has.

    Args:
        names: The tasks in the order of their first samples.
        of: For each sample the place of its task in `names`; two bytes each.

    >>> TaskTable.of_samples(["vqa", "ocr", "vqa"])
    TaskTable(names=('vqa', 'ocr'), of=array('H', [0, 1, 0]))
    """

    names: tuple[str, ...]
    of: array

    @classmethod
    def of_samples(cls, tasks: Iterable[str]) -> "TaskTable":
        """From the task of each sample.

        Raises:
            UserError: There are more than 65,536.
        """
        numbers: dict[str, int] = {}
        of = array("H")
        for task in tasks:
            number = numbers.setdefault(task, len(numbers))
            if number > 0xFFFF:
                raise UserError(f"found more than 65,536 tasks, the last {task!r}; expected a kind of work")
            of.append(number)
        return cls(tuple(numbers), of)
