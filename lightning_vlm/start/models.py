"""Which model to begin with, where none is named."""

BY_MEMORY = (
    (40, "Qwen/Qwen3-VL-8B-Instruct"),
    (16, "Qwen/Qwen3-VL-4B-Instruct"),
    (8, "Qwen/Qwen3-VL-2B-Instruct"),
    (0, "HuggingFaceTB/SmolVLM2-256M-Video-Instruct"),
)
"""A model of a family that reads pictures, videos and boxes, and the GiB from which it trains in comfort."""
SMALL = BY_MEMORY[-1][1]
"""The one that a CPU can train."""


def default_model(gib: float | None) -> str:
    """A published model that a device can train.

    Args:
        gib: The memory of the GPU; None without one.

    >>> default_model(24), default_model(None)
    ('Qwen/Qwen3-VL-4B-Instruct', 'HuggingFaceTB/SmolVLM2-256M-Video-Instruct')
    """
    if gib is None:
        return SMALL
    return next(name for least, name in BY_MEMORY if gib * 1.05 >= least)  # a card of 16 GB has 15.x GiB free
