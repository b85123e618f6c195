"""Which base model a checkpoint belongs to, and whether its weights fit."""

import pickle
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks.checkpoint_files import damage_of, newest_first, or_else
from lightning_vlm_callbacks.sharded_checkpoints import is_sharded, read_whole
from torch import Tensor

from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.broken_files import what_is_wrong
from lightning_vlm.models.loading.fingerprint import Fingerprint


def load_file(path: Path, values: bool = True) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU, as a dictionary. No pickled code runs.

    Args:
        path: A file, or a folder that a sharded run wrote, of which the pieces are put together.
        values: Whether the values of tensors are needed; otherwise they are on the meta device.
    """
    device = "cpu" if values else "meta"
    if path.is_dir():
        return read_whole(path, weights_only=True, device=device)
    found: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return found


def check_file(path: Path, to_resume: bool = False) -> None:
    """Whether a file is a checkpoint of Lightning, before anything is built for it. No pickled code runs.

    Args:
        path: The file, or the folder of a sharded run.
        to_resume: Whether a run will be resumed from it, for which weights alone aren't enough.

    Raises:
        UserError: It isn't there, can't be read, holds pickled code, isn't a checkpoint, or holds weights
            alone where a run will be resumed from it.
    """
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"checkpoint {path}: found a link to {path.readlink()}, which isn't there{or_else(path)}"
        )
    if path.is_dir() and not is_sharded(path):
        raise UserError(f"checkpoint {path}: found {_unknown_folder(path)}{newest_in(path)}")
    if not path.exists():
        raise UserError(f"checkpoint {path}: found no such file{newest_in(path.parent)}")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of formats and then refuses them
            holds = load_file(path, values=False)
    except (MemoryError, PermissionError):
        raise
    except MisconfigurationException as error:  # of a folder
        raise UserError(str(error)) from None
    except Exception as error:  # broken files raise many kinds of errors
        raise UserError(f"checkpoint {path}: found {_unreadable(path, error)}{or_else(path)}") from error
    if damage := damage_of(path):
        raise UserError(f"checkpoint {path}: found {damage}{or_else(path)}")
    if not isinstance(holds, Mapping) or not {"state_dict", "pytorch-lightning_version"} <= holds.keys():
        raise UserError(
            f"checkpoint {path}: found no checkpoint of Lightning (no state_dict or version); expected one "
            "that a ModelCheckpoint wrote"
        )
    if to_resume and not {"optimizer_states", "lr_schedulers", "loops"} <= holds.keys():
        raise UserError(
            f"checkpoint {path}: found weights alone (save_weights_only), from which a run can't be resumed; "
            "expected a checkpoint with the optimizer's state"
        )


def _unknown_folder(path: Path) -> str:
    if any(path.glob("*.distcp")):
        return "a checkpoint that was never finished: meta.pt, which is written last, isn't in the folder"
    if (path / "adapter_config.json").is_file():
        return "a folder of adapters that were exported; expected the checkpoint that they come from"
    if (path / "config.json").is_file():
        return f"an exported model; give it as --model.name_or_path {path}, without --ckpt_path"
    if newest_in(path):
        return "a folder"
    return "a folder without checkpoints; expected a file that fit wrote"


def _unreadable(path: Path, error: Exception) -> str:
    if path.suffix == ".safetensors":
        return f"weights alone; give their folder as --model.name_or_path {path.parent}, without --ckpt_path"
    if wrong := what_is_wrong(path):
        return f"a file that torch can't read: {wrong}"
    if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
        return "pickled code, which is not run; expected a checkpoint of a VLMModule"
    return "a file that torch can't read; copy it again"


def newest_in(folder: Path) -> str:
    """`; did you mean ...?` with the newest checkpoint, where there is one."""
    found = next((file for file in newest_first(folder) if file.is_file() or is_sharded(file)), None)
    return f"; did you mean {found}?" if found else ""


def base_of(name_or_path: str, base: Fingerprint) -> dict[str, Any]:
    """What a checkpoint says about its base model, for `check_base`."""
    return {"name_or_path": name_or_path, "base": base.text(), "quantised": dict(base.quantised)}


def check_base(saved: Mapping[str, Any] | None, name_or_path: str, base: Fingerprint) -> Mapping[str, Any]:
    """Compare the base model of a checkpoint with the one that was loaded.

    What was trained on quantised weights also fits the same base model that isn't quantised, into which it
    can be merged. What was trained on weights in 16 or 32 bits doesn't fit quantised ones.

    Args:
        saved: What `base_of` gave when the checkpoint was written; None if nothing.
        name_or_path: The model that was loaded.
        base: Its fingerprint.

    Returns:
        `saved`.

    Raises:
        UserError: They differ, or the checkpoint isn't from a VLMModule.
    """
    if not isinstance(saved, Mapping) or not {"name_or_path", "base"} <= saved.keys():
        raise UserError("the checkpoint was not written by a VLMModule; it names no base model")
    quantised = saved.get("quantised", {})
    if base.quantised and base.quantised != quantised:
        raise UserError(
            f"the checkpoint was trained on {_weights(quantised)}, but model.quantization gives "
            f"{_weights(base.quantised)}; expected the same{' or none' if quantised else ': none'}"
        )
    own = base.text(quantised)
    if saved["base"] != own:
        hint = ", in the dtype that was quantised" if quantised and not base.quantised else ""
        raise UserError(
            f"the checkpoint was trained on {saved['name_or_path']} ({saved['base']}), but "
            f"model.name_or_path {name_or_path} has other weights ({own}); give the same base model{hint}"
        )
    return saved


def _weights(quantised: Mapping[str, str]) -> str:
    """In words: which weights are quantised.

    >>> _weights({"a.weight": "nf4", "b.weight": "nf4"})
    '2 weights in nf4'
    """
    methods = " and ".join(sorted(set(quantised.values())))
    return f"{len(quantised)} weights in {methods}" if quantised else "weights in 16 or 32 bits"


def check_keys(given: Mapping[str, Tensor], own: Mapping[str, Tensor], needed: Collection[str]) -> None:
    """Whether the weights of a checkpoint fit a module.

    Args:
        given: The checkpoint's weights.
        own: The module's weights.
        needed: The names that must be given, and no others: what else the module has is frozen, and would be
            missing from its next checkpoint.

    Raises:
        UserError: Unknown names, frozen or missing ones, or other shapes; the first of each are named.
    """
    unknown = [name for name in given if name not in own]
    frozen = [name for name in given if name in own and name not in needed]
    missing = [name for name in needed if name not in given]
    shapes = [
        f"{name} {tuple(given[name].shape)} for {tuple(own[name].shape)}"
        for name in given
        if name in own and given[name].shape != own[name].shape
    ]
    found = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (
            ("unknown", unknown),
            ("frozen here", frozen),
            ("missing", missing),
            ("of another shape", shapes),
        )
        if names
    ]
    if found:
        raise UserError(
            f"the checkpoint's weights don't fit: {'; '.join(found)}; "
            "model.adapt must be what it was trained with"
        )
