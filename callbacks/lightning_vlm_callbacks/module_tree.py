"""Finds the nodes of a module tree that a selector names: the grammar itself, and why nothing was found."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from torch import nn

from lightning_vlm_callbacks.globs import fits

__all__ = ["ModuleTree", "Node", "Parts", "TreeError", "quoted", "shortened"]

Node = nn.Module | nn.Parameter
Parts = Mapping[str, Sequence[str]]
"""Part name -> the paths that it stands for: several are a union, none: the model has no such part."""
Step = str | int | slice
"""A part of a selector: text, or what is in brackets. A bound of a slice may be a share, such as "50%"."""


class TreeError(ValueError):
    """A selector is misspelled, or nothing fits it. The message doesn't repeat the selector."""


class _MissingError(Exception):
    """The module `place` has no `path` below it. The message is costly, so it is made later."""

    def __init__(self, place: str, path: str) -> None:
        self.place = place
        self.path = path


class ModuleTree:
    """All names of a module tree, second names of shared modules and parameters included.

    Args:
        root: Any module.
        parts: Part names and their paths; None takes the attribute `parts` of `root`, if it is a mapping.
    """

    def __init__(self, root: nn.Module, parts: Parts | None) -> None:
        self._nodes: dict[str, Node] = dict(root.named_modules(remove_duplicate=False))
        self._nodes.update(root.named_parameters(remove_duplicate=False))
        self._children: defaultdict[str, list[str]] = defaultdict(list)
        for name in self._nodes:
            if name:
                parent, _, child = name.rpartition(".")
                self._children[parent].append(child)
        if parts is None:
            parts = getattr(root, "parts", None)
        self._parts: Parts = parts if isinstance(parts, Mapping) else {}
        self._part_names = [name for name in self._parts if isinstance(name, str)]

    def find(self, selector: str) -> dict[str, Node]:
        """What a selector names, by any of its names; of a glob the topmost. Never empty.

        Raises:
            TreeError: The selector is misspelled, or nothing fits it.
        """
        found: dict[str, Node] = {}
        missing: list[_MissingError] = []
        paths = self._without_parts(selector)
        for path in paths:
            try:
                names = self._resolve(path)
            except _MissingError as error:  # another path of the part may have it
                missing.append(error)
                continue
            found.update({name: self._nodes[name] for name in names})
        if not found:
            raise TreeError(self._explain(selector, missing[0]))
        has_glob = any("*" in path and path not in self._nodes for path in paths)
        return _topmost(found) if has_glob else found

    # The grammar

    def _without_parts(self, selector: str) -> list[str]:
        """The selector with the part name that it starts with replaced by each of the part's paths."""
        ended = f"{selector}."
        fitting = [name for name in self._part_names if ended.startswith((f"{name}.", f"{name}["))]
        if not fitting:
            return [selector]
        part = max(fitting, key=len)
        rest = selector.removeprefix(part)
        return [f"{path}{rest}" if path else rest.removeprefix(".") for path in self._paths_of(part)]

    def _paths_of(self, part: str) -> Sequence[str]:
        """The paths of a part, each of which must exist."""
        paths = self._parts[part]
        if isinstance(paths, str):
            paths = [paths]
        if not isinstance(paths, Sequence) or not all(isinstance(path, str) for path in paths):
            raise TreeError(f"expected a list of paths for the part {part!r}; found {paths!r}")
        if not paths:
            there = [name for name in self._part_names if self._parts[name]]
            raise TreeError(f"this model has no part {part!r}; its parts: {shortened(there)}")
        for path in paths:
            try:
                self._resolve(path)
            except _MissingError as error:
                reason = self._explain(path, error)
                raise TreeError(f"the part {part!r} stands for {path!r}, but {reason}") from None
        return paths

    def _resolve(self, path: str) -> list[str]:
        """The names that fit a selector without parts. Raises _MissingError if there are none."""
        if path in self._nodes:  # a name may contain characters of the grammar
            return [path]
        names = [""]
        globbed = False
        for step in _steps(path):
            if not isinstance(step, str):
                below = self._numbered(names, step, globbed)
            elif "*" in step:
                below = self._matching(names, step)
                globbed = True
            else:
                below = [name + step for name in names if name + step in self._nodes]
            if not below:
                raise _MissingError(names[0], str(step).removeprefix("."))
            names = below
        return names

    def _numbered(self, names: list[str], index: int | slice, globbed: bool) -> list[str]:
        """The items that an index or slice takes of each list of layers."""
        lists = names
        if globbed:  # it also matches modules that aren't lists; these are skipped if there is any list
            lists = [name for name in names if self._size(name)] or names
        return [_join(name, str(number)) for name in lists for number in self._items(name, index)]

    def _matching(self, starts: list[str], glob: str) -> list[str]:
        """The names that begin with one of `starts` and go on as a text with `*` says."""
        return [name for name in self._nodes if fits(name, starts, glob)]

    def _size(self, name: str) -> int:
        """The number of children with whole numbers for names."""
        children = self._children.get(name, [])
        return sum(re.fullmatch("0|[1-9][0-9]*", child) is not None for child in children)

    def _items(self, name: str, index: int | slice) -> Sequence[int]:
        """Which items of the list of layers `name` an index or slice takes."""
        size = self._size(name)
        self._check_numbers(name, size)
        items = range(size)
        if isinstance(index, int):
            if not -size <= index < size:
                raise _out_of_range(name, size, size - 1)
            return [items[index]]
        start = _whole(index.start, size)
        stop = _whole(index.stop, size)
        chosen = items[start : stop : index.step]
        for bound in (start, stop):
            if bound is not None and not -size <= bound <= size:
                raise _out_of_range(name, size, size, names_all=len(chosen) == size)
        if not chosen:
            raise TreeError(f"an empty slice of {quoted(name)}, which has {size} items")
        return chosen

    def _check_numbers(self, name: str, size: int) -> None:
        """Refuse what isn't a list of layers: its children must be named 0, 1, 2, ..."""
        children = self._children.get(name, [])
        if not size:
            raise TreeError(f"{quoted(name)} is not a list of layers; it has: {shortened(children)}")
        if not set(children).issuperset(map(str, range(size))):
            raise TreeError(
                f"the children of {quoted(name)} are not numbered 0 to {size - 1} but {shortened(children)}; "
                "write the number as a name, after a dot"
            )

    # Why nothing was found

    def _explain(self, selector: str, missing: _MissingError) -> str:
        """Why nothing was found: the place, what is there, the parts, and what was perhaps meant."""
        place = missing.place
        wanted = missing.path
        is_glob = "*" in wanted
        text = f"nothing in {quoted(place)} fits {wanted!r}"
        if not is_glob:
            place, wanted = self._first_missing(missing)
            text = f"{quoted(place)} has no {wanted!r}"
        here = self._children.get(place, [])
        near = [_join(place, name) for name in get_close_matches(wanted, here)]
        if not place:
            near = get_close_matches(wanted, self._part_names) + near
        if is_glob:
            near += self._near_glob(wanted)
        if not near:
            near = [name for name in self._nodes if name.endswith(f".{wanted}")]
            near += get_close_matches(selector, self._nodes)
        text += f"; it has: {shortened(here)}"
        if self._parts:
            text += f"; parts: {shortened(self._part_names)}"
        if near:
            nearest = list(dict.fromkeys(near))[:5]
            text += f"; nearest: {', '.join(nearest)}"
        return text

    def _first_missing(self, missing: _MissingError) -> tuple[str, str]:
        """How far a path exists, and the name that isn't there."""
        place = missing.place
        for wanted in missing.path.split("."):
            if _join(place, wanted) not in self._nodes:
                break
            place = _join(place, wanted)
        return place, wanted

    def _near_glob(self, glob: str) -> list[str]:
        """Single names that are like those in a text with `*`."""
        words = set(".".join(self._nodes).split("."))
        words.discard("")  # the root's name
        near = []
        for part in re.split(r"[*.]+", glob):
            near += get_close_matches(part, sorted(words))
        return near


