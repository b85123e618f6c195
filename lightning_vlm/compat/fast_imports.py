"""Make a command begin sooner: what it imports takes most of the time until its first step.

The imports leave so many objects that Python searches them for garbage again and again, which takes more than
a second, and finds nothing.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fast_imports() -> Iterator[None]:
    """Import without searches for garbage in between; what is there afterwards stays, and isn't searched."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
