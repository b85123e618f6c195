"""How messages count things."""


def counted(count: int, one: str, several: str = "") -> str:
    """A number and the noun that goes with it.

    Args:
        count: How many there are.
        one: The noun for one of them.
        several: The noun for more than one; by default `one` with an s.

    >>> counted(1, "sample"), counted(2000, "sample"), counted(2, "process", "processes")
    ('1 sample', '2,000 samples', '2 processes')
    """
    return f"{count:,} {one if count == 1 else several or one + 's'}"