def _steps(path: str) -> list[Step]:
    """A selector cut at its brackets: text, index or slice, text, ... Later texts keep their leading dot."""
    pieces = re.findall(r"\[[^\[\]]*\]|[^\[\]]+|.", path, re.DOTALL)
    steps: list[Step] = []
    for position, piece in enumerate(pieces):
        if piece in ("[", "]"):
            raise TreeError(f"bad brackets: a {piece!r} without its other half")
        if piece.startswith("["):
            steps.append(_index(piece))
            continue
        if position and not piece.startswith("."):
            raise TreeError(f"bad brackets: after ']' comes '.', '[' or the end, not {piece!r}")
        text = piece.removeprefix(".") if position else piece
        if "" in text.split("."):
            raise TreeError("a name is missing before or after a dot")
        steps.append(piece)
    return steps


def _index(bracket: str) -> int | slice:
    """`[3]` as 3, `[-4:]` as a slice; a bound such as `50%` stays as it is written."""
    number = r"\s*([+-]?\d+)?\s*"
    bound = rf"(?:{number}|\s*(?:\d{{1,2}}|100)%\s*)"
    fields = [field.strip() for field in bracket[1:-1].split(":")]
    if len(fields) == 1 and re.fullmatch(r"[+-]?\d+", fields[0]):
        return int(fields[0])
    if re.fullmatch(rf"\[{bound}:{bound}(:{number})?\]", bracket):
        start, stop, *step = map(_bound, fields)
        if step != [0]:
            return slice(start, stop, *step)
    raise TreeError(
        f"bad brackets: found {bracket}; expected whole numbers, as in [3], [0:8], [-4:], [::2], or [50%:]"
    )


def _bound(field: str) -> int | str | None:
    """A bound of a slice, or its step, as it is written between colons."""
    if not field:
        return None
    return field if field.endswith("%") else int(field)


def _whole(bound: int | str | None, size: int) -> int | None:
    """A bound of a slice as a number of items."""
    if isinstance(bound, str):
        return size * int(bound.removesuffix("%")) // 100
    return bound


def _out_of_range(name: str, size: int, last: int, names_all: bool = False) -> TreeError:
    """The error for an index or slice that reaches outside its list, with what to write instead."""
    instead = "[50%:], the last half, fits a list of any length"
    if names_all:
        instead = f"[:] names all of them, and {instead}"
    expected = f"expected -{size} to {last}, as {quoted(name)} has {size} items"
    return TreeError(f"out of range: {expected}; {instead}")


def _topmost(found: dict[str, Node]) -> dict[str, Node]:
    """Without what is below another one, by identity: a shared module is below each of its owners."""
    below: set[int] = set()
    for node in found.values():
        if isinstance(node, nn.Module):
            below.update(id(inner) for inner in node.modules() if inner is not node)
    return {name: node for name, node in found.items() if id(node) not in below}


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent else child


def quoted(name: str) -> str:
    """A name for a message."""
    return repr(name) if name else "the root"


def shortened(names: Iterable[str]) -> str:
    """The first dozen names, and how many there are."""
    listed = list(names)
    text = ", ".join(listed[:12]) or "nothing"
    if len(listed) > 12:
        text += f", ... ({len(listed)} in all)"
    return text
