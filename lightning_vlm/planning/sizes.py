"""Amounts of memory: read from what a person writes, and written for people."""

import re

from lightning_vlm.errors import UserError

_UNITS = {"K": 1, "M": 2, "G": 3, "T": 4}


def read_memory(text: str) -> int:
    """The bytes of an amount such as `24GiB`, `24GB` or `512MiB`.

    GPUs are sold by GB and have GiB: a card "with 24 GB" has 24 GiB, of which its driver takes some.

    Raises:
        UserError: No number, no unit, an unknown unit, or nothing at all.

    >>> read_memory("24GiB") == 24 * 2**30, read_memory("24 GB") == 24 * 10**9
    (True, True)
    """
    given = text.strip()
    expected = "expected a number and its unit, such as 24GiB"
    match = re.fullmatch(r"(?i)(\d+(?:[.,_]\d+)*)\s*([a-z]*)", given)
    if match is None:
        raise UserError(f"memory: found {text!r}; {expected}")
    try:
        number = float(match[1].replace(",", ".").replace("_", ""))
    except ValueError:
        raise UserError(f"memory: found {text!r}; {expected}") from None
    unit = re.fullmatch(r"([KMGT])(i?)(?:B)?", match[2].upper().replace("IB", "iB"))
    if not match[2]:
        raise UserError(f"memory: found {text!r} without a unit; did you mean {given}GiB?")
    if unit is None:
        raise UserError(f"memory: found the unit {match[2]!r} in {text!r}; {expected}")
    size = int(number * (1024 if unit[2] else 1000) ** _UNITS[unit[1]])
    if size < 2**20:
        raise UserError(f"memory: found {text!r}, less than a MiB; {expected}")
    return size
