"""Files in gzip, unpacked for as long as the process lives: rows are read at their places, in any order."""

import atexit
import gzip
import os
import shutil
import tempfile
import zlib
from functools import cache
from pathlib import Path

from lightning_vlm.errors import DataError


def plain_file(path: str) -> str:
    """A file without compression: the file itself, or a copy of what is in a `.gz`.

    Raises:
        DataError: What ends in `.gz` is no such file.
    """
    if not path.lower().endswith(".gz") or not os.path.isfile(path):
        return path
    return _unpacked(os.path.abspath(path), os.stat(path).st_mtime_ns, path)


@cache
def _unpacked(path: str, changed: int, name: str) -> str:
    folder, owner = tempfile.mkdtemp(prefix="lightning-vlm-"), os.getpid()

    def clean() -> None:
        if os.getpid() == owner:  # a forked worker that ends leaves the file to its parent
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(clean)
    copy = Path(folder, Path(path).name[: -len(".gz")])
    try:
        with gzip.open(path, "rb") as packed, copy.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(name, "", f"a broken gzip file ({error})", "a whole .gz file") from None
    return str(copy)
