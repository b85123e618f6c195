"""What of a model trains, and how: by a plan, parts are frozen, trained in full, or given adapters."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning_vlm_callbacks.selectors import SelectorError, select_modules, select_parameters
from peft import IA3Config, LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.models.adapters.layers import adapters_of, attach, build
from lightning_vlm.models.parts import Parts, head_is_tied
from lightning_vlm.models.plan.plan import IA3, Kind, Line, Lora, Plan, expected, quantised_problem, read_plan

ADAPTER = "default"
"""Name of the injected adapter, as PEFT calls it by default."""
_IA3_MODULES = ("k_proj", "v_proj", "down_proj", "fc2", "linear_fc2")
_IA3_FEEDFORWARD = ("down_proj", "fc2", "linear_fc2")
"""Keys, values and the last of an MLP, as the families call them."""
_FUSED = ("qkv", "qkv_proj", "c_attn", "query_key_value", "Wqkv")
"""Layers that make queries, keys and values at once."""


class _Chosen(NamedTuple):
    """One line of a plan, resolved against a model.

    Args:
        parameters: All that the selector names.
        targets: Names of the linear layers for PEFT, or of the layers for our adapters.
    """

    line: Line
    parameters: dict[str, nn.Parameter]
    targets: list[str]


def adapt(model: PreTrainedModel, plan: Plan, parts: Parts) -> None:
    """Inject the adapters of a plan and set what requires gradients. Works in place, once per model.

    Afterwards exactly the adapters and the parameters under `full` train; everything that the plan doesn't
    name is frozen. Adapters go inside their selector only, wherever the same name occurs. Those of a model in
    half precision are float32, as from `get_peft_model`. The model's output stays the same bit for
    bit; with LoRA whose `init` is `pissa`, `olora` or `orthogonal`, and DoRA in half precision, up to
    rounding.

    Args:
        model: As from `load_model`; keeps its class.
        plan: Selector -> method, such as `{"projector": "full", "language": {"lora": {"r": 8}}}`.
        parts: As from `find_parts(model)`, without prefix.

    Raises:
        UserError: As in `read_plan`; a selector that finds nothing, two selectors that name the same
            parameter, a method that the selected modules or their quantised weights can't have, LoRA on a
            tied head, or a model that has adapters already.

    >>> import tempfile, pathlib
    >>> from lightning_vlm.models import load, parts, tiny
    >>> model = load.load_model(tiny.build("smolvlm", pathlib.Path(tempfile.mkdtemp())))
    >>> adapt(model, {"language.layers[-1:]": {"lora": {"modules": ["q_proj"]}}}, parts.find_parts(model))
    >>> for name in sorted(trainable_names(model)):
    ...     print(name)
    model.text_model.layers.1.self_attn.q_proj.lora_A.default.weight
    model.text_model.layers.1.self_attn.q_proj.lora_B.default.weight
    """
    if adapters_of(model) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise UserError("plan: the model has adapters already; expected one just loaded")
    chosen = {selector: _choose(model, selector, line, parts) for selector, line in read_plan(plan).items()}
    _refuse_overlaps(model, chosen)
    ours = {
        name: one.line
        for one in chosen.values()
        if one.line.method in ("adapter", "cross_modal_adapter")
        for name in one.targets
    }
    built = build(model, ours)
    _inject(model, list(chosen.values()))
    attach(model, built)
    trains = {id(w) for one in chosen.values() if one.line.method == "full" for w in one.parameters.values()}
    trains |= {id(weight) for adapter in built.values() for weight in adapter.parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(re.search(r"\.(lora|ia3)_", name)) or id(parameter) in trains)


def trainable_names(model: nn.Module) -> set[str]:
    """Names of the parameters that require gradients."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _choose(model: PreTrainedModel, selector: str, line: Line, parts: Parts) -> _Chosen:
    adapts = line.settings is not None
    try:
        parameters = select_parameters(model, [selector], parts)
        modules = select_modules(model, [selector], parts) if adapts else {}
    except SelectorError as error:
        raise UserError(f"plan: {error}") from None
    if line.method == "full":
        quantised = [name for name, weight in parameters.items() if not weight.is_floating_point()]
        if quantised:
            raise UserError(
                f"plan[{selector!r}]: found quantised weights ({quantised[0]}, ...), which can't train; "
                "use lora"
            )
    targets: list[str] = []
    if isinstance(line.settings, Lora | IA3):
        linear = _linear_targets(model, selector, line, modules)
        _refuse_quantised(selector, line, linear)
        targets = list(linear)
    elif adapts:
        targets = _layers(model, selector, line.method, modules, parts)
    return _Chosen(line, parameters, targets)


