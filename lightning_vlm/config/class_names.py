"""Classes that a config names: which classes a key takes, and which class a name means."""

import collections.abc
import inspect
import pathlib
import sys
import types
from collections.abc import Callable
from dataclasses import is_dataclass
from datetime import timedelta
from enum import Enum
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin

from lightning_vlm.config.moved import MEANT
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean, nearest

PLAIN = (bool, int, float, complex, str, bytes, list, tuple, set, dict, type(None), object, timedelta)
"""Types whose values are written as they are."""
_NOTHING = ("none", "nil", "nothing", "no")
"""Words for nothing, which isn't what YAML calls it."""
_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    if get_origin(hint) in (Union, types.UnionType):
        return get_args(hint)
    return (hint,)


def class_types(hint: Any) -> list[type]:
    """The base classes that a key takes, including those in lists and those that a callable returns.

    >>> from typing import Optional
    >>> class_types(Optional[list[Exception]])
    [<class 'Exception'>]
    """
    found: list[type] = []
    for member in members(hint):
        origin = get_origin(member)
        arguments = get_args(member)
        if origin is collections.abc.Callable:
            arguments = arguments[-1:]  # what it returns
        if origin is collections.abc.Callable or origin in _LISTS:
            for argument in arguments:
                found += class_types(argument)
        elif origin is None and inspect.isclass(member) and not _is_plain(member):
            found.append(member)
    return list(dict.fromkeys(found))


def _is_plain(kind: type) -> bool:
    if kind in PLAIN or issubclass(kind, Enum | pathlib.PurePath):
        return True
    return is_tensor(kind) or kind.__module__.startswith("jsonargparse")


def is_tensor(kind: Any) -> bool:
    """Whether a type is torch's Tensor, which no config can write. Optimizers take one for `lr`."""
    return getattr(kind, "__module__", "") == "torch" and getattr(kind, "__name__", "") == "Tensor"


def takes_text(hint: Any) -> bool:
    """Whether a key takes plain text besides classes, so that a word need not be a class."""
    return any(member in (str, Any) or get_origin(member) is Literal for member in members(hint))


def is_settings(kind: type) -> bool:
    """Whether a class is written as its keys alone, without `class_path`."""
    return is_dataclass(kind)


def bare_name(path: str) -> str:
    """The last part of a dotted path.

    >>> bare_name("torch.optim.AdamW")
    'AdamW'
    """
    return path.rpartition(".")[2]


def known_classes(bases: list[type]) -> dict[str, type]:
    """All imported classes of these kinds, by their shortest public path."""
    found: dict[str, type] = {}
    waiting = list(bases)
    while waiting:
        kind = waiting.pop(0)
        waiting += kind.__subclasses__()
        path = public_path(kind)
        is_private = "<locals>" in path or "._" in path or path.startswith("_")
        if not is_private:
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


def find_class(name: str, bases: list[type]) -> type | Callable:
    """The class or function that a `class_path` means.

    Args:
        name: A class with its module, or the bare name of a class that is imported.
        bases: What kinds of class are accepted.

    Raises:
        UserError: There is no such class, there are several, or it is of another kind. The message is the end
            of a sentence about the key.
    """
    if "." not in name:
        return _find_imported(name, bases)
    package, _, rest = name.partition(".")
    if package == "pytorch_lightning":  # whose classes are others, under the same names
        raise UserError(f"{name} doesn't go with lightning; did you mean lightning.pytorch.{rest}?")
    found = _import(name, bases)
    if inspect.isclass(found) and not any(_fits(found, base) for base in bases):
        kinds = " or ".join(base.__name__ for base in bases)
        raise UserError(f"{name} is no {kinds}; expected a class of that kind{such_as(bases)}")
    return found


def _find_imported(name: str, bases: list[type]) -> type:
    known = known_classes(bases)
    paths = [path for path, kind in known.items() if kind.__name__ == name]
    if not paths:
        if name.lower() in _NOTHING:
            raise UserError(f"there is no class {name}; did you mean null?")
        hint = _near_class(name, bases) or f"; expected one{such_as(bases)}"
        raise UserError(f"there is no class {name}{hint}")
    if MEANT.get(name) in paths:
        return known[MEANT[name]]
    if len(paths) > 1:
        raise UserError(f"there are several classes {name}; write {' or '.join(paths)}")
    return known[paths[0]]


def _import(name: str, bases: list[type]) -> Any:
    module_name, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module_name), attribute)
    except AttributeError as error:
        raise UserError(f"there is no class {name}{_near_class(name, bases)}") from error
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not module_name.startswith(missing):
            raise UserError(f"{name} needs the package {missing}; pip install {missing}") from error
        hint = _near_class(name, bases)
        if not hint:
            hint = f": there is no module {missing}; put its folder on PYTHONPATH, or install its package"
        raise UserError(f"there is no class {name}{hint}") from error
    except Exception as error:  # the module is the user's own and may raise anything
        kind = type(error).__name__
        raise UserError(f"importing {name} ends in {kind}: {error}") from error


def _fits(found: type, base: type) -> bool:
    try:
        return issubclass(found, base) or getattr(base, "_is_protocol", False)
    except TypeError:  # a generic class, which is checked when it is called
        return True


def _near_class(name: str, bases: list[type]) -> str:
    """`; did you mean ...?`: the bare name for a bare name, else the whole path; or nothing."""
    paths = _concrete(bases)
    if "." not in name:
        return did_you_mean(name, [bare_name(path) for path in paths])
    package, _, last = name.rpartition(".")
    top = _top_package(name)
    paths = [path for path in paths if nearest(top, [_top_package(path)])]
    beside = [path for path in paths if path.rpartition(".")[0] == package]
    for candidates in (beside, paths):
        by_name = {bare_name(path): path for path in candidates}
        near = nearest(last, by_name)
        if near is not None:
            return f"; did you mean {by_name[near]}?"
    return did_you_mean(name, paths)


def _top_package(path: str) -> str:
    return path.partition(".")[0]


def such_as(bases: list[type], count: int = 3) -> str:
    """` such as A, B`: some of the accepted classes; nothing where none is known."""
    own_paths = [public_path(base) for base in bases]
    others = [path for path in _concrete(bases) if path not in own_paths]
    if not others:
        return ""
    others.sort(key=_familiarity)
    names = [bare_name(path) for path in others[:count]]
    return f" such as {', '.join(names)}"


def _concrete(bases: list[type]) -> list[str]:
    """The paths of all imported classes of these kinds that aren't abstract."""
    known = known_classes(bases)
    return [path for path, kind in known.items() if not inspect.isabstract(kind)]


def _familiarity(path: str) -> tuple[int, str]:
    """Sorts our classes first, then those of torch and Lightning, and classes that are rarely named last."""
    order = ["lightning_vlm", "lightning_vlm_callbacks", "torch", "lightning"]
    package = _top_package(path)
    is_rare = package == "lightning" and ("Dummy" in path or "Base" in path)
    if is_rare or package not in order:
        return (len(order), path)
    return (order.index(package), path)
