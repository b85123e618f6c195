"""What PyTorch's FlashAttention takes."""

import torch
from torch import Tensor

KERNEL_DTYPES = (torch.float16, torch.bfloat16)

WIDEST_HEAD = 256
"""The widest head that the kernel takes, in dimensions."""


@torch.compiler.assume_constant_result
def kernel_runs_on(device: torch.device) -> bool:
    """Whether a device has the kernel: GPUs since Ampere, in a PyTorch that was built with FlashAttention.

    >>> kernel_runs_on(torch.device("cpu"))
    False
    """
    if device.type != "cuda" or not torch.backends.cuda.is_flash_attention_available():
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that a matrix multiplication would have here."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else tensor.dtype
