"""Where NaN or infinity began, in words, and what to try first."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

__all__ = ["COLUMNS", "Diagnosis", "Statistics", "advice"]


COLUMNS = ("", "shape", "type", "min", "max", "mean", "abs max", "NaN or infinite")
"""Of the table of what went into a module."""


@dataclass
class Statistics:
    """What a tensor held.

    Args:
        path: Where it was among the inputs or outputs of its module.
        row: Its path and figures under `COLUMNS`.
        is_bad: Whether there is NaN or infinity; -infinity in an attention mask is meant.
    """

    path: str
    row: list[str]
    is_bad: bool

    @classmethod
    def of(cls, path: str, tensor: Tensor) -> "Statistics":
        """Of a tensor of any shape; a complex one is seen as pairs.

        >>> Statistics.of("x", torch.tensor([1.0, -3.0])).row
        ['x', '[2]', 'float32', '-3', '1', '-1', '3', '0']
        """
        values = tensor.detach()
        if values.is_complex():
            values = torch.view_as_real(values)
        if not values.numel():
            values = torch.zeros(1, device=tensor.device)
        values = values.float()
        count = (~values.isfinite()).sum()
        is_mask = ((values == 0) | values.isneginf()).all()
        low, high = values.aminmax()
        largest = torch.maximum(-low, high)
        figures = torch.stack((low, high, values.mean(), largest))
        written = [f"{figure:.4g}" for figure in figures.tolist()]
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = list(tensor.shape)
        row = [path, str(shape), dtype, *written, f"{count.item()}"]
        is_bad = bool(count > 0 and not is_mask)
        return cls(path, row, is_bad)


@dataclass
class Diagnosis:
    """Where a step went wrong.

    Args:
        phase: `forward`: `module` made NaN or infinity of finite inputs. `input`: they came in from outside
            any module. `loss`: all modules were fine, what training_step does with their outputs wasn't.
            `backward`: the forward was fine, the derivative of `module` wasn't. `large`: all was finite, but
            not the squares of the gradients. `none`: all was finite. `error`: the replay failed.
        module: The module's name and class, such as "blocks.1.conv (Conv2d)".
        parameter: The first parameter whose gradient went bad, if that was before all else in the backward;
            of `large` the one whose gradient is the largest.
        near: What in the module or training_step comes next (forward) or last (backward).
        inputs: Of the module, or of what comes after all modules.
        broken: Parameters and buffers of the module that hold NaN or infinity themselves.
        loss: As training_step gave it.
        error: Why there was no replay.
    """

    phase: Literal["forward", "input", "loss", "backward", "large", "none", "error"]
    module: str = ""
    parameter: str = ""
    near: str = ""
    inputs: list[Statistics] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    loss: float = 0.0
    error: str = ""

    def __str__(self) -> str:
        """One sentence."""
        if self.phase == "forward" and self.broken:
            return f"NaN or infinity is in {self.module} itself: {', '.join(self.broken)}"
        if self.phase == "forward":
            near = f", in its own code before {self.near}" if self.near else ""
            return f"NaN or infinity comes out of {self.module}, whose inputs are finite{near}"
        if self.phase == "input":
            return f"NaN or infinity comes into {self.module} from outside any module"
        if self.phase == "loss":
            return "all modules' outputs are finite; the loss that training_step makes of them isn't"
        if self.phase == "backward":
            near = f", after {self.near}" if self.near else ""
            first = f", first in {self.parameter}" if self.parameter else near
            return f"the forward is finite; the gradient goes bad in {self.module}{first}"
        if self.phase == "large":
            return f"loss and gradients are finite; the largest gradient is that of {self.parameter}"
        if self.phase == "none":
            return f"not reproducible: run again, loss ({self.loss:.4g}) and gradients are finite"
        return f"the step could not be run again: {self.error}"


def advice(diagnosis: Diagnosis, data: Sequence[str], precision: str) -> list[str]:
    """What to try, the likeliest first.

    On float16 overflow the loss scale must decrease: a greater one makes the overflow worse.

    >>> advice(Diagnosis("none"), [], "16-mixed")[0]
    'Float16 overflows above 65504: use bf16-mixed; or lower the loss scale (GradScaler init_scale), ...'
    """
    steps = []
    if any("nothing is supervised" in problem for problem in data):
        steps.append("A mean over no tokens is 0/0: remove samples of which nothing is learned.")
    elif data:
        steps.append("Fix or remove the samples named above.")
    if diagnosis.broken:
        steps.append(
            "The weights themselves are bad, and were before this batch: go back to an earlier checkpoint "
            "(or set on_nonfinite: rollback), and lower the learning rate."
        )
    if precision.startswith("16"):
        steps.append(
            "Float16 overflows above 65504: use bf16-mixed; or lower the loss scale (GradScaler init_scale), "
            "never raise it, and run the module above in float32 (torch.autocast with enabled=False)."
        )
    if diagnosis.phase == "backward":
        steps.append(
            "Look for a derivative that is infinite where the value is fine: sqrt, norm, log, division or "
            "power at 0. Add an epsilon inside, before the function."
        )
    elif diagnosis.phase in ("forward", "loss") and not diagnosis.broken:
        steps.append("Look there for a division by 0, a log of 0, an exp of something large; add an epsilon.")
    steps.append("Lower the learning rate, warm up longer, or clip gradients.")
    steps.append("Check that newly added modules are initialised.")
    return steps
