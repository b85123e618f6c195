"""A lock on a folder that ends with the process that holds it."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no POSIX locks
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderLock", "LockedError", "is_locked"]

NAME = ".run.lock"

_held: dict[tuple[int, Path], list["FolderLock"]] = {}
"""By process and folder. A process has one open file for each lock, because POSIX ends a lock when the
process closes any file opened on it. A forked process doesn't hold its parent's locks."""


class LockedError(Exception):
    """Another process holds the lock; the message says which."""


class FolderLock:
    """Locks a folder against other processes, on this machine and on others that share its disk.

    A POSIX lock on a file ends at once when the process ends, even by SIGKILL, and worker processes don't
    inherit it, so a killed run can be resumed at once. Network file systems (NFS, Lustre, GPFS) keep such
    locks between machines. Where a file system has none, nothing is locked. The same process may lock a
    folder several times.

    Args:
        folder: It is made if it isn't there.

    Raises:
        LockedError: Another process holds it.
        OSError: The folder can't be made, or a file can't be written in it.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / NAME
        self._made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        holders = _held.setdefault((os.getpid(), folder.resolve()), [])
        self._holders = holders
        self._descriptor: int = holders[0]._descriptor if holders else self._acquire()
        holders.append(self)

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                _lock(descriptor)
                if _is_same(descriptor, self.file):  # the last holder may have just deleted it
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, _holder().encode())
                    return descriptor
            except (BlockingIOError, PermissionError):
                holder = os.pread(descriptor, 1000, 0).decode(errors="replace")
                os.close(descriptor)
                raise LockedError(holder or "another process") from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def release(self) -> None:
        """End the lock if this was the last of the process."""
        self._holders.remove(self)
        if not self._holders:
            with suppress(OSError):
                self.file.unlink()
                if self._made:
                    self.file.parent.rmdir()  # only if nothing was written
            os.close(self._descriptor)


def is_locked(folder: Path) -> bool:
    """Whether another process holds the lock of a folder."""
    if _held.get((os.getpid(), folder.resolve())) or not (folder / NAME).is_file():
        return False
    descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(descriptor)
        return False
    except (BlockingIOError, PermissionError):
        return True
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if fcntl is None:
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError:
        pass  # this file system has no locks


def _is_same(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _holder() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
