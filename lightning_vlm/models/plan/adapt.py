"""What of a model trains, and how: by a plan, parts are frozen, trained in full, or given adapters."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning_vlm_callbacks.selectors import SelectorError, overlaps, select_modules, select_parameters
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.models.adapters.layers import adapters_of, attach, build
from lightning_vlm.models.experts import is_correction_bias, mixtures_of
from lightning_vlm.models.forwards import is_read_directly
from lightning_vlm.models.loading.quantize import quantised_layers
from lightning_vlm.models.no_gradients import without_gradients
from lightning_vlm.models.parts import Parts, head_is_tied
from lightning_vlm.models.plan.inject import IA3_MODULES, ExpertLora, inject_ia3, inject_lora, last_name
from lightning_vlm.models.plan.methods import IA3, LoraSettings
from lightning_vlm.models.plan.mixtures import experts_for_lora, without_routers
from lightning_vlm.models.plan.plan import Plan, PlanEntry, expected, quantised_problem, read_plan

_FUSED = ("qkv", "qkv_proj", "c_attn", "query_key_value", "Wqkv")
"""Layers that make queries, keys and values at once."""


class _Chosen(NamedTuple):
    """An entry of a plan, resolved against a model.

    Args:
        entry: The method and its settings.
        parameters: All that the selector names.
        layers: Names of the linear layers for PEFT, or of the layers for our adapters.
        experts: Names of the parameters with the weights of experts, for LoRA, and the rank in each expert.
    """

    entry: PlanEntry
    parameters: dict[str, nn.Parameter]
    layers: list[str]
    experts: dict[str, int]


def adapt(model: PreTrainedModel, plan: Plan, parts: Parts) -> None:
    """Inject the adapters of a plan and set what requires gradients. Works in place, once per model.

    Afterwards exactly the adapters and the parameters under `full` train; everything that the plan doesn't
    name is frozen, and so are the routers of a mixture of experts, unless a selector names nothing else, such
    as `language.routers`; what computes no gradients is always frozen. Adapters go inside their selector
    only, wherever the same name occurs. Those of a model in half precision are float32, as from
    `get_peft_model`. The model's output stays the same bit for bit; with LoRA whose `init` is `pissa`,
    `olora` or `orthogonal`, and DoRA in half precision, up to rounding.

    Args:
        model: As from `load_model`; keeps its class.
        plan: Selector -> method, such as `{"projector": "full", "language": {"lora": {"r": 8}}}`.
        parts: As from `find_parts(model)`, without prefix.

    Raises:
        UserError: As in `read_plan`; a selector that finds nothing, two selectors that name the same
            parameter, a method that the selected modules or their quantised weights can't have, LoRA on a
            tied head, or a model that has adapters already.

    >>> from lightning_vlm.models.loading.load import load_model
    >>> from lightning_vlm.models.parts import find_parts
    >>> model = load_model("drawn-vlm").model
    >>> adapt(model, {"language.layers[-1:]": {"lora": {"modules": ["q_proj"]}}}, find_parts(model))
    >>> for name in sorted(trainable_names(model)):
    ...     print(name)
    model.language_model.layers.3.self_attn.q_proj.lora_A.default.weight
    model.language_model.layers.3.self_attn.q_proj.lora_B.default.weight
    """
    has_peft = any(isinstance(module, BaseTunerLayer) for module in model.modules())
    if has_peft or adapters_of(model):
        raise UserError("plan: the model has adapters already; expected one just loaded")
    chosen = {}
    for selector, entry in read_plan(plan).items():
        chosen[selector] = _choose(model, selector, entry, parts)
    _refuse_overlaps(model, chosen)
    lora: dict[str, LoraSettings] = {}
    experts: dict[str, ExpertLora] = {}
    ia3: dict[str, IA3] = {}
    ours: dict[str, PlanEntry] = {}
    trained: set[int] = set()
    for entry, parameters, layers, ranks in chosen.values():
        if isinstance(entry.settings, LoraSettings):
            lora |= dict.fromkeys(layers, entry.settings)
            experts |= {name: ExpertLora(entry.settings, rank) for name, rank in ranks.items()}
        elif isinstance(entry.settings, IA3):
            ia3 |= dict.fromkeys(layers, entry.settings)
        elif entry.settings is not None:
            ours |= dict.fromkeys(layers, entry)
        elif entry.method == "full":
            trained |= {id(weight) for weight in parameters.values()}
    adapters = build(model, ours)
    if lora or experts:
        inject_lora(model, lora, experts)
    if ia3:
        inject_ia3(model, ia3)
    attach(model, adapters)
    for adapter in adapters.values():
        trained |= {id(weight) for weight in adapter.parameters()}
    for name, parameter in model.named_parameters():
        is_peft = ".lora_" in name or ".ia3_" in name
        trains = id(parameter) in trained and not is_correction_bias(name)
        parameter.requires_grad_(is_peft or trains)


def trainable_names(model: nn.Module) -> set[str]:
    """Names of the parameters that require gradients."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_buffers(root: nn.Module) -> dict[str, Tensor]:
    """The saved buffers of modules with parameters of their own that train, such as statistics of a norm.

    >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).requires_grad_(False))
    >>> list(trained_buffers(model))
    ['0.running_mean', '0.running_var', '0.num_batches_tracked']
    """
    found: dict[str, Tensor] = {}
    for path, module in root.named_modules():
        trains = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        if not trains:
            continue
        saved = module.state_dict()
        for name, buffer in module.named_buffers(prefix=path, recurse=False):
            if last_name(name) in saved:
                found[name] = buffer
    return found


