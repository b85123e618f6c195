"""Classes that a config names: which ones a key takes, and the one that a name means."""

import collections.abc
import inspect
import pathlib
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from datetime import timedelta
from enum import Enum
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin

from lightning_vlm.nearest import did_you_mean, nearest

PLAIN = (bool, int, float, complex, str, bytes, list, tuple, set, dict, type(None), object, timedelta)
"""Types whose values are written as they are."""


class ClassNameError(Exception):
    """A name that stands for no class of the kind; the message is the end of a sentence about its key."""


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def class_types(hint: Any) -> list[type]:
    """The base classes that a key takes, in lists and behind callables too.

    >>> from typing import Optional
    >>> class_types(Optional[list[Exception]])
    [<class 'Exception'>]
    """
    return list(dict.fromkeys(_class_types(hint)))


def _class_types(hint: Any) -> Iterator[type]:
    for member in members(hint):
        origin = get_origin(member)
        if origin is collections.abc.Callable:
            returned = get_args(member)[-1:]
            yield from _class_types(returned[0]) if returned else ()
        elif origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable):
            for item in get_args(member):
                yield from _class_types(item)
        elif origin is None and inspect.isclass(member) and not _is_plain(member):
            yield member


def _is_plain(kind: type) -> bool:
    return (
        kind in PLAIN
        or issubclass(kind, Enum | pathlib.PurePath)
        or kind.__module__.startswith("jsonargparse")
    )


def takes_text(hint: Any) -> bool:
    """Whether a key takes plain text beside classes, so that a word need not be a class."""
    return any(member in (str, Any) or get_origin(member) is Literal for member in members(hint))


def known_classes(bases: list[type]) -> dict[str, type]:
    """All imported classes of these kinds, by their shortest public path."""
    found: dict[str, type] = {}
    waiting = list(bases)
    while waiting:
        kind = waiting.pop(0)
        waiting += kind.__subclasses__()
        path = public_path(kind)
        if "<locals>" not in path and "._" not in path and not path.rpartition(".")[2].startswith("_"):
            found.setdefault(path, kind)
    return found


def public_path(kind: type) -> str:
    """The shortest dotted path under which a class can be imported."""
    parts = kind.__module__.split(".")
    for count in range(1, len(parts)):
        package = ".".join(parts[:count])
        if getattr(sys.modules.get(package), kind.__name__, None) is kind:
            return f"{package}.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def find_class(name: str, bases: list[type]) -> type | Callable | None:
    """The class or function that a `class_path` means; None where only trying can say.

    Args:
        name: With its module, or the bare name of a class that is imported.
        bases: What kinds of class are taken.

    Raises:
        ClassNameError: There is no such class, there are several, or it is of another kind.
    """
    known = known_classes(bases)
    if "." not in name:
        own = [path for path, kind in known.items() if kind.__name__ == name]
        if len(own) > 1:
            raise ClassNameError(f"there are several classes {name}; write {' or '.join(own)}")
        if not own:
            raise ClassNameError(f"there is no class {name}{near_class(name, known)}")
        return known[own[0]]
    module_name, _, attribute = name.rpartition(".")
    try:
        found = getattr(import_module(module_name), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        if missing and not module_name.startswith(missing):
            needs = f"{name} needs the package {missing}; pip install {missing}"
            raise ClassNameError(needs) from error
        near = near_class(name, known)
        if missing and not near:
            near = f": there is no module {missing}; put its folder on PYTHONPATH, or install its package"
        raise ClassNameError(f"there is no class {name}{near}") from error
    except Exception as error:  # the module is the user's own and may raise anything
        raise ClassNameError(f"importing {name} ends in {type(error).__name__}: {error}") from error
    if inspect.isclass(found) and not any(_fits(found, base) for base in bases):
        wanted = " or ".join(base.__name__ for base in bases)
        raise ClassNameError(f"{name} is no {wanted}; expected a class of that kind{such_as(bases)}")
    return found


def _fits(found: type, base: type) -> bool:
    try:
        return issubclass(found, base) or getattr(base, "_is_protocol", False)
    except TypeError:  # a generic class, which is checked when it is called
        return True


def near_class(name: str, known: dict[str, type]) -> str:
    """`; did you mean ...?`: the bare name for a bare name, else the whole path; or nothing."""
    known = {path: kind for path, kind in known.items() if not inspect.isabstract(kind)}
    bare = {path.rpartition(".")[2]: path for path in known}
    if "." not in name:
        return did_you_mean(name, bare)
    top = name.partition(".")[0]
    known = {path: kind for path, kind in known.items() if nearest(top, [path.partition(".")[0]])}
    bare = {path.rpartition(".")[2]: path for path in known}
    package = name.rpartition(".")[0]
    beside = {path.rpartition(".")[2]: path for path in known if path.rpartition(".")[0] == package}
    for names in (beside, bare):
        if near := did_you_mean(name.rpartition(".")[2], names):
            last = near.removeprefix("; did you mean ").removesuffix("?")
            return f"; did you mean {names[last]}?"
    return did_you_mean(name, known)


def such_as(bases: list[type], count: int = 3) -> str:
    """` such as A, B`: some of the classes that are taken; nothing where none is known."""
    kinds = {path: kind for path, kind in known_classes(bases).items() if not inspect.isabstract(kind)}
    paths = sorted((path for path, kind in kinds.items() if kind not in bases), key=_familiarity)
    names = [path.rpartition(".")[2] for path in paths[:count]]
    return f" such as {', '.join(names)}" if names else ""


def _familiarity(path: str) -> tuple[int, str]:
    """Sorts our classes first, then those of torch and Lightning, and classes that are rarely named last."""
    package = path.partition(".")[0]
    order = ("lightning_vlm", "lightning_vlm_callbacks", "torch", "lightning")
    rare = any(word in path for word in ("Dummy", "Base", "_"))
    rank = order.index(package) if package in order and not (package == "lightning" and rare) else len(order)
    return rank, path


def is_settings(kind: type) -> bool:
    """Whether a class is written as its keys alone, without `class_path`."""
    return is_dataclass(kind)
