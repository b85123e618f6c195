"""Tensors in batches of any structure, and what may be wrong with them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

__all__ = ["NamesSamples", "check_batch", "items_of", "keep_structure", "named_tensors", "sources_of"]

IGNORED = -100
"""The label that no loss counts."""
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def items_of(value: Any) -> Iterable[tuple[Any, Any]]:
    """Keys and values of a mapping, sequence, named tuple or data class; of anything else nothing."""
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return zip(value._fields, value, strict=True)
    if isinstance(value, list | tuple):
        return enumerate(value)
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name, None)) for field in fields(value)]
    return ()


@runtime_checkable
class NamesSamples(Protocol):
    """A batch that says where its samples came from, so that a report can name them."""

    @property
    def sources(self) -> Sequence[str]:
        """The file and line, say, of each sample."""


def sources_of(batch: Any) -> Sequence[str]:
    """Where the samples of a batch came from; nothing for a batch that doesn't say so."""
    sources = batch.sources if isinstance(batch, NamesSamples) else ()
    are_names = isinstance(sources, list | tuple) and all(isinstance(source, str) for source in sources)
    return sources if are_names else ()


def named_tensors(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested mappings, sequences and data classes, each with where it is.

    >>> [path for path, _ in named_tensors({"inputs": {"ids": torch.ones(1)}, "extra": [1, torch.ones(2)]})]
    ['inputs.ids', 'extra[1]']
    """
    if isinstance(value, Tensor):
        yield path, value
        return
    is_named = not isinstance(value, list | tuple) or hasattr(value, "_fields")
    for key, item in items_of(value):
        if not is_named:
            place = f"{path}[{key}]"
        elif path:
            place = f"{path}.{key}"
        else:
            place = str(key)
        yield from named_tensors(item, place)


def keep_structure(batch: Any) -> Any:
    """The same tensors in new containers, because a training_step may remove items from its batch.

    >>> batch = {"labels": [1, 2]}
    >>> kept = keep_structure(batch)
    >>> batch.pop("labels").clear(), kept
    (None, {'labels': [1, 2]})
    """
    return apply_to_collection(batch, Tensor, lambda tensor: tensor, allow_frozen=True)


def check_batch(batch: Any, module: nn.Module) -> list[str]:
    """What is wrong with a batch's data, as sentences.

    Looks at any float for NaN and infinity; at pictures (floats or bytes of at least three dimensions) that
    are one colour; at `input_ids` for ids that no embedding of the module has; at `labels` and `targets` for
    values that can't be; and for batches without anything supervised (all labels -100, all `weights` 0).

    >>> batch = {"x": torch.tensor([1.0, float("nan")]), "labels": torch.tensor([-100, -100])}
    >>> check_batch(batch, nn.Linear(1, 1))
    ['x: 1 of 2 values are NaN or infinite', 'labels: nothing is supervised (all are -100)']
    """
    named = [(path, path.split(".")[-1], value) for path, value in named_tensors(batch)]
    vocabulary = None
    if any(name == "input_ids" for _, name, _ in named):
        sizes = [layer.num_embeddings for layer in module.modules() if isinstance(layer, nn.Embedding)]
        vocabulary = max(sizes, default=None)
    found = []
    for path, name, value in named:
        place = path or "the batch"
        for problem in _problems(name, value, vocabulary):
            found.append(f"{place}: {problem}")
    return found


def _problems(name: str, value: Tensor, vocabulary: int | None) -> Iterator[str]:
    if value.is_floating_point():
        bad = value.numel() - int(value.isfinite().sum())
        if bad:
            yield f"{bad} of {value.numel()} values are NaN or infinite"
        yield from _plain_pictures(value)
    elif value.dtype == torch.uint8:
        yield from _plain_pictures(value)
    if name in ("weights", "loss_weights") and not (value > 0).any():
        yield "nothing is supervised (no weight is above 0)"
    if value.dtype not in _INTEGERS:
        return
    if name == "input_ids":
        yield from _outside(value, vocabulary, "ids")
    if name in ("labels", "label", "targets", "target"):
        counted = value[value != IGNORED]
        if not counted.numel():
            yield f"nothing is supervised (all are {IGNORED})"
        yield from _outside(counted, vocabulary, "labels")


def _plain_pictures(value: Tensor) -> Iterator[str]:
    if value.ndim < 3 or not value.numel():
        return
    first = max(1, value.ndim - 3)  # the first of the dimensions that are within a picture
    by_picture = value.flatten(first)
    pictures = by_picture.flatten(0, -2)  # [pictures, values]
    is_plain = pictures.amin(1) == pictures.amax(1)
    (plain,) = is_plain.nonzero(as_tuple=True)
    if not len(plain):
        return
    which = plain.tolist()[:8]
    levels = {f"{colour:.4g}" for colour in pictures[plain, 0].tolist()}
    colours = ", ".join(sorted(levels)[:4])
    found = f"pictures {which} of {len(pictures)} are one colour ({colours})"
    if value.ndim > 4:
        found += "; it may be padding"
    yield found


def _outside(values: Tensor, vocabulary: int | None, kind: str) -> Iterator[str]:
    if not values.numel():
        return
    low = int(values.min())
    high = int(values.max())
    found = f"{kind} from {low} to {high}"
    if vocabulary is not None and (low < 0 or high >= vocabulary):
        yield f"{found}; expected 0 to {vocabulary - 1}, as the vocabulary has {vocabulary} entries"
    elif low < 0:
        yield f"{found}; expected 0 or more"
