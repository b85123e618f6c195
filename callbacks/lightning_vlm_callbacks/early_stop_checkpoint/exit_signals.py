"""Ctrl-C, SIGTERM and SLURM's requeue signal wait until the run can be saved."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

__all__ = ["ExitSignals"]


class ExitSignals:
    """Holds signals back while a fit lasts. A signal that isn't held back strikes anywhere, such as in the
    middle of an optimizer step; Lightning's own SLURM handler would save right there.

    The owner asks `caught` where the run can be saved, saves it, and calls `leave`. A second Ctrl-C stops the
    run at once.
    """

    def __init__(self) -> None:
        self._caught: int | None = None
        self._requeue: int | None = None
        self._held: dict[int, tuple[Any, Callable[[int, FrameType | None], None]]] = {}
        self._process = os.getpid()
        self._speaks = True

    def install(self, trainer: Trainer) -> None:
        """Hold signals back from now on; in a thread, where Python allows no handlers, none is."""
        self.remove()
        self._caught = self._requeue = None
        self._process = os.getpid()
        self._speaks = trainer.is_global_zero
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else a library has set another
            self._hold(signal.SIGINT, self._handle)
        self._hold(signal.SIGTERM, self._handle)
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            self._requeue = environment.requeue_signal
        if self._requeue is not None:
            self._hold(self._requeue, self._handle)

    def _hold(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        self._held[number] = (signal.signal(number, handler), handler)

    def remove(self) -> int | None:
        """Put back the handlers from before, unless they have been replaced since.

        Returns:
            The signal that was caught.
        """
        while self._held:
            number, (before, ours) = self._held.popitem()
            ends = ours is _ignore and self._caught == signal.SIGTERM  # and with it the process
            if signal.getsignal(number) == ours and not ends:
                signal.signal(number, signal.SIG_DFL if before is None else before)
        return self._caught

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # in a loader's worker, as the main process decides
            return
        if number == signal.SIGINT and self._caught == signal.SIGINT:
            self.remove()
            raise KeyboardInterrupt
        if self._caught is None or self._caught == self._requeue:
            self._caught = number
            # A signal for the whole process group ends the workers of loaders too, which torch's handler of
            # SIGCHLD, set with the first worker, turns into an error at any place.
            if hasattr(signal, "SIGCHLD") and callable(signal.getsignal(signal.SIGCHLD)):
                self._hold(signal.SIGCHLD, _ignore)
            if self._speaks:
                _announce(number)

    def caught(self, trainer: Trainer) -> int | None:
        """The signal that some rank has caught; None if there is none. All ranks must ask."""
        if trainer.world_size == 1:
            return self._caught
        number = torch.tensor(self._caught or 0, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(number, reduce_op="max")) or None

    def leave(self, number: int) -> None:
        """Do what the signal would have done. After SLURM's requeue signal the run continues until SLURM ends
        it.

        Raises:
            KeyboardInterrupt: For SIGINT.
            SIGTERMException: For SIGTERM, as Lightning does.
        """
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        before = self._held[number][0] if number in self._held else None
        if callable(before):
            before(number, None)  # Lightning's handler, and the user's behind it
        if number != self._requeue:
            raise SIGTERMException
        self._caught = None


def _ignore(number: int, frame: FrameType | None) -> None:
    pass


def _announce(number: int) -> None:
    again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
    message = f"\nEarlyStopCheckpoint: found {signal.Signals(number).name}; saves after this batch{again}\n"
    os.write(2, message.encode())  # a handler must not print
