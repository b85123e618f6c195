"""The lines of Python that load an exported folder, ready to run in a new process of the same environment."""

import json
from pathlib import Path
from typing import NamedTuple

from lightning_vlm_callbacks.compat import torchvision


class Loading(NamedTuple):
    """How a folder is loaded.

    Args:
        base: The base model, for adapters alone; and its `revision`.
        has_peft: Whether there are adapters that PEFT loads.
        has_ours: Whether there are adapters that `load_adapters` loads.
        trust_remote_code: Run Python code that comes with the model.
        template_of_tokenizer: The processor's class forgets the chat template saved with it (BLIP-2).
    """

    base: str | None = None
    revision: str | None = None
    has_peft: bool = False
    has_ours: bool = False
    trust_remote_code: bool = False
    template_of_tokenizer: bool = False


def loading_lines(folder: Path, loading: Loading, *options: str) -> list[str]:
    """What to run to have the `model` and its `processor`.

    Args:
        folder: The exported folder.
        loading: What is in it.
        options: More arguments of the model's `from_pretrained`.
    """
    imports = []
    if torchvision.is_needed():
        imports.append(
            "import lightning_vlm_callbacks  # makes torchvision importable beside a CPU-only torch"
        )
    imports.append("from transformers import AutoModelForImageTextToText, AutoProcessor")
    trust = ["trust_remote_code=True"] if loading.trust_remote_code else []
    arguments = [_quoted(loading.base or folder), *trust, *options]
    if loading.base and loading.revision:
        arguments.append(f"revision={_quoted(loading.revision)}")
    lines = [f"model = AutoModelForImageTextToText.from_pretrained({', '.join(arguments)})"]
    if loading.has_peft:
        imports.append("from peft import PeftModel")
        lines.append(f"model = PeftModel.from_pretrained(model, {_quoted(folder)})")
    if loading.has_ours:
        imports.append("from pathlib import Path")
        imports.append("from lightning_vlm.models.adapters import load_adapters")
        inner = "model.get_base_model()" if loading.has_peft else "model"
        lines.append(f"load_adapters({inner}, Path({_quoted(folder)}))")
    arguments = [_quoted(folder), *trust]
    lines.append(f"processor = AutoProcessor.from_pretrained({', '.join(arguments)})")
    if loading.template_of_tokenizer:
        lines.append("processor.chat_template = processor.tokenizer.chat_template")
    return imports + lines


def _quoted(value: object) -> str:
    return json.dumps(str(value), ensure_ascii=False)
