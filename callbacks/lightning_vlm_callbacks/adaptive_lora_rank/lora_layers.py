"""The LoRA layers of a model, their ranks by name, and what PEFT's configs must hold of them."""

import re
import zlib
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

from lightning_vlm_callbacks.adaptive_lora_rank.lora_resize import drop_lora, resize_lora
from lightning_vlm_callbacks.peft_layers import is_of_peft, wrapped_parameters

__all__ = [
    "RANKS",
    "LoraLayer",
    "check_ranks",
    "describe_fixed",
    "describe_ranks",
    "fit_ranks",
    "lora_layers",
    "set_ranks",
]

RANKS = "lora_ranks"
"""The key of a checkpoint's ranks of LoRA layers, by name; 0 where the adapter was removed."""

_LINEAR_CLASSES = ("Linear", "Linear4bit", "Linear8bitLt")
"""Classes of PEFT's LoRA whose A and B are linear layers around a linear layer."""


class LoraLayer(NamedTuple):
    """One adapter in one layer.

    Args:
        layer: PEFT's layer, which is called in place of the linear layer that it wraps.
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


def lora_layers(root: nn.Module) -> dict[str, LoraLayer]:
    """The active adapters of linear layers, bitsandbytes' too, by the layer's name.

    LoRA on other layers, such as embeddings, isn't among them, nor that on single parameters (experts).

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
        if not is_of_peft(layer, _LINEAR_CLASSES):
            continue
        active = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
        if len(active) > 1:
            raise MisconfigurationException(
                f"{name}: found {len(active)} active adapters ({', '.join(active)}); expected one"
            )
        for adapter in active:
            _refuse_variants(name, layer, adapter)
            found[name] = LoraLayer(layer, adapter)
    return found


def set_ranks(
    root: nn.Module, ranks: Mapping[str, int], optimizers: Iterable[Optimizer] = (), seed: int = 0
) -> list[str]:
    """Give LoRA layers other ranks (`resize_lora`; at 0 `drop_lora`), and write them into PEFT's configs.

    Args:
        root: Any module.
        ranks: The rank by the layer's name in `lora_layers`. Layers that aren't named stay as they are.
        optimizers: The optimizers that may train them.
        seed: It draws the new directions, which differ from layer to layer.

    Returns:
        The names of the layers whose rank has changed.

    Raises:
        MisconfigurationException: There is no such layer, or its adapter was removed.
    """
    optimizers = list(optimizers)
    layers = lora_layers(root)
    configs = _configs(root, layers)
    _check_names(root, layers, ranks)
    changed = []
    for name, rank in ranks.items():
        if name not in layers or rank == layers[name].rank:
            continue
        changed.append(name)
        layer, adapter = layers[name]
        if rank == 0:
            drop_lora(layer, adapter, optimizers)
        else:
            init = configs[name].init_lora_weights if name in configs else True
            own_seed = zlib.crc32(f"{seed} {name}".encode())  # the same in every process and on every machine
            resize_lora(layer, rank, adapter, optimizers, init, own_seed)
    if changed:
        _update_peft_configs(root)
    return changed


