"""The methods of a plan and their settings."""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Wrong = dict[str, str]
"""Setting with a wrong value -> what it must be."""

REFUSED = {
    "prefix": "PEFT's prefix tuning wraps the whole model and can't be put inside, is not the base model at "
    "the start, and fails on Qwen-VL and Mllama; use lora, ia3 or adapter",
    "eva": "it needs data before training; use init: pissa, or default",
    "corda": "it needs data before training; use init: pissa, or default",
    "lora_ga": "it needs gradients before training; use init: pissa, or default",
    "loftq": "it quantises the weights itself; use init: default on quantised weights",
    "mica": "it trains A alone; use init: default",
}
"""What PEFT has and we don't: the reason, and what to use instead."""

_INIT = r"default|gaussian|orthogonal|pissa|pissa_niter_\d+|olora"
_WHOLE = "a whole number >= 1"
_FLAG = "true or false"
_POSITIVE = "a number > 0"
_NAMES = "a list of names such as [q_proj, v_proj]"


class LoraSettings(NamedTuple):
    """Low-rank adapters: `W + alpha/r · B A` (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

    Args:
        r: Rank.
        alpha: Scale; None: 2 r, as LLaVA trains (PEFT's own default is 8 for both), or 16 with `rslora`.
        dropout: On what goes into the adapter; not in experts that share one tensor.
        modules: Last names of the linear layers to adapt, such as `q_proj`; None: all.
        rslora: Divide alpha by √r instead of r (https://arxiv.org/abs/2312.03732).
        dora: Learn the norm of each row of the weight beside its direction (https://arxiv.org/abs/2402.09353).
        init: `default` (A random, B zero), `gaussian`, `orthogonal` (r even), `pissa`, `pissa_niter_16` (or
            another number; faster) or `olora`. The last three move the largest directions of the weight into
            the adapters (https://arxiv.org/abs/2404.02948, https://arxiv.org/abs/2406.01775), so the start
            equals the base model up to rounding.
        expert_r: Rank in each expert of a mixture whose experts share one tensor; 0: no adapters there. None:
            `r` divided by the number of experts that a token goes through, at least 1, so that a token meets
            as much LoRA as in a dense layer (Schulman et al. 2025, https://thinkingmachines.ai/blog/lora).
            The factor on `B A` is that of the other layers.
    """

    r: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    modules: Sequence[str] | None = None
    rslora: bool = False
    dora: bool = False
    init: str = "default"
    expert_r: int | None = None

    @property
    def scale(self) -> float:
        """Alpha, the default filled in."""
        if self.alpha is not None:
            return self.alpha
        return 16 if self.rslora else 2 * self.r

    def expert_rank(self, top_k: int) -> int:
        """Rank in an expert, where a token goes through `top_k` of them; 0 where experts get no adapters.

        >>> LoraSettings(r=16).expert_rank(top_k=8), LoraSettings(r=16, expert_r=4).expert_rank(top_k=8)
        (2, 4)
        """
        return max(self.r // top_k, 1) if self.expert_r is None else self.expert_r

    def expert_scale(self, rank: int) -> float:
        """Alpha in an expert with some rank: PEFT divides it by that, or by its root."""
        share = rank / self.r
        return self.scale * (share**0.5 if self.rslora else share)

    def expert_problem(self) -> str | None:
        """Which of the settings LoRA on experts that share one tensor can't have; None if all can be."""
        if self.dora:
            return "dora"
        return None if self.init in ("default", "gaussian") else f"init={self.init}"

    @property
    def changes_base(self) -> bool:
        """Whether the weights themselves change at the start."""
        return self.init.startswith(("pissa", "olora"))

    def wrong(self) -> Wrong:
        """The settings that can't be."""
        wrong = {}
        if not _is_whole(self.r):
            wrong["r"] = _WHOLE
        elif self.init == "orthogonal" and self.r % 2 == 1:
            wrong["r"] = "an even number for init: orthogonal"
        if self.alpha is not None and not _is_positive(self.alpha):
            wrong["alpha"] = _POSITIVE
        if not _is_number(self.dropout) or not 0 <= self.dropout < 1:
            wrong["dropout"] = "a number in [0, 1)"
        if not _is_names(self.modules):
            wrong["modules"] = _NAMES
        if self.expert_r not in (None, 0) and not _is_whole(self.expert_r):
            wrong["expert_r"] = "a whole number >= 0"
        if not isinstance(self.rslora, bool):
            wrong["rslora"] = _FLAG
        if not isinstance(self.dora, bool):
            wrong["dora"] = _FLAG
        if not isinstance(self.init, str) or not re.fullmatch(_INIT, self.init):
            wrong["init"] = _expected_init(self.init)
        return wrong


class IA3(NamedTuple):
    """Learned factors on keys, values and what enters an MLP's last layer.

    This is IA3 (Liu et al. 2022, https://arxiv.org/abs/2205.05638).

    Args:
        modules: Last names of the linear layers; None: keys, values and the MLP's last, as in the paper.
        feedforward: Those of them whose input is scaled instead of the output; None: the MLP's last.
    """

    modules: Sequence[str] | None = None
    feedforward: Sequence[str] | None = None

    def wrong(self) -> Wrong:
        """The settings that can't be."""
        wrong = {}
        if not _is_names(self.modules):
            wrong["modules"] = _NAMES
        if not _is_names(self.feedforward):
            wrong["feedforward"] = _NAMES
        return wrong


class Adapter(NamedTuple):
    """Bottleneck adapters: see `Bottleneck` in `models/adapters/layers.py`.

    Args:
        reduction: Width of the layer over width of the bottleneck.
        kind: `sequential`, after the layer, or `parallel`, beside its MLP.
        scale: Factor on what is added.
    """

    reduction: int = 16
    kind: Literal["sequential", "parallel"] = "sequential"
    scale: float = 1.0

    def wrong(self) -> Wrong:
        """The settings that can't be."""
        wrong = {}
        if not _is_whole(self.reduction):
            wrong["reduction"] = _WHOLE
        if self.kind not in ("sequential", "parallel"):
            wrong["kind"] = "sequential or parallel"
        if not _is_positive(self.scale):
            wrong["scale"] = _POSITIVE
        return wrong


class CrossModalAdapter(NamedTuple):
    """Text attends to the picture's features once more: see `CrossModal` in `models/adapters/cross_modal.py`.

    Args:
        reduction: Width of the language model over width of the attention.
        heads: Of the attention; they divide its width.
    """

    reduction: int = 4
    heads: int = 8

    def wrong(self) -> Wrong:
        """The settings that can't be."""
        wrong = {}
        if not _is_whole(self.reduction):
            wrong["reduction"] = _WHOLE
        if not _is_whole(self.heads):
            wrong["heads"] = _WHOLE
        return wrong


Settings = LoraSettings | IA3 | Adapter | CrossModalAdapter

METHODS: dict[str, type[Settings] | None] = {
    "frozen": None,
    "full": None,
    "lora": LoraSettings,
    "ia3": IA3,
    "adapter": Adapter,
    "cross_modal_adapter": CrossModalAdapter,
}
"""The methods and their settings."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_names(value: object) -> bool:
    """Whether it is None or a list that isn't empty."""
    return value is None or (isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0)


def _expected_init(found: object) -> str:
    if isinstance(found, str) and found in REFUSED:
        return f"another, as {REFUSED[found]}"
    return "one of " + ", ".join(_INIT.replace(r"\d+", "16").split("|"))
