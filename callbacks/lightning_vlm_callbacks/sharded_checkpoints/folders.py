"""Which folders are sharded checkpoints, and the list of what is in one, read without running anything.

Lightning's `ModelParallelStrategy` writes such a folder: `.metadata` lists the tensors and other values,
`__0_0.distcp` and so on hold them, and `meta.pt`, written last, holds the rest of the run.
"""

import pickle
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import torch
import torch.distributed
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata
from torch.serialization import _get_layout

from lightning_vlm_callbacks.checkpoint_files import CheckpointError, or_else
from lightning_vlm_callbacks.checksums import CHECKSUMS, damage_in

__all__ = ["META", "check_folder", "check_pieces", "is_sharded", "read_metadata"]

LIST, META = ".metadata", "meta.pt"

_METADATA = (
    *("Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
    *("TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING"),
)
_ALLOWED: dict[tuple[str, str], Any] = {
    **{(metadata.__name__, name): getattr(metadata, name) for name in _METADATA},
    **{(filesystem.__name__, name): getattr(filesystem, name) for name in ("_StorageInfo", "_StoragePrefix")},
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
}
"""What the list of a sharded checkpoint is made of. Each of these only keeps the values that it is given."""


def is_sharded(path: Path) -> bool:
    """Whether a path is a whole sharded checkpoint: a folder that has the file that is written last."""
    return (path / META).is_file() and (path / LIST).is_file()


def check_folder(folder: Path) -> None:
    """Refuse a folder that isn't a whole sharded checkpoint, or that could do harm when it is loaded.

    torch reads the list by `pickle`, and single values by `torch.load` without `weights_only`, so that both
    could run a stranger's code. They are read here first, in a way that runs none.

    Raises:
        CheckpointError: It isn't one, is half written, has pickled code, names files outside of
            itself or sizes that its files can't hold, or is damaged.
    """
    if not is_sharded(folder):
        begun = any(folder.glob("*.distcp")) or (folder / LIST).exists()
        what = "a checkpoint that was never finished" if begun else "a folder that is no checkpoint"
        raise _refusal(folder, f"{what}; expected {LIST} and {META} in it")
    if damage := damage_in(folder, (LIST, META)):
        raise _refusal(folder, damage)
    found = read_metadata(folder)
    for name, item in found.state_dict_metadata.items():
        if isinstance(item, BytesStorageMetadata):
            _check_value(folder, name, found)


def check_pieces(folder: Path, together: bool = False) -> None:
    """Compare what the ranks have written with the checksums that were written beside it.

    torch notices neither a changed bit nor a piece of another checkpoint.

    Args:
        folder: A sharded checkpoint. One that Lightning wrote without us has no checksums, which is said.
        together: Whether all ranks of a run call this, if there are several, and divide the files among them.

    Raises:
        CheckpointError: A file is missing, was damaged, or belongs to another checkpoint.
    """
    if not (folder / CHECKSUMS).exists():
        _say_uncompared(folder)
        return
    if not (together and torch.distributed.is_initialized()):
        damage = damage_in(folder)
    else:
        ranks = torch.distributed.get_world_size()
        every: list[str | None] = [None] * ranks
        mine = damage_in(folder, rank=torch.distributed.get_rank(), ranks=ranks)
        torch.distributed.all_gather_object(every, mine)
        damage = next(filter(None, every), None)
    if damage:
        raise _refusal(folder, damage)


@lru_cache
def _say_uncompared(folder: Path) -> None:
    rank_zero_info(f"checkpoint {folder}: it has no {CHECKSUMS}, so that damage to its pieces isn't noticed")


def read_metadata(folder: Path) -> Metadata:
    """The list of what a sharded checkpoint holds.

    Raises:
        CheckpointError: It can't be read, or can't be true.
    """
    try:
        with open(folder / LIST, "rb") as file:
            found = _Unpickler(file).load()
        _check_list(folder, found)
    except (OSError, MemoryError, CheckpointError):
        raise
    except pickle.UnpicklingError as error:
        raise _refusal(folder, f"a list ({LIST}) that {error}") from error
    except Exception as error:  # broken pickles raise many kinds of errors
        raise _refusal(folder, f"a list ({LIST}) that can't be read; copy the folder again") from error
    return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in ("pathlib", "pathlib._local") and name in ("PosixPath", "WindowsPath"):
            return PurePosixPath if name == "PosixPath" else PureWindowsPath
        raise pickle.UnpicklingError(f"holds pickled code ({module}.{name}), which is not run")


def _check_list(folder: Path, found: Metadata) -> None:
    """Whether all tensors lie in the folder's files, and could."""
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    for place in found.storage_data.values():
        name = place.relative_path
        if PurePath(name).name != name or "\\" in name:
            raise _refusal(folder, f"a value in the file {name}; expected one in the folder itself")
        if name not in sizes:
            raise _refusal(folder, f"no file {name}, which its list names; copy the folder again")
        if not 0 <= place.offset <= place.offset + place.length <= sizes[name]:
            raise _refusal(folder, f"too short a file {name}; copy the folder again")
    total = sum(sizes.values())
    for name, item in found.state_dict_metadata.items():
        if isinstance(item, TensorStorageMetadata):
            size = torch.Size(item.size).numel() * item.properties.dtype.itemsize
            if min(item.size, default=0) < 0 or size > total:
                raise _refusal(folder, f"{name} of shape {tuple(item.size)}, more than its files can hold")


def _check_value(folder: Path, name: str, found: Metadata) -> None:
    """Whether a value that isn't a tensor can be read without running code."""
    for index, place in found.storage_data.items():
        if index.fqn == name:
            with open(folder / place.relative_path, "rb") as file:
                file.seek(place.offset)
                stream = BytesIO(file.read(place.length))
                try:
                    torch.load(stream, map_location="cpu", weights_only=True)
                except Exception as error:
                    damage = damage_in(folder, (place.relative_path,))
                    code = f"{name}, which holds pickled code, which is not run"
                    raise _refusal(folder, damage or code) from error


def _refusal(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {folder}: found {what}{or_else(folder)}")
