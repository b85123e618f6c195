"""Why transformers couldn't load a model or a processor, in one sentence with what to do."""

import os
import re
import traceback
from pathlib import Path

from lightning_vlm.models.attention.choice import why_not_attention
from lightning_vlm.models.loading.broken_files import broken_file
from lightning_vlm.models.shipped import SHIPPED
from lightning_vlm.nearest import did_you_mean
from lightning_vlm.published import near_published

_HUB = (
    (
        r"gated repo|GatedRepoError|awaiting a review",
        "the repository is gated; ask for access on its page at huggingface.co, then run hf auth login",
    ),
    (
        r"is not a valid git identifier|RevisionNotFoundError",
        "there is no such revision; expected a branch, tag or commit of the repository, or no model.revision",
    ),
    (
        r"401 Client Error|Invalid user token|Invalid credentials",
        "the hub refuses the login; run hf auth login, or unset HF_TOKEN",
    ),
    (
        r"couldn't connect to|Connection ?Error|ConnectError|MaxRetryError|timed out|service not known",
        "the hub can't be reached, and the model is not in the local cache; check the network, "
        "or give a folder on this machine",
    ),
)
"""What transformers says of the hub, and what to do."""

_FILES = (
    (
        r"processing class|image processor|preprocessor_config|video processor",
        "found no image processor; expected processor_config.json or preprocessor_config.json",
    ),
    (
        r"[Tt]okenizer|sentencepiece|tokenizers",
        "found no tokenizer that loads; expected tokenizer.json beside config.json",
    ),
    (
        r"no file named (?:model\.safetensors|pytorch_model\.bin)",
        "found no weights; expected model.safetensors, or its parts and their index",
    ),
    (
        r"weights_only|torch\.load|UnpicklingError|pickle",
        "found weights as a pickle that torch refuses; convert them to safetensors with save_pretrained",
    ),
)
"""What transformers says of a folder, and what to do."""


def why_not_loaded(path: str, error: Exception) -> str:
    """The reason, without the model's name.

    Args:
        path: The folder or the name on the hub.
        error: What transformers raised.
    """
    text = f"{type(error).__name__}: {error}"
    first = str(error).strip().split("\n")[0]
    if attention := why_not_attention(str(error)):
        return attention
    if isinstance(error, ImportError):
        return _package(str(error), first)
    if "trust_remote_code" in text:
        return (
            "it comes with Python code of its own; set trust_remote_code=True if you trust its source "
            "(in a config, model.trust_remote_code: true)"
        )
    if unknown := re.search(r"model type [`'\"]?([\w.-]+)[`'\"]? but Transformers does not recognize", text):
        return _architecture(unknown[1])
    if os.path.exists(path):
        return _in_folder(Path(path), error, text, first)
    if _offline():
        return _not_there(path)
    for pattern, reason in _HUB:
        if re.search(pattern, text):
            return f"{reason}{did_you_mean(path, SHIPPED) or near_published(path)}"
    if isinstance(error, OSError):
        return _not_there(path)
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _in_folder(folder: Path, error: Exception, text: str, first: str) -> str:
    if folder.suffix == ".ckpt":
        return f"found a checkpoint; give it as --ckpt_path {folder}, and here the model that it began with"
    if not folder.is_dir():
        return "found a file; expected a folder that save_pretrained wrote"
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            return "found a folder of adapters; give their base model, or a folder of merged weights"
        return "found a folder without config.json; expected one that save_pretrained wrote"
    if broken := broken_file(folder):
        return broken
    for pattern, reason in _FILES:
        if re.search(pattern, text):
            return reason
    if "mismatched" in text:
        return (
            "the weights in its files have other shapes than its config.json says; use the files of one model"
        )
    files = {Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)}
    if any("tokeniz" in file for file in files):
        return f"its tokenizer files can't be read ({type(error).__name__}: {first}); copy them again"
    known = isinstance(error, OSError | ValueError)
    return first if known and first else f"transformers can't load it ({type(error).__name__}: {first})"


def _package(text: str, first: str) -> str:
    if "num2words" in text:
        return f"{first}; pip install 'lightning-vlm[smolvlm]'"
    if missing := re.search(
        r"requires the ([\w-]+) library|No module named '(\w+)'|pip install ([\w-]+)", text
    ):
        name = missing[1] or missing[2] or missing[3]
        return f"it needs the package {name}, which isn't installed; pip install {name}"
    return first


def _architecture(model_type: str) -> str:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    near = did_you_mean(model_type, NAMES)
    return (
        f"transformers {transformers.__version__} doesn't know its model type {model_type}{near or ';'}"
        " a newer one may: pip install -U transformers"
    )


def _not_there(path: str) -> str:
    hub = "not in the local cache, and HF_HUB_OFFLINE is set" if _offline() else "not found on the hub"
    near = did_you_mean(path, [*SHIPPED, *_folders_beside(Path(path))]) or near_published(path)
    if path.startswith(("https://", "http://")):
        name = "/".join(path.rstrip("/").split("/")[3:5])
        return f"found an address; expected a folder, or the name alone, such as {name or 'USER/NAME'}"
    return (
        f"no such folder, {hub}; expected a folder, a name on the Hugging Face hub, "
        f"or a shipped model: {', '.join(SHIPPED)}{near}"
    )


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _folders_beside(path: Path) -> list[str]:
    try:
        return [str(entry) for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return []
