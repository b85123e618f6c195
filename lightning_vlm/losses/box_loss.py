"""The loss of boxes beside the cross-entropy of their tokens: what a user chooses, and what it adds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_vlm.data.batch.number_targets import AXES, NumberTargets
from lightning_vlm.errors import UserError
from lightning_vlm.losses.boxes import Overlap
from lightning_vlm.losses.coordinates import (
    Candidates,
    Shape,
    box_terms,
    expected_boxes,
    expected_values,
    soft_losses,
    soft_targets,
    wasserstein,
)
from lightning_vlm.losses.language import default_chunk_size, is_plain_linear
from lightning_vlm.models.logits import LogitOptions
from lightning_vlm.nearest import did_you_mean

Kind = Literal["soft", "wasserstein", "iou"]
_WEIGHTS = {"soft": 1.0, "wasserstein": 0.3, "iou": 2.0}
_OF_KIND = {"sigma": "soft", "shape": "soft", "iou": "iou", "l1": "iou"}
_CHUNK = 2**22
"""So many logits of candidates are held at a time: 16 MiB in float32."""


@dataclass(frozen=True)
class BoxLoss:
    """A loss that knows geometry, on the tokens of the coordinates of boxes and points in answers.

    Cross-entropy takes every wrong number for as wrong as any other. This is added to it, for coordinates
    written in digits or in tokens of bins:

    - `soft`: numbers near the right one are right as well, the less the farther they are (`soft_targets`).
      It stands in place of the cross-entropy against the right token, by `weight`.
    - `wasserstein`: how far off each token is expected to be, as the number token loss has it.
    - `iou`: the coordinates that the model expects make a box, of which 1 - overlap + `l1` · Σ|Δ| is counted,
      in fractions of the picture; of a point the differences alone. Each of its tokens has an equal share.

    It counts with the weights of its tokens, and is divided with the cross-entropy by the weights of all.

    Args:
        kind: Which loss.
        weight: Its weight. None is 1 for `soft`, at most 1 there; 0.3 for `wasserstein` as in its paper; and
            2 for `iou`, which with `l1` are the weights of DETR (https://arxiv.org/abs/2005.12872).
        sigma: Of `soft`: the standard deviation, in bins: units of a number's last digit.
        shape: Of `soft`: how probabilities fall off.
        iou: Of `iou`: which overlap, see `box_overlap`.
        l1: Of `iou`: the weight of the differences.

    Raises:
        UserError: An unknown value, a number out of its range, or a setting of another kind.

    >>> BoxLoss("iou", l1=5.0).weight is None
    True
    >>> BoxLoss("softer")
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: box_loss.kind: found 'softer'; ...
    """

    kind: Kind
    weight: float | None = None
    sigma: float = 1.0
    shape: Shape = "gaussian"
    iou: Overlap = "giou"
    l1: float = 2.5

    def __post_init__(self) -> None:
        known = {"kind": get_args(Kind), "shape": get_args(Shape), "iou": get_args(Overlap)}
        for name, values in known.items():
            found = getattr(self, name)
            if found not in values:
                near = did_you_mean(str(found), values)
                raise UserError(
                    f"box_loss.{name}: found {found!r}; expected one of {', '.join(values)}{near}"
                )
        for name, kind in _OF_KIND.items():
            if kind != self.kind and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise UserError(f"box_loss.{name}: found it with kind {self.kind}; it belongs to {kind}")
        _check_number("weight", self.in_force, most=1.0 if self.kind == "soft" else math.inf)
        _check_number("sigma", self.sigma)
        _check_number("l1", self.l1, zero=True)

    @property
    def in_force(self) -> float:
        """The weight, also where none was given."""
        return _WEIGHTS[self.kind] if self.weight is None else self.weight

    @classmethod
    def read(cls, given: "BoxLoss | Mapping[str, object] | str | None") -> "BoxLoss | None":
        """From what a config or a checkpoint says: an object, its keys, a kind, or None.

        Raises:
            UserError: A key that there isn't, or no kind.

        >>> BoxLoss.read("soft").sigma
        1.0
        """
        if given is None or isinstance(given, BoxLoss):
            return given
        if isinstance(given, str):
            return cls(given)  # type: ignore[arg-type]
        names = [field.name for field in fields(cls)]
        for name in given:
            if name not in names:
                raise UserError(f"box_loss: there is no {name}{did_you_mean(str(name), names)}")
        if "kind" not in given:
            raise UserError(f"box_loss: found no kind; expected one of {', '.join(get_args(Kind))}")
        return cls(**given)  # type: ignore[arg-type]


def _check_number(name: str, found: object, most: float = math.inf, zero: bool = False) -> None:
    is_number = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
    if not is_number or not (found >= 0 if zero else found > 0) or found > most:  # type: ignore[operator]
        at_most = f", at most {most:g}" if most < math.inf else ""
        expected = f"a finite number {'>=' if zero else '>'} 0{at_most}"
        raise UserError(f"box_loss.{name}: found {found!r}; expected {expected}")


class BoxLosses(NamedTuple):
    """What a box loss makes of the tokens of coordinates.

    Args:
        added: Tensor of shape [numbers], with a graph: what is added to the loss of each token, before its
            weight.
        losses: Tensor of shape [numbers], detached: the loss itself, before `BoxLoss.weight`, of which the
            mean is logged.
        shares: Tensor of shape [numbers]: how much each token counts in that mean, before its weight.
    """

    added: Tensor
    losses: Tensor
    shares: Tensor


def box_losses(
    hidden: Tensor,
    head: nn.Module,
    numbers: NumberTargets,
    candidates: Candidates,
    options: BoxLoss,
    logits: LogitOptions,
) -> BoxLosses:
    """The box loss of the tokens of coordinates, a chunk of them at a time.

    Only the candidates' rows of a plain linear head are multiplied out. Any other head is called, as in
    `head_cross_entropy`. The host never waits for a device.

    Args:
        hidden: Tensor of shape [numbers, hidden]: what the head gets where each token is predicted.
        head: The model's output layer.
        numbers: The tokens, on the same device.
        candidates: What they may be, likewise.
        options: Which loss.
        logits: What the family does to its logits.
    """
    found = _in_chunks(hidden, head, numbers, candidates, options, logits)
    if options.kind == "iou":
        boxes = expected_boxes(found[:, 0], numbers)
        of_item = box_terms(boxes, numbers.targets, options.iou, options.l1)
        losses = of_item[numbers.axes // AXES]
        shares = numbers.share.to(losses.dtype)
        return BoxLosses(options.in_force * shares * losses, losses.detach(), shares)
    added, losses = found.unbind(1)
    return BoxLosses(options.in_force * added, losses.detach(), torch.ones_like(losses.detach()))


def _in_chunks(
    hidden: Tensor,
    head: nn.Module,
    numbers: NumberTargets,
    candidates: Candidates,
    options: BoxLoss,
    logits: LogitOptions,
) -> Tensor:
    """What `_of_logits` makes of all tokens; of several chunks each is computed again in the backward."""
    if is_plain_linear(head):
        rows = head.weight.index_select(0, candidates.ids)
        bias = None if head.bias is None else head.bias.index_select(0, candidates.ids)
        size = max(64, _CHUNK // len(candidates.ids))

        def raw(chunk: Tensor) -> Tensor:
            return F.linear(chunk, rows.to(chunk.dtype), None if bias is None else bias.to(chunk.dtype))
    else:
        size = default_chunk_size(head, hidden.device)

        def raw(chunk: Tensor) -> Tensor:
            return head(chunk).index_select(1, candidates.ids)

    def of_chunk(chunk: Tensor, start: int) -> Tensor:
        found = raw(chunk)
        found = found.to(torch.promote_types(found.dtype, torch.float32)) * logits.logit_scale
        if logits.softcap is not None:
            found = logits.softcap * torch.tanh(found / logits.softcap)
        return _of_logits(found, _piece(numbers, start, start + len(chunk)), candidates, options)

    if len(hidden) <= size and is_plain_linear(head):
        return of_chunk(hidden, 0)
    starts = range(0, len(hidden), size)
    pieces = [
        checkpoint(of_chunk, hidden[start : start + size], start, use_reentrant=False) for start in starts
    ]
    return torch.cat(pieces)


def _of_logits(logits: Tensor, numbers: NumberTargets, candidates: Candidates, options: BoxLoss) -> Tensor:
    """What is kept of each token: a Tensor of shape [numbers, 1 or 2], the expected value or the losses."""
    if options.kind == "iou":
        return expected_values(logits, numbers, candidates)[:, None]
    if options.kind == "wasserstein":
        distances = wasserstein(logits, numbers, candidates)
        return torch.stack((distances, distances), 1)
    targets = soft_targets(numbers, candidates, options.sigma, options.shape)
    return torch.stack(soft_losses(logits, numbers, candidates, targets), 1)


def _piece(numbers: NumberTargets, start: int, stop: int) -> NumberTargets:
    """What losses of single tokens need of some of them."""
    values, digits, behind = (one[start:stop] for one in (numbers.values, numbers.digits, numbers.behind))
    bins, leads = numbers.bin[start:stop], numbers.leads[start:stop]
    return numbers._replace(values=values, digits=digits, behind=behind, bin=bins, leads=leads)
