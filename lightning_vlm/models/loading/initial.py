"""Weights that a checkpoint lacks, and whether all that is about to be trained starts as it should.

Only weights that the checkpoint doesn't have are initialised: a pretrained projector keeps what it has
learned, and LoRA's B keeps its value where training goes on.
"""

import inspect
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning_vlm_callbacks.selectors import select_parameters
from peft.tuners.lora import LoraLayer
from rich.table import Table
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.models.parts import Parts
from lightning_vlm.models.plan.new_tokens import off_mean

LAYER_SCALE = 1e-4
"""New layer scales start at this value, as in the deepest models of CaiT (https://arxiv.org/abs/2103.17239)."""
_IS_LAYER_SCALE = re.compile(r"(^|\.)(layer_?scale\w*|lambda_[12]|ls[12])(\.|$)")
_LARGE = 0.02
"""The limit for the standard deviation of a projector's weights: what Xavier gives where widths add up
to 5,000. Narrower ones need more, and training adds some, so three times what Xavier gives is fine too."""


class Check(NamedTuple):
    """One line of the table: the worst of all weights that it is about.

    Args:
        what: What is checked.
        weights: How many weights were looked at.
        found: The largest value.
        limit: The most that it should be.
        worst: Name of the weight that has it.
    """

    what: str
    weights: int
    found: float
    limit: float
    worst: str

    @property
    def fine(self) -> bool:
        """Whether all are within their limits."""
        return self.found <= self.limit


class _Measured(NamedTuple):
    what: str
    name: str
    value: Tensor
    limit: float


def init_missing_weights(
    model: PreTrainedModel, names: Collection[str], parts: Parts
) -> dict[str, nn.Parameter]:
    """Give values to weights that a model's files lack, in place.

    In the projector matrices are drawn by Glorot and Bengio (2010), "Xavier", uniformly. Layer scales are
    `LAYER_SCALE`. All else stays as transformers draws it: norms start as the identity, biases at zero.

    Args:
        model: Just loaded.
        names: Of what its files lack; transformers names buffers too.
        parts: As from `find_parts(model)`.

    Returns:
        The parameters among them, by name.
    """
    weights = dict(model.named_parameters())
    missing = {name: weights[name] for name in names if name in weights}
    if not missing:
        return {}
    matrices = _projector_matrices(model, parts)
    with torch.no_grad():
        for name, weight in missing.items():
            if _IS_LAYER_SCALE.search(name):
                weight.fill_(LAYER_SCALE)
            elif name in matrices:
                nn.init.xavier_uniform_(weight)
    return missing


def check_missing_weights_train(
    missing: Mapping[str, nn.Parameter], root: nn.Module, excused: Sequence[str] = ()
) -> None:
    """Refuse to leave weights as they were drawn.

    Args:
        missing: The parameters that the model's files lack, by name, after the model was adapted.
        root: What selectors start from.
        excused: Selectors of parameters that may stay.

    Raises:
        UserError: One of them doesn't train.
    """
    if not missing:
        return
    may_stay: set[int] = set()
    if excused:
        may_stay = {id(weight) for weight in select_parameters(root, excused).values()}
    left = []
    for name, weight in missing.items():
        if not weight.requires_grad and id(weight) not in may_stay:
            left.append(name)
    if left:
        shown = ", ".join(left[:4])
        if len(left) > 4:
            shown += f", ... ({len(left)} in all)"
        raise UserError(
            f"the model's files lack {shown}: they would stay randomly initialised; let them train in "
            "model.adapt (`projector: full`), or list them in model.no_gradient_needed if nothing uses them"
        )


