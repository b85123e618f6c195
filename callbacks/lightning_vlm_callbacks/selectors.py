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

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches as _close

from torch import nn

__all__ = ["SelectorError", "select_modules", "select_parameters"]

Node = nn.Module | nn.Parameter
Selectors = str | Sequence[str]
Parts = Mapping[str, Sequence[str]]
"""Part name -> the paths that it stands for: several are a union, none: the model has no such part."""


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
    tree = _Tree(root, parts)
    chosen: set[int] = set()
    for selector in _listed(selectors):
        found = tree.find(selector)
        modules = {id(node) for node in found.values() if isinstance(node, nn.Module)}
        if not modules:
            owner = _place(next(iter(found)).rpartition(".")[0])
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
    tree = _Tree(root, parts)
    chosen: set[int] = set()
    for selector in _listed(selectors):
        found = tree.find(selector)
        parameters: set[int] = set()
        for node in found.values():
            parameters.update(map(id, node.parameters() if isinstance(node, nn.Module) else [node]))
        if not parameters:
            raise SelectorError(f"selector {selector!r}: no parameters in {_some(map(_place, found))}")
        chosen |= parameters
    return {name: parameter for name, parameter in root.named_parameters() if id(parameter) in chosen}


class _MissingError(Exception):
    """The module `place` has no `path` below it. The message is costly, so it is made later."""

    def __init__(self, place: str, path: str) -> None:
        self.place, self.path = place, path


class _Tree:
    """All names of a module tree, second names of shared modules and parameters included."""

    def __init__(self, root: nn.Module, parts: Parts | None) -> None:
        self.nodes: dict[str, Node] = dict(root.named_modules(remove_duplicate=False))
        self.nodes.update(root.named_parameters(remove_duplicate=False))
        self.children: defaultdict[str, list[str]] = defaultdict(list)
        for name in filter(None, self.nodes):
            parent, _, child = name.rpartition(".")
            self.children[parent].append(child)
        parts = getattr(root, "parts", None) if parts is None else parts
        self.parts: Parts = parts if isinstance(parts, Mapping) else {}
        self.part_names = [name for name in self.parts if isinstance(name, str)]

    def find(self, selector: str) -> dict[str, Node]:
        """What one selector names, by any of its names; of a glob the topmost. Never empty."""
        if not selector.strip():
            raise SelectorError("a selector is empty; expected a name, as in 'encoder.layers[-4:]'")
        found: dict[str, Node] = {}
        missing: list[_MissingError] = []
        try:
            paths = self.without_parts(selector)
            for path in paths:
                try:
                    found.update((name, self.nodes[name]) for name in self.resolve(path))
                except _MissingError as miss:  # another path of the part may have it
                    missing.append(miss)
            if not found:
                raise SelectorError(self.explain(selector, missing[0]))
        except SelectorError as error:
            raise SelectorError(f"selector {selector!r}: {error}") from None
        return _topmost(found) if any("*" in path and path not in self.nodes for path in paths) else found

    def without_parts(self, selector: str) -> list[str]:
        """The selector with the part name that it starts with replaced by each of the part's paths."""
        names = [name for name in self.part_names if re.match(rf"{re.escape(name)}(?![^.\[])", selector)]
        if not names:
            return [selector]
        part = max(names, key=len)
        paths = _listed(self.parts[part])
        if not paths:
            have = [name for name in self.part_names if self.parts[name]]
            raise SelectorError(f"this model has no part {part!r}; its parts: {_some(have)}")
        for path in paths:
            try:
                self.resolve(path)
            except _MissingError as miss:
                raise SelectorError(
                    f"the part {part!r} stands for {path!r}, but {self.explain(path, miss)}"
                ) from None
        rest = selector[len(part) :]
        return [path + rest if path else rest.removeprefix(".") for path in paths]

    def resolve(self, path: str) -> list[str]:
        """The names that fit a selector without parts. Raises _MissingError if there are none."""
        if path in self.nodes:  # a name may contain characters of the grammar
            return [path]
        names, globbed = [""], False
        for step in _steps(path):
            if not isinstance(step, str):
                # A glob also matches modules that aren't lists, and skips them.
                lists = [name for name in names if self.size(name)] if globbed else names
                below = [_join(name, str(i)) for name in lists or names for i in self.items(name, step)]
            elif "*" in step:
                any_text = ".*".join(map(re.escape, re.split(r"\*+", step)))
                start = "|".join(map(re.escape, names))
                fits = re.compile(f"(?:{start}){any_text}", re.DOTALL).fullmatch
                below, globbed = list(filter(fits, self.nodes)), True
            else:
                below = [name + step for name in names if name + step in self.nodes]
            if not below:
                raise _MissingError(names[0], str(step).removeprefix("."))
            names = below
        return names

    def size(self, name: str) -> int:
        """The number of children with whole numbers for names."""
        return sum(re.fullmatch("0|[1-9][0-9]*", child) is not None for child in self.children.get(name, ()))

    def items(self, name: str, index: int | slice) -> Iterable[int]:
        """Which items of the list of layers `name` an index or slice takes."""
        size, children = self.size(name), self.children.get(name, [])
        if not size:
            raise SelectorError(f"{_place(name)} is not a list of layers; it has: {_some(children)}")
        if not {str(i) for i in range(size)} <= set(children):
            reason = f"the children of {_place(name)} are not numbered 0 to {size - 1} but {_some(children)}"
            raise SelectorError(f"{reason}; write the number as a name, after a dot")
        if not isinstance(index, int):
            index = slice(_whole(index.start, size), _whole(index.stop, size), index.step)
        bounds, last = ([index], size - 1) if isinstance(index, int) else ([index.start, index.stop], size)
        if not all(bound is None or -size <= bound <= last for bound in bounds):
            raise SelectorError(
                f"out of range: expected -{size} to {last}, as {_place(name)} has {size} items; "
                f"{_within(index, size)}"
            )
        chosen = [range(size)[index]] if isinstance(index, int) else range(size)[index]
        if not chosen:
            raise SelectorError(f"an empty slice of {_place(name)}, which has {size} items")
        return chosen

    def explain(self, selector: str, miss: _MissingError) -> str:
        """Why nothing was found: the place, what is there, the parts, and what was perhaps meant."""
        place, wanted, glob = miss.place, miss.path, "*" in miss.path
        for name in [] if glob else miss.path.split("."):  # as far as the path exists
            wanted = name
            if _join(place, name) not in self.nodes:
                break
            place = _join(place, name)
        here = self.children.get(place, [])
        near = [_join(place, name) for name in _close(wanted, here)]
        if not place:
            near = _close(wanted, self.part_names) + near
        if glob:
            words = sorted({word for name in self.nodes for word in name.split(".") if word})
            near += [close for word in re.split(r"[*.]+", wanted) for close in _close(word, words)]
        if not near:
            near = [name for name in self.nodes if name.endswith(f".{wanted}")] + _close(selector, self.nodes)
        text = f"nothing in {_place(place)} fits {wanted!r}" if glob else f"{_place(place)} has no {wanted!r}"
        text += f"; it has: {_some(here)}"
        text += f"; parts: {_some(self.part_names)}" if self.parts else ""
        return text + (f"; nearest: {', '.join(list(dict.fromkeys(near))[:5])}" if near else "")


