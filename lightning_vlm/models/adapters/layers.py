"""Our own adapters: bottlenecks beside or after a layer, put in with a hook, saved in files of their own."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.models.adapters.cross_modal import (
    CrossModal,
    connect_images,
    refuse_cross_modal,
    with_first,
)
from lightning_vlm.models.plan.methods import Adapter, CrossModalAdapter
from lightning_vlm.models.plan.plan import PlanEntry, read_plan

BOTTLENECK, CROSS_MODAL = "adapter_bottleneck", "adapter_cross_modal"
"""Names of the modules that a layer gets. No weight decay for what is in `adapter_...`."""
WEIGHTS, SETTINGS = "vlm_adapters.safetensors", "vlm_adapters.json"
"""The files of a folder with adapters."""
_MLP = ("mlp", "feed_forward", "ffn")
"""What the families call the MLP of a layer."""


class Bottleneck(nn.Module):
    """Adds `scale · up(gelu(down(norm(x))))`, in the width of the layer: zero at the start (`up` is zero).

    Sequential (Houlsby et al. 2019, https://arxiv.org/abs/1902.00751): x is what the layer puts out. Parallel
    (He et al. 2021, https://arxiv.org/abs/2110.04366): x is what goes into the layer's MLP, and the sum is
    what its MLP puts out. As `up` starts at zero, the model is unchanged before the adapter has learned
    anything.

    Args:
        width: Of the layer.
        settings: As in the plan.
    """

    def __init__(self, width: int, settings: Adapter) -> None:
        super().__init__()
        self.settings = settings
        self.norm = nn.LayerNorm(width)
        narrow = max(1, width // settings.reduction)
        self.down = nn.Linear(width, narrow)
        self.up = nn.Linear(narrow, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """What is added.

        Args:
            x: Tensor of shape [..., width], of any floating dtype; computed in that of the weights.
        Returns:
            Shape and dtype of `x`.
        """
        dtype = self.norm.weight.dtype
        normed = self.norm(x.to(dtype))
        inner = nn.functional.gelu(self.down(normed))
        added = self.settings.scale * self.up(inner)
        return added.to(x.dtype)

    def after(self, layer: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of a layer: adds what the adapter computes from the layer's output."""
        return with_first(output, lambda x: x + self(x))

    def beside(self, mlp: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook of an MLP: adds what the adapter computes from the MLP's input."""
        return with_first(output, lambda x: x + self(args[0]))


def build(model: PreTrainedModel, entries: Mapping[str, PlanEntry]) -> dict[str, Bottleneck | CrossModal]:
    """Make adapters for layers, or refuse those that can't work. The model isn't changed.

    The weights are float32 for models in half precision too, as in PEFT.

    Args:
        model: Any of our families.
        entries: Path of a layer -> its entry of the plan, `adapter` or `cross_modal_adapter`.

    Returns:
        Path of a layer -> its adapter, as for `attach`.

    Raises:
        UserError: A parallel adapter where there is no MLP, a layer of convolutions, or a model that can't
            have cross-modal ones.
    """
    built: dict[str, Bottleneck | CrossModal] = {}
    for path, entry in entries.items():
        layer = model.get_submodule(path)
        if any(isinstance(module, nn.Conv2d) for module in layer.modules()):
            raise UserError(
                f"plan: {path!r} is made of convolutions and can't have adapters; use lora or full"
            )
        linear = _first_linear(path, layer)
        width = linear.in_features
        device = linear.weight.device
        if isinstance(entry.settings, CrossModalAdapter):
            refuse_cross_modal(model, path)
            built[path] = CrossModal(width, entry.settings).to(device)
        elif isinstance(entry.settings, Adapter):
            if entry.settings.kind == "parallel":
                _mlp(path, layer)
            built[path] = Bottleneck(width, entry.settings).to(device)
    return built


def _first_linear(path: str, layer: nn.Module) -> nn.Linear:
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            return module
    raise UserError(f"plan: {path!r} has no linear layer; expected a layer of a transformer")


def attach(model: PreTrainedModel, adapters: Mapping[str, Bottleneck | CrossModal]) -> None:
    """Put adapters into a model in place, without changing its output.

    A layer gets another submodule and a hook; no other name changes. The hook runs first, so that the hooks
    of transformers, which collect hidden states, see the adapter's output.

    Args:
        model: As for `build`.
        adapters: As `build` made them.
    """
    cross_modal = []
    for path, adapter in adapters.items():
        layer = model.get_submodule(path)
        if isinstance(adapter, CrossModal):
            layer.register_forward_hook(adapter.after, prepend=True, with_kwargs=True)
            layer.register_module(CROSS_MODAL, adapter)
            cross_modal.append(adapter)
            continue
        if adapter.settings.kind == "sequential":
            layer.register_forward_hook(adapter.after, prepend=True)
        else:
            _mlp(path, layer).register_forward_hook(adapter.beside, prepend=True)
        layer.register_module(BOTTLENECK, adapter)
    connect_images(model, cross_modal)


def adapters_of(model: nn.Module) -> dict[str, Bottleneck | CrossModal]:
    """The adapters in a model by the path of their layer, in its order."""
    found: dict[str, Bottleneck | CrossModal] = {}
    for name, module in model.named_modules():
        if isinstance(module, Bottleneck | CrossModal):
            layer = name.rpartition(".")[0]
            found[layer] = module
    return found


def save_adapters(model: nn.Module, folder: Path, beside: Sequence[str] = ()) -> list[str]:
    """Save the adapters of a model, and what is needed to make them again.

    Args:
        model: After `adapt`.
        folder: Where to; made if missing.
        beside: Names of other parameters to save with them.
    Returns:
        The names of the files: none if the model has no such adapters.
    """
    adapters = adapters_of(model)
    if not adapters:
        return []
    plan = {}
    for path, adapter in adapters.items():
        method = "adapter" if isinstance(adapter, Bottleneck) else "cross_modal_adapter"
        plan[path] = {method: adapter.settings._asdict()}
    settings = {"adapters": plan, "weights": sorted(beside)}
    weights = _weights_of(adapters)
    for name in beside:
        weights[name] = model.get_parameter(name)
    contiguous = {name: weight.detach().contiguous() for name, weight in weights.items()}
    text = json.dumps(settings, indent=2)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(f"{text}\n", "utf-8")
    save_file(contiguous, folder / WEIGHTS)
    return [WEIGHTS, SETTINGS]


def load_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Give a base model the adapters of a folder, and the weights that were saved with them.

    Args:
        model: The base model that they were trained on, without them.
        folder: As `save_adapters` wrote it.

    Raises:
        UserError: No such files, or adapters of another model.
    """
    try:
        settings = json.loads((folder / SETTINGS).read_text("utf-8"))
        entries = read_plan(settings["adapters"])
        beside = settings["weights"]
        saved = load_file(folder / WEIGHTS)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: found no adapters of ours ({error}); expected {SETTINGS}") from error
    modules = dict(model.named_modules())
    for path in entries:
        if path not in modules:
            raise UserError(f"{folder}: the model has no {path!r}; give the base that they were trained on")
    adapters = build(model, entries)
    own = _weights_of(adapters)
    for name, parameter in model.named_parameters():
        if name in beside:
            own[name] = parameter
    fits = {name for name in own.keys() & saved.keys() if own[name].shape == saved[name].shape}
    if wrong := sorted((own.keys() | saved.keys()) - fits):
        shown = ", ".join(map(repr, wrong[:3])) + (", ..." if len(wrong) > 3 else "")
        number = "1 weight doesn't fit" if len(wrong) == 1 else f"{len(wrong)} weights don't fit"
        raise UserError(f"{folder}: {number}: {shown}; give the base that they were trained on")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(saved[name])
    attach(model, adapters)


def _weights_of(adapters: Mapping[str, Bottleneck | CrossModal]) -> dict[str, Tensor]:
    """The weights of adapters by their name in the model."""
    weights = {}
    for path, adapter in adapters.items():
        for name, weight in adapter.state_dict().items():
            weights[f"{path}.{name}"] = weight
    return weights


def _mlp(path: str, layer: nn.Module) -> nn.Module:
    children = dict(layer.named_children())
    for name, child in children.items():
        if name in _MLP:
            return child
    raise UserError(
        f"plan: {path!r} has no MLP ({' or '.join(_MLP)}) for a parallel adapter; it has: "
        f"{', '.join(children)}; use kind: sequential"
    )