def initial_checks(model: PreTrainedModel, parts: Parts, missing: Mapping[str, nn.Parameter]) -> list[Check]:
    """Measure what should hold before training; what the model doesn't have is left out.

    Args:
        model: Adapted, not yet trained.
        parts: As from `find_parts(model)`.
        missing: The parameters that its files lack, by name.

    >>> from lightning_vlm.models.loading.load import load_model
    >>> loaded = load_model("drawn-vlm")
    >>> (check,) = initial_checks(loaded.model, loaded.parts, loaded.missing)
    >>> check.what, check.weights, check.fine
    ('projector: standard deviation', 2, True)
    """
    measured = [*_projector(model, parts), *_lora(model), *_missing(model, missing)]
    for name, off in zip(("embeddings", "head"), off_mean(model), strict=False):
        measured.append(_Measured("new tokens: off the mean, in deviations", name, off, 0.01))
    if not measured:
        return []
    stacked = torch.stack([measurement.value.double() for measurement in measured])
    values = stacked.tolist()  # one transfer from the device
    lines: dict[str, list[Check]] = defaultdict(list)
    for (what, name, _, limit), value in zip(measured, values, strict=True):
        lines[what].append(Check(what, 1, value, limit, name))
    checks = []
    for found in lines.values():
        worst = max(found, key=_excess)
        checks.append(worst._replace(weights=len(found)))
    return checks


def _excess(check: Check) -> float:
    """How far a value is beyond its limit; NaN is beyond any."""
    return math.inf if math.isnan(check.found) else check.found - check.limit


def _projector_matrices(model: PreTrainedModel, parts: Parts) -> dict[str, nn.Parameter]:
    if not parts["projector"]:
        return {}
    projector = select_parameters(model, ["projector"], parts)
    return {
        name: weight for name, weight in projector.items() if weight.ndim > 1 and weight.is_floating_point()
    }


def initial_table(checks: Collection[Check]) -> Table:
    """The checks, for the terminal."""
    table = Table("at the start", "weights", "largest", "at most", "")
    for check in checks:
        weights = str(check.weights)
        largest = f"{check.found:.2g}"
        at_most = f"{check.limit:.2g}"
        verdict = "ok" if check.fine else f"look: {check.worst}"
        table.add_row(check.what, weights, largest, at_most, verdict)
    return table


def _projector(model: PreTrainedModel, parts: Parts) -> Iterator[_Measured]:
    for name, weight in _projector_matrices(model, parts).items():
        if ".lora_" in name:
            continue
        rows = weight.shape[0]
        columns = weight[0].numel()
        xavier = math.sqrt(2 / (rows + columns))
        deviation = weight.detach().float().std()
        yield _Measured("projector: standard deviation", name, deviation, max(_LARGE, 3 * xavier))


def _lora(model: PreTrainedModel) -> Iterator[_Measured]:
    """B, where it begins at zero: not by PiSSA, OLoRA, and orthogonal matrices, whose start is elsewhere."""
    configs: dict[str, Any] = getattr(model, "peft_config", {})
    at_zero = set()
    for adapter, config in configs.items():
        # IA3 doesn't have this setting.
        if getattr(config, "init_lora_weights", None) in (True, "gaussian"):
            at_zero.add(adapter)
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        layers: Any = module.lora_B
        for adapter in at_zero & set(layers):
            largest = layers[adapter].weight.detach().abs().amax()
            yield _Measured("LoRA: B", name, largest.float(), 0.0)


def _missing(model: PreTrainedModel, missing: Mapping[str, nn.Parameter]) -> Iterator[_Measured]:
    """Norms and layer scales that the model's files lack."""
    name_of = {id(weight): name for name, weight in missing.items()}
    for module in model.modules():
        for key, weight in module.named_parameters(recurse=False):
            name = name_of.get(id(weight))
            if name is None or not weight.is_floating_point():
                continue
            value = weight.detach().float()
            if _IS_LAYER_SCALE.search(name):
                off = (value - LAYER_SCALE).abs().amax()
                yield _Measured("new layer scales: off 1e-4", name, off, 1e-6)
            elif "norm" in type(module).__name__.lower():
                identity = 0.0 if key == "bias" or _adds_one(type(module)) else 1.0
                off = (value - identity).abs().amax()
                yield _Measured("new norms: off the identity", name, off, 0.0)


def _adds_one(kind: type[nn.Module]) -> bool:
    """Whether a norm scales by one more than its weight, as Gemma's."""
    return re.search(r"1(\.0)? \+ self\.weight", inspect.getsource(kind)) is not None