def _steps(path: str) -> list[str | int | slice]:
    """A selector cut at its brackets: text, index or slice, text, ... Later texts keep their leading dot."""
    pieces = re.findall(r"\[[^\[\]]*\]|[^\[\]]+|.", path, re.DOTALL)
    steps: list[str | int | slice] = []
    for position, piece in enumerate(pieces):
        if piece in ("[", "]"):
            raise SelectorError(f"bad brackets: a {piece!r} without its other half")
        if piece.startswith("["):
            steps.append(_index(piece))
            continue
        if position and not piece.startswith("."):
            raise SelectorError(f"bad brackets: after ']' comes '.', '[' or the end, not {piece!r}")
        if "" in piece.split(".")[1 if position else 0 :]:
            raise SelectorError("a name is missing before or after a dot")
        steps.append(piece)
    return steps


def _index(bracket: str) -> int | slice:
    """`[3]` as 3, `[-4:]` as a slice; a bound such as `50%` stays as it is written."""
    fields: list[int | str | None] = []
    for field in map(str.strip, bracket[1:-1].split(":")):
        percent = re.fullmatch(r"(\d{1,2}|100)%", field) and len(fields) < 2
        if not percent and not re.fullmatch(r"([+-]?\d+)?", field):
            fields = []
            break
        fields.append(field if percent else int(field) if field else None)
    if len(fields) == 1 and isinstance(fields[0], int):
        return fields[0]
    if len(fields) in (2, 3) and fields[2:] != [0]:
        return slice(*fields)
    raise SelectorError(
        f"bad brackets: found {bracket}; expected whole numbers, as in [3], [0:8], [-4:], [::2], or [50%:]"
    )


def _whole(bound: int | str | None, size: int) -> int | None:
    """A bound of a slice as a number of items."""
    return size * int(bound[:-1]) // 100 if isinstance(bound, str) else bound


def _within(index: int | slice, size: int) -> str:
    """What to write instead of an index or slice that reaches outside its list."""
    share = "[50%:], the last half, fits a list of any length"
    inside = range(size)[index] if isinstance(index, slice) else range(0)
    if len(inside) == size:
        return f"[:] names all of them, and {share}"
    return share


def _topmost(found: dict[str, Node]) -> dict[str, Node]:
    """Without what is below another one, by identity: a shared module is below each of its owners."""
    modules = [node for node in found.values() if isinstance(node, nn.Module)]
    below = {id(inner) for node in modules for inner in node.modules() if inner is not node}
    return {name: node for name, node in found.items() if id(node) not in below}


def _listed(texts: str | Sequence[str]) -> list[str]:
    """One text or several, as a list of strings."""
    listed = [texts] if isinstance(texts, str) else texts
    if not isinstance(listed, Sequence) or not all(isinstance(text, str) for text in listed):
        raise SelectorError(f"expected a string or a list of strings; found {texts!r}")
    return list(listed)


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent else child


def _place(name: str) -> str:
    return repr(name) if name else "the root"


def _some(names: Iterable[str]) -> str:
    """The first dozen names, and how many there are."""
    listed = list(names)
    return (", ".join(listed[:12]) or "nothing") + (f", ... ({len(listed)} in all)" if listed[12:] else "")
