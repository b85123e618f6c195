"""The parts of a vision-language model: vision, projector, language, head, wherever its family keeps them.

`find_parts` gives the part names that selectors start with; `parameters_by_part` proves that the parts hold
every parameter exactly once.
"""

from collections.abc import Iterator, Mapping, Sequence

from lightning_vlm_callbacks.selectors import select_parameters
from torch import nn
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError

PARTS = ("vision", "projector", "language", "head")
"""They hold every parameter once. `vision.layers` and `language.layers` are within them."""

PROJECTOR_INSIDE_VISION = ("merger", "deepstack_merger_list")
"""Children of the vision encoder that project into the language model: Qwen's and GLM's keep them there."""

Parts = Mapping[str, Sequence[str]]


def find_parts(model: PreTrainedModel, prefix: str = "") -> dict[str, list[str]]:
    """Where the parts of a model are.

    Args:
        model: As from `AutoModelForImageTextToText`, adapters injected or not.
        prefix: Path of the model inside the module that selectors start from, such as `model` or `model.`.

    Returns:
        Part name -> dotted paths, as `select_modules` and `select_parameters` take them: `vision`,
        `vision.layers` (the list of its blocks), `projector`, `language`, `language.layers`, `head`. A part
        that the model doesn't have is an empty list.

    >>> from lightning_vlm.models.loading.load import load_model
    >>> for name, paths in find_parts(load_model("drawn-vlm").model, prefix="vlm").items():
    ...     print(name, *paths)
    vision vlm.model.vision_tower
    vision.layers vlm.model.vision_tower.encoder.layers
    projector vlm.model.multi_modal_projector
    language vlm.model.language_model
    language.layers vlm.model.language_model.layers
    head vlm.lm_head
    """
    vision = vision_tower(model)
    language = model.get_decoder()
    head = model.get_output_embeddings()
    mergers = [child for name, child in _children(vision) if name in PROJECTOR_INSIDE_VISION]
    named = [module for module in (vision, language, head) if module is not None]
    found: dict[str, Sequence[nn.Module | nn.Parameter | None]] = {
        "vision": _cover(vision, holes=[*mergers, *([head] if head else [])]),
        "vision.layers": [_layers(vision, holes=mergers)],
        "projector": [*mergers, *_cover(model, holes=named)],
        "language": _cover(language, holes=[module for module in named if module is not language]),
        "language.layers": [_layers(language, holes=[])],
        "head": _cover(head, holes=[]),
    }
    path = {id(module): name for name, module in model.named_modules()}
    path.update((id(weight), name) for name, weight in model.named_parameters(remove_duplicate=False))
    return {
        part: [f"{prefix.rstrip('.')}.{path[id(node)]}".strip(".") for node in nodes if node is not None]
        for part, nodes in found.items()
    }


def parameters_by_part(model: PreTrainedModel) -> dict[str, dict[str, nn.Parameter]]:
    """All parameters of a model by part, each exactly once.

    Args:
        model: As in `find_parts`.

    Returns:
        `vision`, `projector`, `language`, `head` -> parameters by name, names and order as in
        `model.named_parameters()`. A tied head shares the weight of the token embeddings, which is with
        `language`.

    Raises:
        UserError: A parameter is in no part or in two: the parts of this family aren't known well enough.
    """
    parts = find_parts(model)
    found = {part: select_parameters(model, [part], parts) if parts[part] else {} for part in PARTS}
    if head_is_tied(model):
        shared = model.get_output_embeddings().weight
        found["head"] = {name: weight for name, weight in found["head"].items() if weight is not shared}
    owners: dict[str, list[str]] = {name: [] for name, _ in model.named_parameters()}
    for part, parameters in found.items():
        for name in parameters:
            owners[name].append(part)
    wrong = []
    for name, own in owners.items():
        if len(own) != 1:
            wrong.append(f"{name} (in {' and '.join(own) or 'none'})")
    if wrong:
        raise UserError(
            f"{type(model).__name__}: every parameter belongs to one of {', '.join(PARTS)}; "
            f"found {len(wrong)} that don't: {', '.join(wrong[:5])}"
        )
    return found


def vision_tower(model: PreTrainedModel) -> nn.Module | None:
    """The vision encoder; None if the model has none."""
    tower = model.get_encoder(modality="image")
    # transformers returns the model or its base where there is no tower.
    return None if tower is model or tower is model.base_model else tower


def head_is_tied(model: PreTrainedModel) -> bool:
    """Whether the head and the token embeddings are one weight, so that training one trains both."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _children(module: nn.Module | None) -> Iterator[tuple[str, nn.Module]]:
    return iter(()) if module is None else module.named_children()


def _cover(module: nn.Module | None, holes: list[nn.Module]) -> list[nn.Module | nn.Parameter]:
    """The fewest modules and parameters that hold everything in a module that is outside the holes."""
    if module is None or any(module is hole for hole in holes) or not any(True for _ in module.parameters()):
        return []
    if not any(inside is hole for inside in module.modules() for hole in holes):
        return [module]
    below = [node for child in module.children() for node in _cover(child, holes)]
    return [*module.parameters(recurse=False), *below]


def _layers(module: nn.Module | None, holes: list[nn.Module]) -> nn.ModuleList | None:
    """The list of a module's blocks: of its outermost lists the one with the most weights."""
    lists = list(_outermost_lists(module, holes))
    return max(lists, key=lambda blocks: sum(w.numel() for w in blocks.parameters()), default=None)


def _outermost_lists(module: nn.Module | None, holes: list[nn.Module]) -> Iterator[nn.ModuleList]:
    for _, child in _children(module):
        if isinstance(child, nn.ModuleList):
            if not any(child is hole for hole in holes):
                yield child
        elif not any(child is hole for hole in holes):
            yield from _outermost_lists(child, holes)
