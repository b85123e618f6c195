"""The lines of Python that load an exported folder, ready to run in a new process of the same environment."""

import json
from pathlib import Path

from lightning_vlm_callbacks.compat import torchvision

from lightning_vlm.export.proof import Case


def loading_lines(out: Path, case: Case) -> list[str]:
    """What to run to have the model and its processor.

    Args:
        out: The folder.
        case: What is in it.
    """
    folder = _text(out)
    options = [f"trust_remote_code={case.trust_remote_code}"] if case.trust_remote_code else []
    imports = ["from transformers import AutoModelForImageTextToText, AutoProcessor"]
    where = folder if case.base is None else _text(case.base)
    revision = [f"revision={_text(case.revision)}"] if case.base is not None and case.revision else []
    load = ", ".join([where, *revision, *options])
    lines = [f"model = AutoModelForImageTextToText.from_pretrained({load})"]
    if case.base is not None and case.adapters != "ours":
        imports.append("from peft import PeftModel")
        lines.append(f"model = PeftModel.from_pretrained(model, {folder})")
    if case.adapters:
        imports += [
            "from pathlib import Path",
            "from lightning_vlm.models.adapters import load_adapters",
        ]
        inner = "model" if case.adapters == "ours" else "model.get_base_model()"
        lines.append(f"load_adapters({inner}, Path({folder}))")
    lines.append(f"processor = AutoProcessor.from_pretrained({', '.join([folder, *options])})")
    if torchvision.is_needed():
        imports.insert(
            0, "import lightning_vlm_callbacks  # makes torchvision importable beside a CPU-only torch"
        )
    return [*imports, *lines]


def _text(value: object) -> str:
    return json.dumps(str(value), ensure_ascii=False)
