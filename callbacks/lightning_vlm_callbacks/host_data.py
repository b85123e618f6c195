"""What a batch holds for the host alone."""

__all__ = ["HostData"]


class HostData:
    """A part of a batch that stays where it is: Lightning moves it to no device, as it is no collection.

    It may hold tensors, numbers, strings and collections of them. `NonFiniteBundle` keeps it with its batch;
    other objects become text there.

    >>> from lightning.fabric.utilities import move_data_to_device
    >>> class Sizes(HostData):
    ...     def __init__(self, heights):
    ...         self.heights = heights
    >>> batch = {"sizes": Sizes([3, 4])}
    >>> move_data_to_device(batch, "meta")["sizes"] is batch["sizes"]
    True
    """
