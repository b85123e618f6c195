"""The run of `lint`: data is read as training would, in parallel, and all that is odd is collected."""

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from lightning_vlm.data.conversation import Conversations
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.read.faults import BadSamplesError
from lightning_vlm.data.read.source import COLLECT
from lightning_vlm.data.render.split_answers import split_answers
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.lint.duplicates import picture_groups, repeated, same_pictures
from lightning_vlm.lint.finding import Finding, Report, Shown
from lightning_vlm.lint.hashes import GRID, SIDE, Looks
from lightning_vlm.lint.pictures import AT_ONCE, PictureReader
from lightning_vlm.lint.rows import CHUNK, FATES, PictureUse, PictureUses, RowReader, row_of
from lightning_vlm.lint.tasks import about_tasks, balance, effective_number, task_sizes
from lightning_vlm.module import VLMModule

SPLITS = ("train", "val", "test")
"""What is read."""
MOST_SHOWN = 60
"""How many pictures a report keeps to show."""
_WORTH_WORKERS = 256
"""From so many samples on, several processes read them."""


def lint(module: VLMModule, data: VLMDataModule, workers: int | None = None) -> Report:
    """Read all data of training, validation and test, and report what is odd about it. No model is loaded.

    Args:
        module: The run's module, for its processor and its weights.
        data: The run's data. Sources that were opened before aren't opened again.
        workers: Processes that read at once; None is one for each CPU.

    Raises:
        UserError: A setting is wrong, or nothing is set that could be read.
    """
    if workers is not None and workers < 0:
        raise UserError(f"workers: found {workers}; expected 0 or more")
    return _Run(module, data, workers).report()


class _Run:
    """What is known while data is read."""

    def __init__(self, module: VLMModule, data: VLMDataModule, workers: int | None) -> None:
        self._module = module
        self._data = data
        self._workers = _cpus() if workers is None else workers
        data.splits.on_bad_sample = COLLECT
        if data.processor is None:  # in a fit, the Trainer sets the processor of the module
            data.processor = module.processor
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # preview and fit say them
            self._renderer = data.renderer
        self._report = Report(module.name_or_path, data.max_length)
        self._samples: dict[str, Conversations] = {}
        self._words: dict[str, np.ndarray] = {}
        self._uses: dict[str, PictureUses] = {}

    def report(self) -> Report:
        """Read everything."""
        start = time.monotonic()
        given = [split for split in SPLITS if self._data.given[split] is not None]
        if not given:
            raise UserError("data.train: found nothing to read; expected a source or the path of a file")
        sizes = {}
        for split in given:
            source = self._opened(split)
            if source is not None and len(source):
                sizes[split] = task_sizes(source)
                self._samples[split], _ = split_answers(source, self._renderer)
        with _progress() as progress:
            for split in self._samples:
                self._read_rows(split, progress)
            self._look_at_pictures(progress)
        for split, of_split in sizes.items():
            self._report.tasks += balance(split, of_split)
            self._report.effective_tasks[split] = effective_number(list(of_split.values()))
        self._report.add(about_tasks(self._module, self._data, sizes))
        self._report.settle()
        self._report.seconds = time.monotonic() - start
        return self._report

    def _opened(self, split: str) -> Conversations | None:
        """The source of a split, whose faults are noted; None where it can't be opened at all."""
        try:
            source = self._data.source(split)
        except DataError as error:
            faults = error.errors if isinstance(error, BadSamplesError) else [error]
            self._report.add(Finding.of_error(fault, split, "broken_file") for fault in faults)
            return None
        self._report.add(Finding.of_error(fault, split, "bad_row") for fault in source.skipped)
        self._report.samples[split] = len(source) + len(source.skipped)
        return source

    def _read_rows(self, split: str, progress: Progress) -> None:
        samples = self._samples[split]
        reader = RowReader(split, samples, self._renderer, self._module)
        self._words[split] = np.zeros(len(samples), np.uint64)
        self._uses[split] = PictureUses()
        task = progress.add_task(f"Reading data.{split}", total=len(samples))
        for chunk, rows in enumerate(self._loaded(reader, len(samples))):
            self._words[split][chunk * CHUNK :][: len(rows.words)] = rows.words
            self._uses[split].add(rows.pictures)
            self._report.add(rows.findings)
            for length, fate in zip(rows.lengths.tolist(), rows.fates.tolist(), strict=True):
                if length:
                    self._report.lengths[length, FATES[fate]] += 1
            progress.advance(task, len(rows.words))

    def _look_at_pictures(self, progress: Progress) -> None:
        """Open each picture once, and compare all of them."""
        numbers: dict[int, int] = {}
        firsts: list[tuple[str, PictureUse]] = []
        for split, uses in self._uses.items():
            for use in uses:
                if use.key not in numbers:
                    numbers[use.key] = len(firsts)
                    firsts.append((split, use))
        self._report.pictures = len(firsts)
        count = len(firsts)
        looks = Looks(
            np.zeros((count, 2 * SIDE * SIDE // 8), np.uint8), np.zeros((count, 3 * GRID * GRID), np.uint8)
        )
        plain = np.ones(count, bool)
        found: list[tuple[int, Finding]] = []
        task = progress.add_task("Looking at pictures", total=count)
        reader = PictureReader(self._samples, firsts)
        for group, pictures in enumerate(self._loaded(reader, count)):
            start = group * AT_ONCE
            stop = start + len(pictures.plain)
            looks.bits[start:stop] = pictures.bits
            looks.colours[start:stop] = pictures.colours
            plain[start:stop] = pictures.plain
            odd = {place for place, _, _ in pictures.findings}
            for place, side in enumerate(pictures.sizes.max(1).tolist()):
                if side:
                    self._report.sides[side, "odd" if place in odd else "fine"] += 1
            for place, finding, picture in pictures.findings:
                found.append((start + place, finding))
                if picture is not None and len(self._report.shown) < MOST_SHOWN:
                    self._report.shown.append(Shown(finding, picture))
            progress.advance(task, stop - start)
        self._report.add(self._with_other_rows(found, numbers))
        groups = picture_groups(looks, plain)
        self._report.add(repeated(self._words, self._uses, numbers, groups, self._source_of))
        self._report.add(same_pictures(firsts, groups, self._source_of))

    def _with_other_rows(
        self, found: Sequence[tuple[int, Finding]], numbers: dict[int, int]
    ) -> Iterator[Finding]:
        """Findings about pictures, with the other rows that have these pictures."""
        wanted = {number for number, _ in found}
        rows: dict[int, dict[str, None]] = {number: {} for number in wanted}
        if not wanted:
            return
        for split, uses in self._uses.items():
            for use in uses:
                if numbers[use.key] in wanted:
                    rows[numbers[use.key]][self._source_of(split, use.sample)] = None
        for number, finding in found:
            others = tuple(row for row in rows[number] if row != finding.source)
            drops = finding.drops and (*finding.drops, *others)
            yield finding._replace(also=others, drops=drops)

    def _source_of(self, split: str, sample: int) -> str:
        return row_of(self._samples[split][sample].source)

    def _loaded(self, reader: Dataset, size: int) -> Iterator[Any]:
        """What a reader gives, in its order, from several processes where that is worth it."""
        workers = self._workers if size >= _WORTH_WORKERS else 0
        return iter(
            DataLoader(reader, batch_size=None, shuffle=False, num_workers=workers, collate_fn=_as_it_is)
        )


def _as_it_is(value: Any) -> Any:
    return value


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
