"""The parts of a model in a plan."""

from torch import nn
from transformers import PreTrainedModel

from lightning_vlm.models.parts import parameters_by_part
from lightning_vlm.planning.planned import Part


def parts_of(model: PreTrainedModel) -> list[Part]:
    """The parts of a model that is adapted, those of quantised layers by the weights that they stand for."""
    found = []
    for name, parameters in parameters_by_part(model).items():
        weights = [(_count(model, path, weight), weight.requires_grad) for path, weight in parameters.items()]
        if weights:
            trained = sum(count for count, trains in weights if trains)
            found.append(Part(name, sum(count for count, _ in weights), trained))
    return found


def _count(model: nn.Module, path: str, weight: nn.Parameter) -> int:
    """How many weights a parameter stands for, which is more than it has elements if it is quantised."""
    owner = model.get_submodule(path.rpartition(".")[0])
    return getattr(owner, "count", weight.numel()) if path.endswith(".weight") else weight.numel()


def positions_of(model: PreTrainedModel) -> int:
    """How many tokens a model has positions for."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**20)
