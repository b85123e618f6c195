"""What of a model trains, and how: by a plan, parts are frozen, trained in full, or given LoRA adapters."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lightning_vlm_callbacks.selectors import SelectorError, select_modules, select_parameters
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import cast_adapter_dtype
from rich.table import Table
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.models.parts import Parts, head_is_tied

Plan = Mapping[str, str | Mapping[str, Any]]
"""Selector -> `frozen`, `full`, `lora`, or `{lora: {r, alpha, dropout, modules}}`."""

METHODS = ("frozen", "full", "lora")
ADAPTER = "default"
"""Name of the injected adapter, as PEFT calls it by default."""


class Lora(NamedTuple):
    """Low-rank adapters: `W + alpha/r · B A` (Hu et al. 2021, arXiv 2106.09685).

    Args:
        r: Rank.
        alpha: Scale; None: 2 r, as LLaVA trains (PEFT's own default is 8 for both).
        dropout: On what goes into the adapter.
        modules: Last names of the linear layers to adapt, such as `q_proj`; None: all.
    """

    r: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    modules: Sequence[str] | None = None

    @property
    def scale(self) -> float:
        """Alpha, the default filled in."""
        return 2 * self.r if self.alpha is None else self.alpha


class _Chosen(NamedTuple):
    """One line of a plan, resolved against a model."""

    method: str
    parameters: dict[str, nn.Parameter]
    lora: Lora | None
    targets: list[str]


def adapt(model: PreTrainedModel, plan: Plan, parts: Parts) -> None:
    """Inject the adapters of a plan and set what requires gradients. Works in place, once per model.

    Afterwards exactly the LoRA matrices and the parameters under `full` train; whatever the plan doesn't name
    is frozen. Adapters go into linear layers inside their selector only, wherever the same name occurs.
    LoRA matrices of a model in half precision are float32, as from `get_peft_model`.

    Args:
        model: As from `load_model`; keeps its class.
        plan: Selector -> method, such as `{"projector": "full", "language": {"lora": {"r": 8}}}`.
        parts: As from `find_parts(model)`, without prefix.

    Raises:
        UserError: An unknown method or key, a value out of range, a selector that finds nothing, two
            selectors that name the same parameter, LoRA on a tied head or where there is no linear layer,
            `full` on quantised weights, or a model that has adapters already.

    >>> import tempfile, pathlib
    >>> from lightning_vlm.models import load, parts, tiny
    >>> model = load.load_model(tiny.build("smolvlm", pathlib.Path(tempfile.mkdtemp())))
    >>> adapt(model, {"language.layers[-1:]": {"lora": {"modules": ["q_proj"]}}}, parts.find_parts(model))
    >>> for name in sorted(trainable_names(model)):
    ...     print(name)
    model.text_model.layers.1.self_attn.q_proj.lora_A.default.weight
    model.text_model.layers.1.self_attn.q_proj.lora_B.default.weight
    """
    if any(isinstance(module, LoraLayer) for module in model.modules()):
        raise UserError("plan: the model has adapters already; expected one just loaded")
    chosen = {selector: _choose(model, selector, value, parts) for selector, value in plan.items()}
    _refuse_overlaps(model, chosen)
    _inject(model, {name: line.lora for line in chosen.values() if line.lora for name in line.targets})
    full = {id(w) for line in chosen.values() if line.method == "full" for w in line.parameters.values()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name or id(parameter) in full)


def trainable_names(model: nn.Module) -> set[str]:
    """Names of the parameters that require gradients."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def set_modes(model: nn.Module) -> None:
    """Train mode for each module with something trainable in it, eval mode for the rest.

    `from_pretrained` leaves a model in eval mode, and `train()` on all of it would switch on the dropout of
    frozen towers. A module without parameters, such as dropout, goes with the module that it is in.

    Args:
        model: Any module; call again after what trains has changed.
    """
    _set_mode(model, outer=False)


def plan_table(model: PreTrainedModel, parts: Parts, plan: Plan) -> Table:
    """What `adapt` has made of a plan, for the log.

    Args:
        model: After `adapt`.
        parts: As for `adapt`.
        plan: As for `adapt`.

    Returns:
        A line per selector: method, trainable parameters, and their share of those that it names. Then one
        for what the plan doesn't name, and one for the whole model.
    """
    table = Table("part", "method")
    table.add_column("trainable", justify="right")
    table.add_column("share", justify="right")
    named: set[int] = set()

    def add(part: str, method: str, parameters: Iterable[nn.Parameter]) -> None:
        sizes = [(weight.numel(), weight.requires_grad) for weight in parameters]
        trains, total = sum(size for size, grad in sizes if grad), sum(size for size, _ in sizes)
        table.add_row(part, method, f"{trains:,}", f"{trains / max(total, 1):.2%}")

    for selector, value in plan.items():
        parameters = select_parameters(model, [selector], parts).values()
        named.update(map(id, parameters))
        method, lora = _parse(selector, value)
        add(selector, f"lora r={lora.r}" if lora else method, parameters)
    rest = [weight for weight in model.parameters() if id(weight) not in named]
    if rest:
        add("(not named)", "frozen", rest)
    table.add_section()
    add("all", "", model.parameters())
    return table


def _parse(selector: str, value: object) -> tuple[str, Lora | None]:
    """Method and, if that is LoRA, its settings."""
    where = f"plan[{selector!r}]"
    method: object = value
    settings: object = {}
    if isinstance(value, Mapping):
        if len(value) != 1:
            raise UserError(f"{where}: found keys {sorted(map(str, value))}; expected the one key 'lora'")
        ((method, settings),) = value.items()
    if method not in METHODS:
        raise UserError(f"{where}: found method {method!r}; {_expected(method, METHODS)}")
    if method != "lora":
        if isinstance(value, Mapping):
            raise UserError(f"{where}: {method!r} has no settings; write {selector}: {method}")
        return str(method), None
    if not isinstance(settings, Mapping):
        raise UserError(f"{where}: found lora: {settings!r}; expected keys {', '.join(Lora._fields)}")
    for key in settings:
        if key not in Lora._fields:
            raise UserError(f"{where}: found lora key {key!r}; {_expected(key, Lora._fields)}")
    lora = Lora(**settings)
    alpha, modules = lora.alpha, lora.modules
    checks = {
        "r": (_number(lora.r, int) and lora.r >= 1, "a whole number >= 1"),
        "alpha": (alpha is None or (_number(alpha, int, float) and alpha > 0), "a number > 0"),
        "dropout": (_number(lora.dropout, int, float) and 0 <= lora.dropout < 1, "a number in [0, 1)"),
        "modules": (
            modules is None
            or (isinstance(modules, Sequence) and not isinstance(modules, str) and len(modules) > 0),
            "a list of names such as [q_proj, v_proj]",
        ),
    }
    for key, (fine, expected) in checks.items():
        if not fine:
            raise UserError(f"{where}: found lora {key}={getattr(lora, key)!r}; expected {expected}")
    return "lora", lora


def _number(value: object, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _expected(found: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(found), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(known)}"


def _choose(model: PreTrainedModel, selector: str, value: object, parts: Parts) -> _Chosen:
    method, lora = _parse(selector, value)
    try:
        parameters = select_parameters(model, [selector], parts)
        modules = select_modules(model, [selector], parts) if lora else {}
    except SelectorError as error:
        raise UserError(f"plan: {error}") from None
    if method == "full":
        quantised = [name for name, weight in parameters.items() if not weight.is_floating_point()]
        if quantised:
            raise UserError(
                f"plan[{selector!r}]: found quantised weights ({quantised[0]}, ...), which can't train; "
                "use lora"
            )
    if lora is None:
        return _Chosen(method, parameters, None, [])
    inside = {id(module) for chosen in modules.values() for module in chosen.modules()}
    # The out_proj of torch's MultiheadAttention is never called itself: an adapter in it would never learn.
    linear = [
        (name, module)
        for name, module in model.named_modules()
        if id(module) in inside
        and isinstance(module, nn.Linear)
        and not isinstance(module, NonDynamicallyQuantizableLinear)
    ]
    if lora.modules is not None:
        have = sorted({name.rpartition(".")[2] for name, _ in linear})
        for wanted in lora.modules:
            if wanted not in have:
                raise UserError(
                    f"plan[{selector!r}]: found no linear layer {wanted!r}; {_expected(wanted, have)}"
                )
        linear = [(name, module) for name, module in linear if name.rpartition(".")[2] in lora.modules]
    if not linear:
        raise UserError(f"plan[{selector!r}]: found no linear layer for lora; use full")
    if head_is_tied(model) and any(module is model.get_output_embeddings() for _, module in linear):
        raise UserError(
            f"plan[{selector!r}]: the head shares its weight with the token embeddings, so lora on it could "
            "not be merged; use full or frozen"
        )
    return _Chosen(method, parameters, lora, [name for name, _ in linear])


def _refuse_overlaps(model: PreTrainedModel, chosen: Mapping[str, _Chosen]) -> None:
    """No parameter under two selectors, but a tied head where both leave it frozen or both train it."""
    shared = model.get_output_embeddings().weight if head_is_tied(model) else None
    owner: dict[int, tuple[str, _Chosen]] = {}
    for selector, line in chosen.items():
        for name, parameter in line.parameters.items():
            other, before = owner.setdefault(id(parameter), (selector, line))
            agree = parameter is shared and (before.method == "full") == (line.method == "full")
            if other != selector and not agree:
                hint = " (the head is tied to the token embeddings)" if parameter is shared else ""
                raise UserError(
                    f"plan: {other!r} and {selector!r} both name {name}{hint}; "
                    "expected selectors that don't overlap"
                )


def _inject(model: PreTrainedModel, targets: Mapping[str, Lora]) -> None:
    if not targets:
        return
    names = {name: f"^{re.escape(name)}" for name in targets}  # PEFT adds `$` but not `^`
    first = next(iter(targets.values()))
    config = LoraConfig(
        r=first.r,
        lora_alpha=first.scale,  # type: ignore[arg-type]
        lora_dropout=first.dropout,
        target_modules="|".join(re.escape(name) for name in targets),  # PEFT takes a string as a full match
        rank_pattern={names[name]: lora.r for name, lora in targets.items()},
        alpha_pattern={names[name]: lora.scale for name, lora in targets.items()},
    )
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    for name, lora in targets.items():  # a LoraConfig has but one dropout
        layer: Any = model.get_submodule(name)
        layer.lora_dropout[ADAPTER] = nn.Dropout(lora.dropout) if lora.dropout else nn.Identity()
    cast_adapter_dtype(model, ADAPTER)


def _set_mode(module: nn.Module, outer: bool) -> None:
    trains = [parameter.requires_grad for parameter in module.parameters()]
    module.training = any(trains) if trains else outer
    for child in module.children():
        _set_mode(child, outer=module.training)
