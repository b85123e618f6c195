"""Selectors: the one grammar for naming modules and parameters of any `nn.Module`.

| written | names |
|---|---|
| `model.encoder.layer1`, `lm_head.weight` | the module or the parameter of that path |
| `*.lora_B*`, `model.encoder.*` | every full name that fits; `*` is any characters, dots included |
| `encoder.layers[-4:]`, `encoder.layers[3]` | items of a list of layers, counted as Python counts |
| `encoder.layers[50%:]` | the same, counted in hundredths of the list, rounded down: here its last half |
| `encoder.layers[-4:].self_attn.*` | something below each of them, where they have it |
| `vision`, `language.layers[-2:].mlp` | a part: a short name that the model gives to its own paths |

Several selectors are a union. A list of layers is any module with children named 0, 1, 2, ...; a slice must
lie inside it, since `[24:32]` of a model with 28 layers is usually a mistake. A selector that
finds nothing is an error: a misspelled name must not silently freeze or train the wrong module.

A shared module or parameter is found under each of its names (`lm_head.weight` finds a tied weight) and given
back under the first, which is the one in `named_modules()` and `named_parameters()`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from lightning_vlm_callbacks.module_tree import ModuleTree, Node, Parts, TreeError, quoted, shortened

__all__ = ["SelectorError", "overlaps", "select_modules", "select_parameters"]

Selectors = str | Sequence[str]


class SelectorError(ValueError):
    """A selector is misspelled, or nothing in the model fits it. The message says what there is."""


def select_modules(root: nn.Module, selectors: Selectors, parts: Parts | None = None) -> dict[str, nn.Module]:
    """The modules that the selectors name: themselves, not what is below them.

    Of what a selector with `*` matches, only the topmost are kept: a module below another match adds nothing,
    as freezing, adapters and gradient groups all act on everything below a module. `*` alone is therefore the
    root, whose name is the empty string. Of several selectors each keeps its own.

    Args:
        root: Any module.
        selectors: One selector or several (a union); of an empty list the result is empty.
        parts: The part names and their paths; by default the attribute `parts` of `root`, if it is a mapping.
            The longest part name that starts a selector (and ends at `.`, `[` or its end) is replaced, even
            where a module of that name exists.

    Returns:
        Modules by name, names and order as in `root.named_modules()`, each once even when it is shared.

    Raises:
        SelectorError: A selector is not written as above, a slice is empty or reaches outside its list, or a
            selector names no module.

    >>> layers = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3))
    >>> model = nn.ModuleDict({"encoder": nn.ModuleDict({"layers": layers}), "head": nn.Linear(2, 2)})
    >>> list(select_modules(model, ["head", "encoder.layers[-2:]"]))
    ['encoder.layers.1', 'encoder.layers.2', 'head']
    >>> list(select_modules(model, "text[0].*", parts={"text": ["encoder.layers"]}))
    ['encoder.layers.0.0', 'encoder.layers.0.1']
    >>> select_modules(model, "encoder.layer[0]")
    Traceback (most recent call last):
        ...
    lightning_vlm_callbacks.selectors.SelectorError: selector 'encoder.layer[0]': 'encoder' has no 'layer';
    it has: layers; nearest: encoder.layers
    """
    chosen: set[int] = set()
    for selector, found in _found(root, selectors, parts):
        modules = {id(node) for node in found.values() if isinstance(node, nn.Module)}
        if not modules:
            owner = quoted(next(iter(found)).rpartition(".")[0])
            raise SelectorError(f"selector {selector!r}: found a parameter of {owner}, expected a module")
        chosen |= modules
    return {name: module for name, module in root.named_modules() if id(module) in chosen}


def select_parameters(
    root: nn.Module, selectors: Selectors, parts: Parts | None = None
) -> dict[str, nn.Parameter]:
    """All parameters below the modules that the selectors name, and the parameters that they name directly.

    The arguments are those of `select_modules`.

    Returns:
        Parameters by name, names and order as in `root.named_parameters()`, each once, frozen ones too.

    Raises:
        SelectorError: As in `select_modules`, or one of the selectors names modules without parameters.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False))
    >>> list(select_parameters(model, ["[-1]", "*.bias"]))
    ['0.bias', '2.weight']
    """
    chosen: set[int] = set()
    for selector, found in _found(root, selectors, parts):
        parameters: set[int] = set()
        for node in found.values():
            below = node.parameters() if isinstance(node, nn.Module) else [node]
            parameters.update(id(parameter) for parameter in below)
        if not parameters:
            places = shortened(quoted(name) for name in found)
            raise SelectorError(f"selector {selector!r}: no parameters in {places}")
        chosen |= parameters
    return {name: parameter for name, parameter in root.named_parameters() if id(parameter) in chosen}


def overlaps(chosen: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """What more than one selector takes, compared by identity and never by value.

    Args:
        chosen: Selector -> name -> what it takes, as from `select_parameters`.

    Returns:
        The name of each such thing, the first selector that takes it, and the other one.

    >>> model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    >>> chosen = {selector: select_parameters(model, selector) for selector in ("*.weight", "head")}
    >>> list(overlaps(chosen))
    [('head.weight', '*.weight', 'head')]
    """
    owners: dict[int, str] = {}
    for selector, found in chosen.items():
        for name, taken in found.items():
            first = owners.setdefault(id(taken), selector)
            if first != selector:
                yield name, first, selector


def _found(
    root: nn.Module, selectors: Selectors, parts: Parts | None
) -> Iterator[tuple[str, dict[str, Node]]]:
    """Each selector, and what it names by any of its names. That is never empty."""
    listed = [selectors] if isinstance(selectors, str) else selectors
    if not isinstance(listed, Sequence) or not all(isinstance(selector, str) for selector in listed):
        raise SelectorError(f"expected a string or a list of strings; found {selectors!r}")
    tree = ModuleTree(root, parts)
    for selector in listed:
        if not selector.strip():
            raise SelectorError("a selector is empty; expected a name, as in 'encoder.layers[-4:]'")
        try:
            found = tree.find(selector)
        except TreeError as error:
            raise SelectorError(f"selector {selector!r}: {error}") from None
        yield selector, found
