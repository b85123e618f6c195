"""The trained model of a checkpoint, on base weights in 16 or 32 bits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.checkpoint import check_file
from lightning_vlm.models.plan.methods import LoraSettings
from lightning_vlm.models.plan.plan import PlanEntry, read_plan
from lightning_vlm.module import VLMModule

_KNOWN = ("adapt", "token_weights", "chat_template", "revision", "dtype", "new_tokens")


ADAPTER_ONLY = "--adapter-only"
"""The option, as messages and the help spell it."""


class Asked(NamedTuple):
    """What to export.

    Args:
        checkpoint: A file that `VLMModule` training wrote.
        adapter_only: The adapters alone, for PEFT; or else everything merged.
        name_or_path: Where the base model is now; None: where it was.
        trust_remote_code: Run Python code that comes with the model.
    """

    checkpoint: Path
    adapter_only: bool = False
    name_or_path: str | None = None
    trust_remote_code: bool = False


class Trained(NamedTuple):
    """A trained model in float32.

    Args:
        module: With the model and its processor.
        lines: Its plan.
        starts: LoRA weights from before training where they have moved the base weights (PiSSA, OLoRA).
        dtypes: What each weight and buffer was loaded in, by its name without adapters.
        quantised: How many weights were quantised in training; here none are.
    """

    module: VLMModule
    lines: dict[str, PlanEntry]
    starts: dict[str, Tensor]
    dtypes: dict[str, torch.dtype]
    quantised: int


def load_trained(asked: Asked) -> Trained:
    """Load the base model again, adapt it as in training, and give it the checkpoint's weights.

    Args:
        asked: The request of the command.

    Raises:
        UserError: The file isn't a checkpoint of a `VLMModule`, its base model can't be loaded or has
            changed, or its plan can't be exported in this form.
    """
    check_file(asked.checkpoint)
    saved = torch.load(asked.checkpoint, map_location="cpu", weights_only=True)
    given = saved.get("hyper_parameters")
    if not isinstance(given, Mapping) or "name_or_path" not in given or "lightning_vlm" not in saved:
        raise UserError(f"checkpoint {asked.checkpoint}: found none of a VLMModule; it names no base model")
    lines = read_plan(given["adapt"])
    refuse(lines, asked.adapter_only, bool(given.get("new_tokens")))
    module = VLMModule(
        asked.name_or_path or given["name_or_path"],
        **{name: given[name] for name in _KNOWN if name in given},
        trust_remote_code=asked.trust_remote_code,
    )
    module.configure_model()
    model: Any = module.model
    settings = [entry.settings for entry in lines.values()]
    moved = any(isinstance(lora, LoraSettings) and lora.changes_base for lora in settings)
    starts = {name: one.float() for name, one in model.named_parameters() if moved and ".lora_" in name}
    starts = {name: one.detach().clone() for name, one in starts.items()}
    module.on_load_checkpoint(saved)
    module.load_state_dict(saved["state_dict"])
    dtypes = {name.replace(".base_layer.", "."): one.dtype for name, one in model.state_dict().items()}
    model.float().eval()
    return Trained(module, lines, starts, dtypes, len(saved["lightning_vlm"].get("quantised", {})))


def refuse(lines: Mapping[str, PlanEntry], adapter_only: bool, new_tokens: bool) -> None:
    """Refuse, before anything is loaded, what can't be exported as asked.

    Args:
        lines: Of a plan.
        adapter_only: As in `Asked`.
        new_tokens: Whether there are any.

    Raises:
        UserError: With the alternative.

    >>> refuse({"language": PlanEntry("adapter")}, False, False)
    Traceback (most recent call last):
    ...
    lightning_vlm.errors.UserError: export: plan['language'] is adapter, which runs beside the weights \
and can't be merged into them; use --adapter-only
    """
    methods = {line.method for line in lines.values()}
    beside = [key for key, line in lines.items() if line.method in ("adapter", "cross_modal_adapter")]
    if beside and not adapter_only:
        raise UserError(
            f"export: plan[{beside[0]!r}] is {lines[beside[0]].method}, which runs beside the weights and "
            f"can't be merged into them; use {ADAPTER_ONLY}"
        )
    if not adapter_only:
        return
    if not methods & {"lora", "ia3", "adapter", "cross_modal_adapter"}:
        raise UserError(f"export: nothing in the plan is an adapter; leave {ADAPTER_ONLY} out")
    if new_tokens:
        raise UserError(
            "export: new_tokens give the base model more rows, which adapters alone don't have; leave "
            f"{ADAPTER_ONLY} out"
        )
    for key, line in lines.items():
        if isinstance(line.settings, LoraSettings) and line.settings.changes_base and line.settings.dora:
            raise UserError(
                f"export: plan[{key!r}] is DoRA with init: {line.settings.init}, whose changed base weights "
                f"PEFT's format can't hold; leave {ADAPTER_ONLY} out"
            )
