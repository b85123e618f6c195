"""Visual information gain: by how much the picture lowers the loss of each token."""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_vlm.data.batch.collate import Batch, Targets
from lightning_vlm.errors import UserError
from lightning_vlm.kinds import Kind
from lightning_vlm.losses.batch_loss import last_hidden_states, target_losses

NEARLY_0 = 2.0**-10
"""What pixels become: SmolVLM and Idefics 3 take pictures that are 0 for padding, and padding stays 0."""


class Gain(NamedTuple):
    """What pictures do for the targets of a batch.

    Args:
        nats: Tensor of shape [targets], float32: by how much the pictures lower the loss of each.
        seen: Tensor of shape [targets], bool: whether its sample has a picture or a video.
    """

    nats: Tensor
    seen: Tensor


def visual_gain(model: PreTrainedModel, batch: Batch, targets: Targets) -> Gain:
    """The visual information gain of the targets of a batch.

    That of a token is log p(token | text before it, pictures) - log p(token | text before it, blank
    pictures): the difference of two losses, in nats. The sum over an answer is the logarithm of how much more
    likely the pictures make it; the mean is the logarithm of the ratio of two perplexities, as in "Selective
    Training for Large Vision Language Models via Visual Information Gain" (Lee and Hwang 2026,
    https://arxiv.org/abs/2602.17186). A blank picture has the same size and as many tokens, but all its
    values are nearly 0 as the model gets them, which is the mean colour of processors that normalise.

    It takes two forward passes, or none if there is no picture. Gradients and dropout are up to the caller.

    Args:
        model: Its own weights say what is likely.
        batch: On the device of the model.
        targets: Of the batch.

    Raises:
        UserError: Nothing in the batch is known to hold pixels, though it has pictures.
    """
    blank = without_pixels(batch)
    samples = batch.samples.flatten()
    pictures = (batch.kinds == Kind.IMAGE).flatten().int()
    of_sample = pictures.new_zeros(max(1, len(batch.tasks))).index_add_(0, samples, pictures)
    seen = (of_sample > 0)[samples[targets.positions]]
    if blank is None:
        return Gain(torch.zeros_like(targets.weights), seen)
    with_pictures = target_losses(model, last_hidden_states(model, batch), targets).token_losses
    without = target_losses(model, last_hidden_states(model, blank), targets).token_losses
    return Gain((without - with_pictures).float(), seen)


def without_pixels(batch: Batch) -> Batch | None:
    """The same batch with blank pictures and videos; None if it has none.

    Raises:
        UserError: As `visual_gain`.
    """
    pixels = [name for name, value in batch.inputs.items() if _holds_pixels(name, value)]
    if not pixels:
        if any(batch.pictures):
            names = ", ".join(batch.inputs)
            raise UserError(f"visual gain: found no pixels among the model's inputs ({names})")
        return None
    blank = {name: (batch.inputs[name] != 0).to(batch.inputs[name].dtype) * NEARLY_0 for name in pixels}
    return batch._replace(inputs=batch.inputs | blank)


def _holds_pixels(name: str, value: Tensor) -> bool:
    """Sizes and masks are whole numbers, and stay as they are."""
    return name.startswith(("pixel_values", "image", "video")) and value.is_floating_point()
