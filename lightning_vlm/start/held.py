"""How much is held out for validation and test where no file is there for them."""

import math

_LEAST = 8
"""Of fewer samples, nothing is held out."""
_ENOUGH = 500
"""So many samples tell scores apart well enough; more cost time at each validation."""


def share(size: int, reads_test: bool) -> str | None:
    """For `data.val`; None where there is too little.

    Args:
        size: Of the training data.
        reads_test: Whether as much is held out for a test.

    >>> share(30, True), share(400, True), share(50_000, True), share(5, True)
    ('15%', '10%', '1%', None)
    """
    if size < _LEAST:
        return None
    if size < 100:
        return "15%" if reads_test else "20%"
    if size * 0.1 <= _ENOUGH:
        return "10%"
    percent = 100 * _ENOUGH / size
    digits = max(0, -math.floor(math.log10(percent)))
    return f"{round(percent, digits):g}%"
