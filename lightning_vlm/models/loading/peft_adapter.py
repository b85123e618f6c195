"""A folder of PEFT's adapters put into a model, if all of its weights fit."""

import pickle
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from peft.utils.save_and_load import load_peft_weights
from torch import Tensor
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.broken_files import what_is_wrong
from lightning_vlm.models.loading.peft_patterns import check_patterns

_SHAPE = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\(\[([\d, ]*)\]\) from checkpoint, "
    r"the shape in current model is torch\.Size\(\[([\d, ]*)\]\)"
)
_MISSING = "Found missing adapter keys"
_SHOWN = 3
_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def load_peft_adapter(model: PreTrainedModel, folder: Path, base: str) -> PreTrainedModel:
    """Give a base model the adapters of a folder.

    PEFT itself warns where weights are missing and says nothing of those that it doesn't use, so that half
    an adapter would be loaded in silence.

    Args:
        model: The base model. It is changed in place.
        folder: As PEFT wrote it.
        base: What errors call the model.

    Returns:
        The model, whose layers are now PEFT's.

    Raises:
        UserError: A file is missing or broken; or the adapters are of another model, of another rank than
            their config says, or not whole (the first names of each fault are listed); or their config has
            a pattern of names that takes too long.
    """
    weights = _checked_files(folder)
    check_patterns(folder, (name for name, _ in model.named_modules()))
    with warnings.catch_warnings(record=True, action="always") as caught:
        try:
            peft: Any = PeftModel.from_pretrained(model, str(folder))
        except (MemoryError, PermissionError):
            raise
        except Exception as error:  # PEFT raises many kinds of errors for configs that are none
            raise UserError(f"{folder}: its adapters don't fit {base}: {_reason(error)}") from error
    missing: list[str] = []
    for warning in caught:
        text = str(warning.message)
        if text.startswith(_MISSING):
            missing += re.findall(r"'([^']+)'", text.partition("]")[0])
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    faults = [_listed(missing, "missing")] if missing else []
    unused = _unused(peft, weights)
    if unused:
        faults.append(_listed(unused, "without a place in the model"))
    broken = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if broken:
        faults.append(_listed(broken, "with NaN or infinite numbers"))
    if faults:
        raise UserError(
            f"{folder}: its adapters don't fit {base}: {'; '.join(faults)}; expected all weights of the "
            "model that they were trained on"
        )
    return peft.get_base_model()


def _checked_files(folder: Path) -> dict[str, Tensor]:
    """The weights in the files of a folder, each of which is looked at first."""
    if not any((folder / name).is_file() for name in _FILES[1:]):
        raise UserError(f"{folder}: found no adapter_model.safetensors; expected it beside {_FILES[0]}")
    for name in _FILES:
        if (folder / name).is_file() and (wrong := what_is_wrong(folder / name)):
            raise UserError(f"{folder / name}: found {wrong}")
    try:
        return load_peft_weights(str(folder), device="cpu")
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{folder}: found adapters as a pickle that torch refuses, as it may run code; convert "
            "them to safetensors with save_pretrained"
        ) from error
    except Exception as error:  # of safetensors, pickle or zip
        raise UserError(f"{folder}: its adapters can't be read ({_first_line(error)})") from error


def _unused(peft: PeftModel, weights: dict[str, Tensor]) -> list[str]:
    """The weights of a file that the model has no place for.

    Names may differ from those of the model where transformers renamed its modules, so numbers decide.
    """
    own = get_peft_model_state_dict(peft)
    others = [name for name in weights if name not in own]
    return others if len(weights) > len(own) else []


def _reason(error: Exception) -> str:
    shapes = _SHAPE.findall(str(error))
    if shapes:
        return _listed([f"{name} [{given}] for [{own}]" for name, given, own in shapes], "of another shape")
    key = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if isinstance(error, TypeError) and key:
        return f"adapter_config.json has the unknown key {key[1]!r}"
    if isinstance(error, KeyError):
        return f"adapter_config.json: PEFT doesn't find {error}"
    if isinstance(error, TypeError | AttributeError):
        return f"adapter_config.json: a value of a wrong type ({_first_line(error)})"
    return _first_line(error)


def _listed(names: Sequence[str], what: str) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({shown}{more})"


def _first_line(error: Exception) -> str:
    line = str(error).strip().split("\n")[0]
    return line if len(line) < 200 else f"{line[:200]}..."
