"""Lets `torch.compile` trace blocks of transformers in which hooks stand that collect attention scores.

The hooks ask a `ContextVar` whether anything is collected, which can't be traced: each block would be cut in
two at its attention, and with gradient checkpointing not be compiled at all.
"""

from typing import Any

from transformers.utils import output_capturing


class _Collector:
    """What is collected at present, in one thread: a `CompileableContextVar` that can be traced."""

    def __init__(self) -> None:
        self.value: dict[str, list[Any]] | None = None

    def get(self) -> dict[str, list[Any]] | None:
        return self.value

    def set(self, value: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
        before, self.value = self.value, value
        return before

    def reset(self, token: dict[str, list[Any]] | None) -> None:
        self.value = token


def install() -> None:
    """Replace the variable, once; nothing happens where transformers has none."""
    found = getattr(output_capturing, "_active_collector", None)
    if found is not None and not isinstance(found, _Collector):
        output_capturing._active_collector = _Collector()  # type: ignore[assignment]
