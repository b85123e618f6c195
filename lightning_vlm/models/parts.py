"""The parts of a vision-language model: vision, projector, language, head, wherever its family keeps them.

What hears sound is a part of its own, `audio`, in the families that have it. No batch has sound, so nothing
in it would learn; a plan leaves it as it is unless it names it.

`find_parts` gives the part names that selectors start with; `parameters_by_part` proves that the parts hold
every parameter exactly once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from lightning_vlm_callbacks.selectors import select_parameters
from torch import nn
from transformers import PreTrainedModel

from lightning_vlm.errors import UserError
from lightning_vlm.models.experts import mixtures_of

PARTS = ("vision", "projector", "language", "head", "audio")
"""They hold every parameter once. `vision.layers`, `language.layers`, `language.routers` are within them. Few
models have `audio`."""

PROJECTOR_INSIDE_VISION = ("merger", "deepstack_merger_list", "connector", "patch_merger")
"""Children of the vision encoder that project into the language model: Qwen's, GLM's, HunYuan's and Granite
Docling's keep them there."""
OTHER_TOWERS = ("video_tower",)
"""Children of the base model that are vision encoders beside that of pictures (Video-LLaVA)."""

Parts = Mapping[str, Sequence[str]]
_Node = nn.Module | nn.Parameter


def find_parts(model: PreTrainedModel, prefix: str = "") -> dict[str, list[str]]:
    """Where the parts of a model are.

    Args:
        model: As from `AutoModelForImageTextToText`, adapters injected or not.
        prefix: Path of the model inside the module that selectors start from, such as `model` or `model.`.

    Returns:
        Part name -> dotted paths, as `select_modules` and `select_parameters` take them: `vision`,
        `vision.layers` (the list of its blocks), `projector`, `language`, `language.layers`, `head`, and in a
        mixture of experts `language.routers`. A part that the model doesn't have is an empty list; `audio` is
        there only if the model has it.

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
    mergers: list[_Node] = []
    if vision is not None:
        mergers += [child for name, child in vision.named_children() if name in PROJECTOR_INSIDE_VISION]
    others = _children(model, lambda name: name in OTHER_TOWERS)
    audio = _children(model, lambda name: "audio" in name)
    found: dict[str, list[_Node]] = {
        "vision": _cover(vision, holes=[*mergers, head]) + others,
        "vision.layers": _layers(vision, holes=mergers),
        "projector": mergers + _cover(model, holes=[vision, language, head, *others, *audio]),
        "language": _cover(language, holes=[vision, head]),
        "language.layers": _layers(language, holes=[]),
        "head": _cover(head, holes=[]),
    }
    if audio:
        found["audio"] = audio
    names: dict[int, str] = {}
    for name, module in model.named_modules():
        names[id(module)] = name
    for name, weight in model.named_parameters(remove_duplicate=False):
        names[id(weight)] = name
    routers: list[_Node] = [model.get_submodule(mixture.router_path) for mixture in mixtures_of(model)]
    if routers:
        found["language.routers"] = routers
    start = prefix.rstrip(".")
    parts: dict[str, list[str]] = {}
    for part, nodes in found.items():
        parts[part] = []
        for node in nodes:
            path = f"{start}.{names[id(node)]}"
            parts[part].append(path.strip("."))
    return parts


def parameters_by_part(model: PreTrainedModel) -> dict[str, dict[str, nn.Parameter]]:
    """All parameters of a model by part, each exactly once.

    Args:
        model: As in `find_parts`.

    Returns:
        `vision`, `projector`, `language`, `head` (and `audio`) -> parameters by name, names and order as in
        `model.named_parameters()`. A tied head shares the weight of the token embeddings, which is with
        `language`.

    Raises:
        UserError: A parameter is in no part or in two: the parts of this family aren't known well enough.
    """
    parts = find_parts(model)
    shared = model.get_output_embeddings().weight if head_is_tied(model) else None
    found = {}
    for part in PARTS:
        if part not in parts:
            continue
        parameters = select_parameters(model, [part], parts) if parts[part] else {}
        if part == "head":
            parameters = {name: weight for name, weight in parameters.items() if weight is not shared}
        found[part] = parameters
    wrong = []
    for name, _ in model.named_parameters():
        owners = [part for part, parameters in found.items() if name in parameters]
        if len(owners) != 1:
            places = " and ".join(owners) or "none"
            wrong.append(f"{name} (in {places})")
    if wrong:
        family = type(model).__name__
        parts_text = ", ".join(PARTS)
        first_few = ", ".join(wrong[:5])
        raise UserError(
            f"{family}: every parameter belongs to one of {parts_text}; "
            f"found {len(wrong)} that don't: {first_few}"
        )
    return found


def vision_tower(model: PreTrainedModel) -> nn.Module | None:
    """The vision encoder; None if the model has none."""
    tower = model.get_encoder(modality="image")
    # transformers returns the model or its base where there is no tower.
    if tower is model or tower is model.base_model:
        return None
    return tower


def head_is_tied(model: PreTrainedModel) -> bool:
    """Whether the head and the token embeddings are one weight, so that training one trains both."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _children(model: PreTrainedModel, wanted: Callable[[str], bool]) -> list[_Node]:
    """Children of the model or its base, by their names, without what has no weights."""
    found: dict[int, _Node] = {}
    for owner in (model, model.base_model):
        for name, child in owner.named_children():
            has_weights = any(True for _ in child.parameters())
            if wanted(name) and has_weights:
                found[id(child)] = child
    return list(found.values())


def _cover(module: nn.Module | None, holes: Sequence[_Node | None]) -> list[_Node]:
    """The fewest modules and parameters that hold everything in a module that is outside the holes."""
    if module is None or _is_among(module, holes):
        return []
    has_weights = any(True for _ in module.parameters())
    if not has_weights:
        return []
    if not any(_is_among(inside, holes) for inside in module.modules()):
        return [module]
    cover: list[_Node] = list(module.parameters(recurse=False))
    for child in module.children():
        cover += _cover(child, holes)
    return cover


def _layers(module: nn.Module | None, holes: Sequence[_Node]) -> list[_Node]:
    """The list of a module's blocks: of its outermost lists the one with the most weights.

    Towers of timm that have no list have a sequence of stages.
    """
    if module is None:
        return []
    for kind in (nn.ModuleList, nn.Sequential):
        lists = list(_outermost(kind, module, holes))
        if lists:
            return [max(lists, key=_weight_count)]
    return []


def _weight_count(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


def _outermost(kind: type[nn.Module], module: nn.Module, holes: Sequence[_Node]) -> Iterator[nn.Module]:
    for child in module.children():
        if _is_among(child, holes):
            continue
        if isinstance(child, kind):
            yield child
        else:
            yield from _outermost(kind, child, holes)


def _is_among(module: nn.Module, nodes: Sequence[_Node | None]) -> bool:
    return any(module is node for node in nodes)
