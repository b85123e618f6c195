"""Adapters alone, in PEFT's own format; ours, and what they need, beside them in files of their own."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.export.trained import ADAPTER_ONLY, Trained
from lightning_vlm.models.adapters.layers import BOTTLENECK, CROSS_MODAL, save_adapters
from lightning_vlm.models.parts import head_is_tied
from lightning_vlm.models.plan.adapt import trainable_names
from lightning_vlm.models.plan.inject import ADAPTER

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""What PEFT puts before the names of the model."""


def save_adapter_only(trained: Trained, folder: Path, base: str) -> None:
    """Save what was trained, without the base model.

    LoRA, DoRA and IA3 are what plain PEFT loads; modules trained in full are in its `modules_to_save`. PEFT
    finds all by full names, so nothing lands elsewhere. PiSSA and OLoRA, which have moved the base weights,
    become LoRA of twice the rank on the original ones, as PEFT converts them: `B A - B₀ A₀`. Our own
    adapters, and without any of PEFT's also what trained in full, are in `vlm_adapters.*`; a folder with
    these is loaded with `lightning_vlm.models.adapters.layers.load_adapters` after PEFT's part.

    Args:
        trained: The model.
        folder: Where to.
        base: Name or folder of the base model, for the config.

    Raises:
        UserError: Something trained in full that PEFT can't name.
    """
    model: Any = trained.module.model
    full = [
        name
        for name in trainable_names(model)
        if not any(key in name for key in (".lora_", ".ia3_", f".{BOTTLENECK}.", f".{CROSS_MODAL}."))
    ]
    if not hasattr(model, "peft_config"):
        save_adapters(model, folder, full)
        return
    config = copy.deepcopy(model.peft_config[ADAPTER])
    weights = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    if trained.starts:
        assert isinstance(config, LoraConfig)
        made = _against_base(weights, trained.starts)
        _twice(config, made, model)
        weights = made
    if full:
        config.modules_to_save = _modules(model, set(full))
        for name in config.modules_to_save:
            module = model.get_submodule(name)
            weights |= {f"{name}.{key}": one for key, one in module.state_dict().items()}
    config.base_model_name_or_path = base
    config.revision = trained.module.hparams["revision"]
    config.inference_mode = True
    config.save_pretrained(str(folder))
    named = {f"{_PREFIX}{name}": one.detach().contiguous().clone() for name, one in weights.items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
    save_adapters(model, folder)


def _against_base(weights: dict[str, Tensor], starts: dict[str, Tensor]) -> dict[str, Tensor]:
    """LoRA weights relative to the base before A₀ and B₀ were taken out of it."""
    made = {}
    for name, one in weights.items():
        start = starts[name.removesuffix(".weight") + f".{ADAPTER}.weight"]
        if ".lora_A." in name:
            made[name] = torch.cat([one, start])
        else:
            made[name] = torch.cat([one, -start], dim=1)
    return made


def _twice(config: LoraConfig, weights: dict[str, Tensor], model: PreTrainedModel) -> None:
    """Twice the rank at the same scale; where training has changed it (AdaptiveLoRARank), what it is now."""
    factor = math.sqrt(2) if config.use_rslora else 2
    config.init_lora_weights = True
    config.r *= 2
    config.lora_alpha *= factor  # type: ignore[assignment]
    config.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {name: factor * one for name, one in (config.alpha_pattern or {}).items()}
    for name, one in weights.items():
        layer, a, _ = name.partition(".lora_A.")
        if a and len(one) != config.r:
            key = f"^{re.escape(layer)}"
            scale = model.get_submodule(layer).scaling[ADAPTER]  # type: ignore[index]
            config.rank_pattern[key] = len(one)
            config.alpha_pattern[key] = scale * (math.sqrt(len(one)) if config.use_rslora else len(one))


def _modules(model: PreTrainedModel, full: set[str]) -> list[str]:
    """The outermost modules that trained in full, each the only one whose name ends so, as PEFT needs."""
    found: list[str] = []
    left = set(full)
    names = [name for name, _ in model.named_modules()]
    for name, module in model.named_modules():
        own = {f"{name}.{key}" for key, _ in module.named_parameters()} if name else set()
        alone = sum(other.endswith(name) for other in names) == 1
        if own and own <= left and alone and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            found.append(name)
            left -= own
    tied = head_is_tied(model) and any(
        model.get_parameter(name) is model.get_output_embeddings().weight for name in full
    )
    if left or tied:
        what = f"{min(left)}" if left else "the embeddings, which the head shares,"
        raise UserError(
            f"export: {what} trained in full, which PEFT's modules_to_save can't hold; leave "
            f"{ADAPTER_ONLY} out"
        )
    return found
