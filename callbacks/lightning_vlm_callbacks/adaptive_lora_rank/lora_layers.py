"""The LoRA layers of a model, their ranks by name, and what a saved adapter must say of them."""

import re
import zlib
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

from lightning_vlm_callbacks.adaptive_lora_rank.lora_resize import drop_lora, resize_lora

__all__ = ["RANKS", "Lora", "describe_ranks", "fit_ranks", "lora_layers", "set_ranks"]

RANKS = "lora_ranks"
"""Where a checkpoint has the ranks of its LoRA layers, by name; 0 where the adapter is gone."""

_KINDS = ("Linear", "Linear4bit", "Linear8bitLt")
"""Classes of PEFT's LoRA whose A and B are linear layers around a linear layer."""


class Lora(NamedTuple):
    """One adapter in one layer.

    Args:
        layer: PEFT's layer, called in place of the linear layer that it wraps.
        adapter: The adapter's name.
    """

    layer: Any
    adapter: str

    @property
    def rank(self) -> int:
        """The number of A's rows."""
        return len(self.a)

    @property
    def cost(self) -> int:
        """Parameters of one rank: in + out."""
        return self.layer.in_features + self.layer.out_features

    @property
    def a(self) -> nn.Parameter:
        """Of shape [rank, in]."""
        return self.layer.lora_A[self.adapter].weight

    @property
    def b(self) -> nn.Parameter:
        """Of shape [out, rank]."""
        return self.layer.lora_B[self.adapter].weight


def lora_layers(root: nn.Module) -> dict[str, Lora]:
    """The active adapters of linear layers, bitsandbytes' too, by the layer's name.

    LoRA on other layers, such as embeddings, isn't among them.

    Raises:
        MisconfigurationException: A layer has several active adapters, or DoRA or another variant of LoRA,
            in which more than `B A` depends on the rank.
        ModuleNotFoundError: PEFT isn't installed.

    >>> from peft import LoraConfig, inject_adapter_in_model
    >>> model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["0", "2"]), model)
    >>> {name: (lora.adapter, lora.rank, lora.cost) for name, lora in lora_layers(model).items()}
    {'0': ('default', 2, 11), '2': ('default', 2, 7)}
    """
    if find_spec("peft") is None:
        raise ModuleNotFoundError("LoRA layers are PEFT's, which isn't installed; pip install peft")
    found = {}
    for name, layer in root.named_modules():
        if not _is_linear(layer):
            continue
        active = [one for one in layer.active_adapters if one in layer.lora_A]
        if len(active) > 1:
            raise MisconfigurationException(
                f"{name}: found {len(active)} active adapters ({', '.join(active)}); expected one"
            )
        for adapter in active:
            variant = getattr(layer, "lora_variant", {}).get(adapter)
            if variant is not None or layer.use_dora.get(adapter):
                what = "DoRA" if layer.use_dora.get(adapter) else type(variant).__name__
                raise MisconfigurationException(
                    f"{name}: found {what}, where more than B A depends on the rank; expected plain LoRA"
                )
            found[name] = Lora(layer, adapter)
    return found


def set_ranks(
    root: nn.Module, ranks: Mapping[str, int], optimizers: Iterable[Optimizer] = (), seed: int = 0
) -> list[str]:
    """Give LoRA layers other ranks (`resize_lora`; at 0 `drop_lora`), and write them into the PEFT config.

    Args:
        root: Any module.
        ranks: By the names of `lora_layers`. Layers that aren't named stay.
        optimizers: That may train them.
        seed: Of new directions; each layer draws its own.
    Returns:
        The names of the layers whose rank was another.

    Raises:
        MisconfigurationException: There is no such layer, or its adapter was removed.
    """
    layers, changed, optimizers = lora_layers(root), [], list(optimizers)
    configs = _configs(root, layers)
    for name, rank in ranks.items():
        lora = layers.get(name)
        if lora is None:
            if rank == 0 and name in dict(root.named_modules()):
                continue  # the layer was removed before
            raise MisconfigurationException(
                f"ranks: found rank {rank} for {name}, which has no LoRA adapter here; expected the module "
                "as it was when training began"
            )
        if rank == lora.rank:
            continue
        changed.append(name)
        if rank == 0:
            drop_lora(lora.layer, lora.adapter, optimizers)
        else:
            init = configs[name].init_lora_weights if name in configs else True
            own = zlib.crc32(f"{seed} {name}".encode())  # the same in every process and on every machine
            resize_lora(lora.layer, rank, lora.adapter, optimizers, init, own)
    if changed:
        _tell_peft(root)
    return changed


