"""What a check finds."""

from typing import NamedTuple


class Found(NamedTuple):
    """What a check found, in a line."""

    name: str
    """What was checked."""
    text: str
    """What was found; and what to change, if it should be."""
    is_fine: bool = True
    """Whether nothing should be changed."""


def number(value: float) -> str:
    """A rate or a limit as people write it.

    >>> number(2e-4), number(0.0015), number(1.0)
    ('2e-4', '0.0015', '1')
    """
    if value and abs(value) < 1e-3:
        return f"{value:.3g}".replace("e-0", "e-") if "e" in f"{value:.3g}" else _exponent(value)
    return f"{value:g}"


def _exponent(value: float) -> str:
    digits, power = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(power)}"