def _choose(model: PreTrainedModel, selector: str, entry: PlanEntry, parts: Parts) -> _Chosen:
    """What an entry names in a model, or why that can't have its method."""
    modules: Mapping[str, nn.Module] = {}
    try:
        parameters = select_parameters(model, [selector], parts)
        if entry.settings is not None:
            modules = select_modules(model, [selector], parts)
    except SelectorError as error:
        raise UserError(f"plan: {error}") from None
    parameters = without_routers(model, selector, entry, parameters)
    parameters = _that_can_learn(model, selector, entry, parameters)
    layers: list[str] = []
    experts: dict[str, int] = {}
    if isinstance(entry.settings, LoraSettings | IA3):
        if isinstance(entry.settings, LoraSettings):
            experts = experts_for_lora(model, selector, entry.settings, parameters)
        layers = _linear_layers(model, selector, entry, modules, [last_name(name) for name in experts])
        _refuse_quantised(model, selector, entry, layers)
    elif entry.settings is not None:
        layers = _transformer_layers(model, selector, entry.method, modules, parts)
    elif entry.method == "full":
        for name, weight in parameters.items():
            if not weight.is_floating_point():
                raise UserError(
                    f"plan[{selector!r}]: found quantised weights ({name}), which can't train; use lora"
                )
    return _Chosen(entry, parameters, layers, experts)