def fit_ranks(root: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Give LoRA layers the ranks of a checkpoint, before its weights are loaded.

    A module calls it in `on_load_checkpoint`, so that `load_from_checkpoint` finds the right shapes after
    `AdaptiveLoRARank` has changed them; within a Trainer the callback sees to it.

    Args:
        root: The LightningModule, with its model.
        checkpoint: As Lightning loads it. One with weights only doesn't say what has lost its adapter.

    Raises:
        MisconfigurationException: It has ranks for layers that have no LoRA here.
    """
    ranks = checkpoint.get(RANKS)
    if ranks is None:
        weights = checkpoint.get("state_dict", {})
        keys = {name: f"{name}.lora_A.{lora.adapter}.weight" for name, lora in lora_layers(root).items()}
        ranks = {name: len(weights[key]) for name, key in keys.items() if key in weights}
    set_ranks(root, ranks)


def describe_ranks(layers: Mapping[str, Lora]) -> str:
    """The ranks of layers in a few words."""
    ranks = {name: lora.rank for name, lora in layers.items()}
    low, high = min(ranks.values()), max(ranks.values())
    parameters = sum(lora.rank * lora.cost for lora in layers.values())
    most = "" if low == high else f" to {high} ({max(ranks, key=lambda name: ranks[name])})"
    return f"ranks {low}{most}, {sum(ranks.values())} in all, {parameters:,} parameters"


def _is_linear(layer: nn.Module) -> bool:
    ours = (one for one in type(layer).__mro__ if one.__module__.startswith("peft.tuners.lora"))
    return any(one.__name__ in _KINDS for one in ours)


def _models(root: nn.Module) -> dict[str, Any]:
    """The models that have adapters, by name: PEFT leaves its configs in them."""
    found: dict[str, Any] = {}
    for name, one in root.named_modules():
        configs = vars(one).get("peft_config")
        if isinstance(configs, dict):
            # PEFT's wrapper shares its configs with the model inside, and names are relative to that model.
            found = {place: other for place, other in found.items() if other.peft_config is not configs}
            found[name] = one
    return found


def _configs(root: nn.Module, layers: Mapping[str, Lora]) -> dict[str, Any]:
    """The config of each layer's adapter, as far as there is one."""
    return {
        name: model.peft_config[adapter]
        for place, model in _models(root).items()
        for name, (_, adapter) in layers.items()
        if name.startswith(f"{place}." if place else "") and adapter in model.peft_config
    }


def _tell_peft(root: nn.Module) -> None:
    """Write ranks and alphas into PEFT's configs, so that it can load what it saves.

    PEFT looks for keys at the end of names, and takes the first: an anchored full name fits one layer only. A
    rank of 0 it refuses, so that a layer without the adapter can't be a target.
    """
    for model in _models(root).values():
        layers = {name: one for name, one in model.named_modules() if hasattr(one, "lora_embedding_A")}
        for adapter, config in model.peft_config.items():
            mine = {name: one for name, one in layers.items() if adapter in one.r}
            if not mine:
                continue
            keys = {name: f"^{re.escape(name)}" for name in mine}
            config.rank_pattern = {keys[name]: one.r[adapter] for name, one in mine.items()}
            config.alpha_pattern = {keys[name]: one.lora_alpha[adapter] for name, one in mine.items()}
            if len(mine) < len(layers):
                config.target_modules = "|".join(map(re.escape, mine))  # a string must match in full
                config.layers_to_transform = config.layers_pattern = None