def fit_ranks(root: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Give LoRA layers the ranks of a checkpoint, before its weights are loaded.

    A module calls it in `on_load_checkpoint`, so that `load_from_checkpoint` finds the right shapes after
    `AdaptiveLoRARank` has changed them; within a Trainer the callback does that.

    Args:
        root: The LightningModule, with its model.
        checkpoint: As Lightning loads it. One with weights only doesn't name the layers that have lost their
            adapter.

    Raises:
        MisconfigurationException: It has ranks for layers that have no LoRA here.
    """
    ranks = checkpoint.get(RANKS)
    if ranks is None:
        ranks = _ranks_of_weights(lora_layers(root), checkpoint.get("state_dict", {}))
    set_ranks(root, ranks)


def check_ranks(layers: Mapping[str, LoraLayer], ranks: Mapping[str, int]) -> None:
    """Check that layers have the ranks of a checkpoint.

    Args:
        layers: The layers by name.
        ranks: The ranks in the checkpoint, 0 where the adapter was removed.

    Raises:
        MisconfigurationException: A layer has another rank, or isn't among them.
    """
    for name in [*ranks, *layers]:
        rank = layers[name].rank if name in layers else 0
        if rank != ranks.get(name):
            raise MisconfigurationException(
                f"AdaptiveLoRARank: found {name} with rank {rank}, but the checkpoint has "
                f"{ranks.get(name, 'none')}; continue with the same model"
            )


def describe_ranks(layers: Mapping[str, LoraLayer]) -> str:
    """The ranks of layers in a few words."""
    ranks = [lora.rank for lora in layers.values()]
    parameters = sum(lora.rank * lora.cost for lora in layers.values())
    low = min(ranks)
    high = max(ranks)
    span = f"{low}"
    if low < high:
        widest = list(layers)[ranks.index(high)]
        span = f"{low} to {high} ({widest})"
    return f"ranks {span}, {sum(ranks)} in all, {parameters:,} parameters"


def describe_fixed(root: nn.Module) -> str:
    """That adapters of single parameters keep their ranks, as the end of a sentence; empty without such."""
    fixed = len(wrapped_parameters(root))
    return f"; LoRA on {fixed} single parameters (experts) keeps its rank" if fixed else ""


def _refuse_variants(name: str, layer: Any, adapter: str) -> None:
    variant = getattr(layer, "lora_variant", {}).get(adapter)
    is_dora = layer.use_dora.get(adapter)
    if variant is None and not is_dora:
        return
    found = "DoRA" if is_dora else type(variant).__name__
    raise MisconfigurationException(
        f"{name}: found {found}, where more than B A depends on the rank; expected plain LoRA"
    )


def _check_names(root: nn.Module, layers: Mapping[str, LoraLayer], ranks: Mapping[str, int]) -> None:
    modules = dict(root.named_modules())
    for name, rank in ranks.items():
        was_removed = rank == 0 and name in modules
        if name not in layers and not was_removed:
            raise MisconfigurationException(
                f"ranks: found rank {rank} for {name}, which has no LoRA adapter here; expected the module "
                "as it was when training began"
            )


def _ranks_of_weights(layers: Mapping[str, LoraLayer], weights: Mapping[str, Any]) -> dict[str, int]:
    ranks = {}
    for name, lora in layers.items():
        key = f"{name}.lora_A.{lora.adapter}.weight"
        if key in weights:
            ranks[name] = len(weights[key])
    return ranks


def _models(root: nn.Module) -> dict[str, Any]:
    """The models that have adapters, by name: PEFT leaves its configs in them."""
    found: dict[str, Any] = {}
    for name, module in root.named_modules():
        configs = vars(module).get("peft_config")
        if not isinstance(configs, dict):
            continue
        for wrapper in list(found):
            # PEFT's wrapper shares its configs with the model inside, and names are relative to that model.
            if found[wrapper].peft_config is configs:
                del found[wrapper]
        found[name] = module
    return found


def _configs(root: nn.Module, layers: Mapping[str, LoraLayer]) -> dict[str, Any]:
    """The config of each layer's adapter, as far as there is one."""
    found = {}
    for place, model in _models(root).items():
        prefix = f"{place}." if place else ""
        for name, lora in layers.items():
            if name.startswith(prefix) and lora.adapter in model.peft_config:
                found[name] = model.peft_config[lora.adapter]
    return found


def _update_peft_configs(root: nn.Module) -> None:
    """Write ranks and alphas into PEFT's configs, so that it can load what it saves."""
    for model in _models(root).values():
        wrapped = wrapped_parameters(model)
        layers: dict[str, Any] = {}
        parameters: dict[str, Any] = {}
        for name, layer in model.named_modules():
            if name in wrapped:
                parameters[wrapped[name]] = layer
            elif hasattr(layer, "lora_embedding_A"):
                layers[name] = layer
        for adapter, config in model.peft_config.items():
            _update_peft_config(config, adapter, layers, parameters)


def _update_peft_config(
    config: Any, adapter: str, layers: Mapping[str, Any], parameters: Mapping[str, Any]
) -> None:
    """Write an adapter's ranks and alphas into its config.

    PEFT looks for keys at the end of names, and takes the first: an anchored full name fits one layer only.
    It refuses a rank of 0, so a layer without the adapter can't be a target.
    """
    adapted = {name: layer for name, layer in layers.items() if adapter in layer.r}
    parameters = {name: layer for name, layer in parameters.items() if adapter in layer.r}
    if not adapted:
        return
    config.rank_pattern = {}
    config.alpha_pattern = {}
    for name, layer in (adapted | parameters).items():
        key = f"^{re.escape(name)}"
        config.rank_pattern[key] = layer.r[adapter]
        config.alpha_pattern[key] = layer.lora_alpha[adapter]
    if len(adapted) < len(layers):
        config.target_modules = "|".join(map(re.escape, adapted))  # a string must match in full
        config.layers_to_transform = None
        config.layers_pattern = None
