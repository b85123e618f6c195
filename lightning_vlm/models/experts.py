"""Mixtures of experts in a model: its routers, and the weights that experts of a layer have in one tensor.

transformers keeps the weights of a layer's experts in parameters of three dimensions, experts first
(`experts.gate_up_proj`), beside a router (`gate` or `router`) that says which few a token goes through.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

_ROUTERS = ("gate", "router")
"""What families call the router, a child of the same module as the experts."""
_BIAS = "e_score_correction_bias"
"""What balances experts without a loss: it is added to scores when experts are chosen, and nothing else."""
_PROBABILITIES = ("Gemma4TextRouter",)
"""Routers whose first output has been through the softmax."""


class Mixture(NamedTuple):
    """The experts of a layer, and what chooses among them.

    Args:
        path: Of the module that has both, such as `model.language_model.layers.0.mlp`.
        router: The name of its child that chooses.
        experts: The name of its child that has the weights.
        number: How many experts there are.
        top_k: How many of them a token goes through.
        weights: Names of the parameters of three dimensions, below `experts`.
    """

    path: str
    router: str
    experts: str
    number: int
    top_k: int
    weights: tuple[str, ...]

    @property
    def router_path(self) -> str:
        """Of the router in the model."""
        return f"{self.path}.{self.router}"


def mixtures_of(model: nn.Module) -> list[Mixture]:
    """The mixtures of experts of a model, in its order; empty for others.

    Args:
        model: With or without adapters.
    """
    found = []
    for path, module in model.named_modules():
        children = dict(module.named_children())
        for router in _ROUTERS:
            if router not in children:
                continue
            for name, experts in children.items():
                weights = _expert_weights(experts)
                if not weights:
                    continue
                count = next(iter(weights.values())).shape[0]
                if any(weight.shape[:1] == (count,) for weight in children[router].parameters()):
                    top_k = _top_k(module, children[router])
                    found.append(Mixture(path, router, name, count, top_k, tuple(weights)))
    return found


def expert_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of three dimensions with the weights of experts, by their names without adapters."""
    found: dict[str, nn.Parameter] = {}
    for mixture in mixtures_of(model):
        experts = without_wrappers(model.get_submodule(f"{mixture.path}.{mixture.experts}"))
        for name in mixture.weights:
            found[f"{mixture.path}.{mixture.experts}.{name}"] = experts.get_parameter(name)
    return found


def router_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters of routers, by name."""
    found: dict[str, nn.Parameter] = {}
    for mixture in mixtures_of(model):
        router = model.get_submodule(mixture.router_path)
        found |= dict(router.named_parameters(prefix=mixture.router_path))
    return found


def is_correction_bias(name: str) -> bool:
    """Whether a parameter balances experts by itself: no gradient ever reaches it."""
    return name.endswith(f".{_BIAS}")


def balances_itself(model: nn.Module) -> bool:
    """Whether a model has learned biases by which its experts share the work, in place of a loss."""
    names = [name for name, _ in model.named_parameters()] + [name for name, _ in model.named_buffers()]
    return any(is_correction_bias(name) for name in names)


def without_wrappers(experts: nn.Module) -> nn.Module:
    """The experts inside of PEFT's wrappers, of which there is one for each parameter with LoRA."""
    while hasattr(experts, "base_layer"):
        experts = experts.base_layer  # type: ignore[assignment]
    return experts


def without_base_layers(name: str) -> str:
    """The name that a parameter has without PEFT's wrappers around its module.

    >>> without_base_layers("mlp.experts.base_layer.base_layer.down_proj")
    'mlp.experts.down_proj'
    """
    return re.sub(r"(\.base_layer)+(?=\.)", "", name)


class Routed(NamedTuple):
    """What a router said of some tokens.

    Args:
        logits: Tensor of shape [tokens, experts].
        chosen: Tensor of shape [tokens, top_k], int64: the experts that each of them goes through.
    """

    logits: Tensor
    chosen: Tensor


def router_reader(model: PreTrainedModel, mixture: Mixture) -> Callable[[Any], Routed]:
    """A function that takes what a router returned, and gives its logits and choices.

    Args:
        model: transformers says in it which output has the logits, in most families.
        mixture: Of the router.
    """
    router = type(model.get_submodule(mixture.router_path))
    place = _places_of_logits(model).get(router)
    has_probabilities = router.__name__ in _PROBABILITIES

    def read(output: Any) -> Routed:
        tensors = (
            [one for one in output if isinstance(one, Tensor)] if isinstance(output, tuple) else [output]
        )
        wide = [one for one in tensors if one.is_floating_point() and one.shape[-1] == mixture.number]
        logits = tensors[place] if place is not None else wide[0]
        logits = logits.reshape(-1, mixture.number)
        if has_probabilities:
            logits = logits.log()
        for one in tensors:
            if not one.is_floating_point():
                return Routed(logits, one.reshape(len(logits), -1))
        return Routed(logits, logits.detach().topk(mixture.top_k, dim=-1).indices)

    return read


def _places_of_logits(model: nn.Module) -> Mapping[type, int]:
    """Class of a router -> which of its outputs are the logits, as transformers itself records them."""
    places: dict[type, int] = {}
    for module in model.modules():
        recorders = getattr(type(module), "_can_record_outputs", None) or {}
        recorder = recorders.get("router_logits")
        for one in recorder if isinstance(recorder, list) else [recorder]:
            if one is not None and hasattr(one, "target_class"):
                places[one.target_class] = one.index
    return places


def _expert_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    inside = without_wrappers(module)
    own = dict(inside.named_parameters(recurse=False))
    return {name: weight for name, weight in own.items() if weight.ndim == 3 and weight.is_floating_point()}


def _top_k(*owners: nn.Module) -> int:
    """How many experts a token goes through, as a router, its module or their configuration says."""
    for owner in owners:
        for holder in (owner, getattr(owner, "config", None)):
            for name in ("top_k", "num_experts_per_tok", "moe_topk", "top_k_experts"):
                found = getattr(holder, name, None)
                if isinstance(found, int):
                    return found
    return 1
