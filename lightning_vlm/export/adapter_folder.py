"""Adapters alone, in PEFT's own format; ours, and what they need, beside them in files of their own."""

import copy
import math
import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_vlm.compat.peft import rewritten_names
from lightning_vlm.errors import UserError
from lightning_vlm.export.trained import ADAPTER_ONLY, Trained
from lightning_vlm.models.adapters.layers import BOTTLENECK, CROSS_MODAL, save_adapters
from lightning_vlm.models.parts import head_is_tied
from lightning_vlm.models.plan.adapt import trainable_names
from lightning_vlm.models.plan.inject import ADAPTER

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
"""What PEFT puts before the names of the model."""
_ADAPTER_KEYS = (".lora_", ".ia3_", f".{BOTTLENECK}.", f".{CROSS_MODAL}.")
"""What is in the names of adapters' weights."""


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
    in_full = []
    for name in trainable_names(model):
        if not any(key in name for key in _ADAPTER_KEYS):
            in_full.append(name)
    if not hasattr(model, "peft_config"):
        save_adapters(model, folder, in_full)
        return
    _refuse_rewritten(model)
    config = copy.deepcopy(model.peft_config[ADAPTER])
    weights = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    if trained.starts:
        weights = _against_base(weights, trained.starts)
        _double_rank(config, weights, model)
    if in_full:
        config.modules_to_save = _modules_of(set(in_full), model)
        for name in config.modules_to_save:
            for key, weight in model.get_submodule(name).state_dict().items():
                weights[f"{name}.{key}"] = weight
    config.base_model_name_or_path = base
    config.revision = trained.module.hparams["revision"]
    config.inference_mode = True
    config.save_pretrained(str(folder))
    renamed = {}
    for name, weight in weights.items():
        renamed[f"{_PREFIX}{name}"] = weight.detach().contiguous().clone()
    save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})
    save_adapters(model, folder)


def _refuse_rewritten(model: PreTrainedModel) -> None:
    """Refuse adapters that plain PEFT would put into other layers than they were trained in."""
    rewritten = rewritten_names(model)
    for name, module in model.named_modules():
        is_linear = isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper)
        if is_linear and name.rpartition(".")[2] in rewritten:
            raise UserError(
                f"export: PEFT takes {name} of a {model.config.model_type} for a part of its experts when it "
                f"loads adapters; leave {ADAPTER_ONLY} out"
            )


def _against_base(weights: dict[str, Tensor], starts: dict[str, Tensor]) -> dict[str, Tensor]:
    """LoRA weights relative to the base before A₀ and B₀ were taken out of it."""
    relative = {}
    for name, weight in weights.items():
        start = starts[name.removesuffix(".weight") + f".{ADAPTER}.weight"]
        if ".lora_A." in name:
            relative[name] = torch.cat([weight, start])
        else:
            relative[name] = torch.cat([weight, -start], dim=1)
    return relative


def _double_rank(config: LoraConfig, weights: dict[str, Tensor], model: PreTrainedModel) -> None:
    """Twice the rank at the same scale, which may be another one in some layers."""
    factor = math.sqrt(2) if config.use_rslora else 2
    config.init_lora_weights = True
    config.r *= 2
    config.lora_alpha *= factor  # type: ignore[assignment]
    ranks, alphas = {}, {}
    for name, weight in weights.items():
        layer, is_a, _ = name.partition(".lora_A.")
        if is_a:
            rank = len(weight)
            scale = model.get_submodule(layer).scaling[ADAPTER]  # type: ignore[index]
            alpha = scale * (math.sqrt(rank) if config.use_rslora else rank)
            if rank != config.r or not math.isclose(alpha, config.lora_alpha):
                pattern = f"^{re.escape(layer)}"
                ranks[pattern], alphas[pattern] = rank, alpha
    config.rank_pattern, config.alpha_pattern = ranks, alphas


def _modules_of(in_full: set[str], model: PreTrainedModel) -> list[str]:
    """The outermost modules that trained in full, each the only one whose name ends so, as PEFT needs."""
    found: list[str] = []
    rest = set(in_full)
    names = [name for name, _ in model.named_modules()]
    for name, module in model.named_modules():
        if not name or isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        own = {f"{name}.{key}" for key, _ in module.named_parameters()}
        is_unique = sum(other.endswith(name) for other in names) == 1
        if own and own <= rest and is_unique:
            found.append(name)
            rest -= own
    missing = min(rest, default="")
    if head_is_tied(model):
        head = model.get_output_embeddings().weight
        if any(model.get_parameter(name) is head for name in in_full):
            missing = missing or "the embeddings, which the head shares,"
    if missing:
        raise UserError(
            f"export: {missing} trained in full, which PEFT's modules_to_save can't hold; leave "
            f"{ADAPTER_ONLY} out"
        )
    return found