def _linear_targets(
    model: PreTrainedModel, selector: str, line: Line, modules: Mapping[str, nn.Module]
) -> dict[str, nn.Linear]:
    """The linear layers in some modules that a method of PEFT goes into, by name."""
    inside = {id(module) for chosen in modules.values() for module in chosen.modules()}
    # torch's MultiheadAttention never calls its out_proj, so an adapter there would never learn.
    linear = {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside
        and isinstance(module, nn.Linear)
        and not isinstance(module, NonDynamicallyQuantizableLinear)
    }
    have = sorted({_last(name) for name in linear})
    assert isinstance(line.settings, Lora | IA3)
    wanted: Sequence[str] | None = line.settings.modules
    if isinstance(line.settings, IA3):
        _refuse_ia3(selector, line.settings, have)
        wanted = wanted or [name for name in _IA3_MODULES if name in have]
    for name in wanted or []:
        if name not in have:
            raise UserError(f"plan[{selector!r}]: found no linear layer {name!r}; {expected(name, have)}")
    if wanted is not None:
        linear = {name: module for name, module in linear.items() if _last(name) in wanted}
    if not linear:
        raise UserError(f"plan[{selector!r}]: found no linear layer for {line.method}; use full")
    if head_is_tied(model) and any(module is model.get_output_embeddings() for module in linear.values()):
        raise UserError(
            f"plan[{selector!r}]: the head shares its weight with the token embeddings, so {line.method} on "
            "it could not be merged; use full or frozen"
        )
    return linear


def _refuse_ia3(selector: str, settings: IA3, have: Sequence[str]) -> None:
    fused = [name for name in settings.modules or have if name in _FUSED]
    if fused:
        raise UserError(
            f"plan[{selector!r}]: ia3 scales keys and values, but {fused[0]!r} makes queries, keys and "
            "values at once, which PEFT can't separate; use lora there, or name other modules"
        )
    for name in settings.feedforward or []:
        if settings.modules is not None and name not in settings.modules:
            raise UserError(f"plan[{selector!r}]: found ia3 feedforward {name!r}, which isn't in modules")


def _refuse_quantised(selector: str, line: Line, linear: Mapping[str, nn.Linear]) -> None:
    kinds: dict[str, Kind] = {"Linear4bit": "nf4", "Linear8bitLt": "int8"}
    for name, module in linear.items():
        kind = kinds.get(type(module).__name__)
        problem = quantised_problem(line, kind) if kind else None
        if problem:
            raise UserError(f"plan[{selector!r}]: found {kind} weights ({name}); {problem}")


def _layers(
    model: PreTrainedModel, selector: str, method: str, modules: Mapping[str, nn.Module], parts: Parts
) -> list[str]:
    """The names of the layers for our adapters: items of a list themselves, or the part's layers below."""
    lists = [path for part in ("vision.layers", "language.layers") for path in parts.get(part, [])]
    blocks = {f"{path}.{name}" for path in lists for name, _ in model.get_submodule(path).named_children()}
    chosen: set[str] = set()
    for name in modules:
        parent = name.rpartition(".")[0]
        if isinstance(model.get_submodule(parent), nn.ModuleList):
            chosen.add(name)
        else:
            chosen |= {block for block in blocks if not name or block.startswith(f"{name}.")}
    if not chosen:
        raise UserError(
            f"plan[{selector!r}]: found no layers for {method}; name some, as in language.layers[-4:]"
        )
    return [name for name, _ in model.named_modules() if name in chosen]


