"""How much memory a run has taken at most."""

import sys

import torch

__all__ = ["peak_memory"]


def peak_memory(device: torch.device) -> int | None:
    """Bytes that tensors have taken on a CUDA device at most, or the whole process on a CPU.

    It is the most since the process began or since someone reset the device's statistics. Loader processes
    aren't included.

    Returns:
        None where it isn't known: on other devices, and on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
