"""What became of the samples of a run on this process: skipped, truncated, or with their turns changed."""

from collections.abc import Iterable
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from lightning_vlm.counted import counted
from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.data.read.faults import skip_summary, write_skip_report
from lightning_vlm.errors import DataError


class SampleReport:
    """Collects what was done to samples, each of which counts once however often it comes."""

    def __init__(self) -> None:
        self.skipped: dict[str, DataError] = {}
        """The errors of skipped samples, by source."""
        self.truncated: set[str] = set()
        """The sources of samples that lost rounds to fit into `max_length`."""
        self._changes: dict[str, set[str]] = {}

    def skip(self, errors: Iterable[DataError]) -> None:
        """Add samples that are skipped."""
        for error in errors:
            self.skipped[error.source] = error

    def add(self, batch: Batch) -> None:
        """Add the samples of a batch. The first sample that is changed in some way is named at once."""
        self.skip(batch.skipped)
        self.truncated.update(batch.truncated)
        for source, change in batch.changes:
            if change not in self._changes:
                rank_zero_info(f"{source}: {change}. Others like it are counted.")
            self._changes.setdefault(change, set()).add(source)

    def close(self, path: Path, max_length: int | None) -> None:
        """Print the counts, and write which samples were skipped.

        Args:
            path: The file for the skipped samples. It isn't made if there are none.
            max_length: What samples were truncated to.
        """
        if self.skipped:
            errors = list(self.skipped.values())
            write_skip_report(errors, path)
            rank_zero_info(f"Skipped: {skip_summary(errors)}. All of them: {path}")
        if self.truncated:
            samples = counted(len(self.truncated), "sample")
            rank_zero_info(f"Truncated to max_length {max_length} by whole rounds: {samples}")
        for change, sources in self._changes.items():
            rank_zero_info(f"In {counted(len(sources), 'sample')} {change}.")
        self._changes.clear()