def _refuse_overlaps(model: PreTrainedModel, chosen: Mapping[str, _Chosen]) -> None:
    """No parameter under two selectors, but a tied head where both leave it frozen or both train it."""
    shared = model.get_output_embeddings().weight if head_is_tied(model) else None
    owner: dict[int, tuple[str, _Chosen]] = {}
    for selector, one in chosen.items():
        for name, parameter in one.parameters.items():
            other, before = owner.setdefault(id(parameter), (selector, one))
            agree = parameter is shared and (before.line.method == "full") == (one.line.method == "full")
            if other != selector and not agree:
                hint = " (the head is tied to the token embeddings)" if parameter is shared else ""
                raise UserError(
                    f"plan: {other!r} and {selector!r} both name {name}{hint}; "
                    "expected selectors that don't overlap"
                )


def _inject(model: PreTrainedModel, chosen: Sequence[_Chosen]) -> None:
    """Let PEFT put in what is its own: of one method, which `read_plan` has made sure of."""
    lora: dict[str, Lora] = {}
    ia3: list[tuple[IA3, list[str]]] = []
    for line, _, targets in chosen:
        if isinstance(line.settings, Lora):
            lora |= dict.fromkeys(targets, line.settings)
        elif isinstance(line.settings, IA3):
            ia3.append((line.settings, targets))
    if not (lora or ia3):
        return
    config: LoraConfig | IA3Config = _lora_config(lora) if lora else _ia3_config(ia3)
    # A checkpoint holds only A and B, so the base weights must change in the same way when it is loaded;
    # but the fast decomposition of `pissa_niter` begins with random directions.
    again = any(settings.changes_base for settings in lora.values())
    with torch.random.fork_rng(devices=[], enabled=again):
        if again:
            torch.manual_seed(0)
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for name, settings in lora.items():  # a LoraConfig has only one dropout
        layer: Any = model.get_submodule(name)
        layer.lora_dropout[ADAPTER] = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()
    cast_adapter_dtype(model, ADAPTER)


def _lora_config(targets: Mapping[str, Lora]) -> LoraConfig:
    names = {name: f"^{re.escape(name)}" for name in targets}  # PEFT adds `$` but not `^`
    first = next(iter(targets.values()))
    return LoraConfig(
        r=first.r,
        lora_alpha=first.scale,  # type: ignore[arg-type]
        lora_dropout=first.dropout,
        target_modules="|".join(map(re.escape, targets)),  # PEFT takes a string as a full match
        rank_pattern={names[name]: lora.r for name, lora in targets.items()},
        alpha_pattern={names[name]: lora.scale for name, lora in targets.items()},
        use_rslora=first.rslora,
        use_dora=first.dora,
        init_lora_weights=True if first.init == "default" else first.init,  # type: ignore[arg-type]
    )


def _ia3_config(lines: Sequence[tuple[IA3, Sequence[str]]]) -> IA3Config:
    into = [
        name
        for settings, targets in lines
        for name in targets
        if _last(name) in (_IA3_FEEDFORWARD if settings.feedforward is None else settings.feedforward)
    ]
    return IA3Config(
        target_modules="|".join(re.escape(name) for _, targets in lines for name in targets),
        feedforward_modules="|".join(map(re.escape, into)) or [],
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def trained_buffers(root: nn.Module) -> dict[str, Tensor]:
    """The saved buffers of modules with parameters of their own that train, such as statistics of a norm.

    >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).requires_grad_(False))
    >>> list(trained_buffers(model))
    ['0.running_mean', '0.running_var', '0.num_batches_tracked']
    """
    found: dict[str, Tensor] = {}
    for place, module in root.named_modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            saved = module.state_dict().keys()
            own = {name: one for name, one in module.named_buffers(recurse=False) if name in saved}
            found |= {f"{place}.{name}" if place else name: one for name, one in own.items()}
    return found
