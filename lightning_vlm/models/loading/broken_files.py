"""What is wrong with a file of weights or settings that can't be loaded, read from its first bytes."""

import json
from pathlib import Path

from lightning_vlm_callbacks.checkpoint_files import is_zip

_LFS = b"version https://git-lfs"
_PAGE = (b"<!doctype", b"<html", b"<?xml")


def what_is_wrong(path: Path) -> str | None:
    """What a file is instead of what its name says, and the fix; None where nothing is seen.

    Args:
        path: A file of weights (`.safetensors`, `.bin`, `.ckpt`) or settings (`.json`).

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> _ = file.write_text("version https://git-lfs.github.com/spec/v1")
    >>> what_is_wrong(file)
    'a pointer of git-lfs instead of the file; run git lfs pull'
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        return f"a file that can't be read ({error.strerror})"
    if size == 0:
        return "an empty file; copy or download it again"
    if start.startswith(_LFS):
        return "a pointer of git-lfs instead of the file; run git lfs pull"
    if start.lstrip().lower().startswith(_PAGE):
        return "a web page instead of the file; download the file itself"
    if path.suffix == ".safetensors":
        return _safetensors(path, size)
    if path.suffix == ".json":
        return _json(path)
    if path.suffix in (".bin", ".ckpt", ".pt", ".pth"):
        return _pickled(path, start, size)
    return None


def broken_file(folder: Path) -> str | None:
    """The first file of a model's folder that is broken, as `name: what it is`; None where none is seen."""
    for pattern in ("*.json", "*.safetensors", "*.bin"):
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and (wrong := what_is_wrong(path)):
                return f"{path.name}: found {wrong}"
    return None


def _safetensors(path: Path, size: int) -> str | None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > 100_000_000:
            return "no safetensors file; copy or download it again"
        header = file.read(length)
    if len(header) < length:
        return f"a file that is cut short ({size:,} bytes); copy or download it again"
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return "no safetensors file; copy or download it again"
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        return f"a file that is cut short ({size:,} of {expected:,} bytes); copy or download it again"
    return None


def _json(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.name.endswith("config.json") and not isinstance(content, dict):
            return f"{type(content).__name__} at the top; expected an object with keys"
    except json.JSONDecodeError as error:
        return f"broken JSON at line {error.lineno}, column {error.colno} ({error.msg})"
    except UnicodeDecodeError:
        return "text that is not UTF-8"
    except RecursionError:
        return "JSON of too many objects in one another"
    return None


def _pickled(path: Path, start: bytes, size: int) -> str | None:
    if start.startswith(b"PK"):
        if is_zip(path):
            return None
        return f"a file that is cut short ({size:,} bytes); copy or download it again"
    if start.startswith(b"\x80"):
        return None  # a plain pickle, as torch wrote until 1.6
    return "no file that torch.save wrote; copy or download it again"