def _that_can_learn(
    model: PreTrainedModel, selector: str, entry: PlanEntry, parameters: dict[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    """Those that a gradient may reach."""
    dead = tuple(f"{path}." for path in without_gradients(model))
    found = {name: weight for name, weight in parameters.items() if not name.startswith(dead)}
    if parameters and not found and entry.method != "frozen":
        first = next(iter(parameters))
        raise UserError(f"plan[{selector!r}]: found {entry.method} for what computes no gradients ({first})")
    return found


def _refuse_quantised(model: PreTrainedModel, selector: str, entry: PlanEntry, layers: list[str]) -> None:
    """Refuse a method that quantised layers can't have."""
    quantised = quantised_layers(model)
    for name in layers:
        if name not in quantised:
            continue
        method = quantised[name]
        problem = quantised_problem(entry, method)
        if problem:
            raise UserError(f"plan[{selector!r}]: found {method} weights ({name}); {problem}")


def _linear_layers(
    model: PreTrainedModel,
    selector: str,
    entry: PlanEntry,
    modules: Mapping[str, nn.Module],
    experts: Sequence[str],
) -> list[str]:
    """Names of the linear layers in some modules that a method of PEFT goes into, beside `experts`."""
    settings: Any = entry.settings
    linear = _linear_inside(model, modules)
    present = sorted({last_name(name) for name in linear} | set(experts))
    wanted = settings.modules
    if isinstance(settings, IA3):
        _refuse_ia3(selector, settings, present)
        if not wanted:
            wanted = [name for name in IA3_MODULES if name in present]
    if wanted is not None:
        for name in wanted:
            if name not in present:
                advice = expected(name, present)
                raise UserError(f"plan[{selector!r}]: found no linear layer {name!r}; {advice}")
        linear = {name: module for name, module in linear.items() if last_name(name) in wanted}
    if not linear and not experts:
        raise UserError(f"plan[{selector!r}]: found no linear layer for {entry.method}; use full")
    head = model.get_output_embeddings()
    if head_is_tied(model) and any(module is head for module in linear.values()):
        raise UserError(
            f"plan[{selector!r}]: the head shares its weight with the token embeddings, so {entry.method} on "
            "it could not be merged; use full or frozen"
        )
    return list(linear)


def _linear_inside(model: PreTrainedModel, modules: Mapping[str, nn.Module]) -> dict[str, nn.Linear]:
    """The linear layers in some modules, by their names in the model."""
    inside: set[int] = set()
    for outer in modules.values():
        inside |= {id(module) for module in outer.modules()}
    left_out = [mixture.router_path for mixture in mixtures_of(model)] + without_gradients(model)
    prefixes = tuple(f"{path}." for path in left_out)
    linear: dict[str, nn.Linear] = {}
    for name, module in model.named_modules():
        if f"{name}.".startswith(prefixes) or is_read_directly(name):
            continue
        # torch's MultiheadAttention never calls its out_proj, so an adapter there would never learn.
        is_unused = isinstance(module, NonDynamicallyQuantizableLinear)
        if isinstance(module, nn.Linear) and id(module) in inside and not is_unused:
            linear[name] = module
    return linear


def _refuse_ia3(selector: str, settings: IA3, present: list[str]) -> None:
    fused = [name for name in settings.modules or present if name in _FUSED]
    if fused:
        raise UserError(
            f"plan[{selector!r}]: ia3 scales keys and values, but {fused[0]!r} makes queries, keys and "
            "values at once, which PEFT can't separate; use lora there, or name other modules"
        )
    for name in settings.feedforward or []:
        if settings.modules is not None and name not in settings.modules:
            raise UserError(f"plan[{selector!r}]: found ia3 feedforward {name!r}, which isn't in modules")


def _transformer_layers(
    model: PreTrainedModel, selector: str, method: str, modules: Mapping[str, nn.Module], parts: Parts
) -> list[str]:
    """Names of the layers for our adapters: the selected items of a list, or the part's layers below."""
    layers = []
    for part in ("vision.layers", "language.layers"):
        for path in parts.get(part, []):
            for name, _ in model.get_submodule(path).named_children():
                layers.append(f"{path}.{name}")
    chosen: set[str] = set()
    for name in modules:
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(parent, nn.ModuleList):
            chosen.add(name)
            continue
        prefix = f"{name}." if name else ""
        chosen |= {layer for layer in layers if layer.startswith(prefix)}
    if not chosen:
        raise UserError(
            f"plan[{selector!r}]: found no layers for {method}; name some, as in language.layers[-4:]"
        )
    return [name for name, _ in model.named_modules() if name in chosen]


def _refuse_overlaps(model: PreTrainedModel, chosen: Mapping[str, _Chosen]) -> None:
    """No parameter under two selectors, but a tied head where both leave it frozen or both train it."""
    shared = model.get_output_embeddings().weight if head_is_tied(model) else None
    parameters = {selector: choice.parameters for selector, choice in chosen.items()}
    for name, first, second in overlaps(parameters):
        hint = ""
        if parameters[second][name] is shared:
            trains_in_first = chosen[first].entry.method == "full"
            trains_in_second = chosen[second].entry.method == "full"
            if trains_in_first == trains_in_second:
                continue
            hint = " (the head is tied to the token embeddings)"
        raise UserError(
            f"plan: {first!r} and {second!r} both name {name}{hint}; expected selectors that don't overlap"
        )
