"""One checkpoint at a time that is written while training goes on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Background"]


class Background:
    """Runs one job at a time in a thread. What it raises is kept until it is asked for."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether there is a job that hasn't been waited for."""
        return self._running is not None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job. The one before must have been waited for."""
        assert self._running is None
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "checkpoint")
        self._running = self._executor.submit(job)

    def is_done(self) -> bool:
        """Whether the job has ended, in any way."""
        return self._running is not None and self._running.done()

    def wait(self) -> BaseException | None:
        """Wait for the job's end. What it raised, if it did."""
        running, self._running = self._running, None
        return None if running is None else running.exception()

    def close(self) -> None:
        """End the thread."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = None
