"""The norm of the gradient that an optimizer steps with, for projects that don't log it."""

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["gradient_norm"]


def gradient_norm(optimizer: Optimizer) -> Tensor | None:
    """The 2-norm of all gradients of an optimizer; None if it has none. The host doesn't wait."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return None
    norm = torch.nn.utils.get_total_norm([_norm_values(gradient) for gradient in gradients])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


def _norm_values(gradient: Tensor) -> Tensor:
    """Values that have the 2-norm of a gradient."""
    if gradient.is_sparse:
        gradient = gradient.coalesce().values()  # repeated indices are summed
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient)
    return gradient.float() if gradient.dtype == torch.float16 else gradient  # its squares would overflow
