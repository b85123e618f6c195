"""What a plan makes of a mixture of experts: LoRA on weights that experts have in one tensor, and routers."""

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.models.experts import expert_parameters, mixtures_of, router_parameters
from lightning_vlm.models.plan.inject import last_name
from lightning_vlm.models.plan.methods import LoraSettings
from lightning_vlm.models.plan.plan import PlanEntry


def without_routers(
    model: PreTrainedModel, selector: str, entry: PlanEntry, parameters: dict[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    """What a selector names but routers, unless it names nothing else.

    Args:
        model: Without adapters.
        selector: Of a plan.
        entry: What the plan says of it.
        parameters: All that it names.

    Raises:
        UserError: It names routers only, for a method that they can't have.
    """
    routers = router_parameters(model).keys()
    others = {name: weight for name, weight in parameters.items() if name not in routers}
    if others:
        return others
    if entry.method not in ("full", "frozen"):
        raise UserError(
            f"plan[{selector!r}]: found {entry.method} for the routers of experts; expected full or frozen"
        )
    return parameters


def experts_for_lora(
    model: PreTrainedModel, selector: str, settings: LoraSettings, parameters: Mapping[str, nn.Parameter]
) -> dict[str, int]:
    """Names of the chosen parameters with the weights of experts, and the rank in each expert.

    Args:
        model: Without adapters.
        selector: Of a plan.
        settings: What the plan says of it.
        parameters: What it names.

    Raises:
        UserError: LoRA with a setting that experts can't have.
    """
    present = [name for name in expert_parameters(model) if name in parameters]
    if settings.modules is not None:
        present = [name for name in present if last_name(name) in settings.modules]
    ranks: dict[str, int] = {}
    for mixture in mixtures_of(model):
        rank = settings.expert_rank(mixture.top_k)
        for weight in mixture.weights:
            name = f"{mixture.path}.{mixture.experts}.{weight}"
            if name in present and rank:
                ranks[name] = rank
    problem = settings.expert_problem()
    if ranks and problem:
        raise UserError(
            f"plan[{selector!r}]: found {problem}, which PEFT can't do for experts that share one tensor "
            f"({next(iter(ranks))}); leave it out, or set expert_r: 0 to give those no adapters"
        )
    return ranks
