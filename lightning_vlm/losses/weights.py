"""How much each token counts in the loss: a table by kind, times the weight of its sample (seed 3.2.2)."""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightning_vlm.errors import UserError
from lightning_vlm.kinds import Kind


@dataclass(frozen=True)
class KindWeights:
    """The weight of a token by its kind; the defaults are the seed's (3.2.2).

    Images and padding always weigh 0 and cannot be set: a patch placeholder stands for pixels and padding for
    nothing, so there is no next word to learn there. (The seed's stages that give "all tokens" the weight 1
    would train on both; its own table contradicts them.)

    Args:
        special: What the chat template adds around the words.
        instruction: The words of system and user turns.
        response: The words of assistant turns, each with its end-of-turn token.
        box: A marked box inside an assistant turn.
        entity: A marked key entity inside an assistant turn.

    Raises:
        UserError: A weight that isn't finite and at least 0, or no weight above 0.

    >>> KindWeights(box=3.0)
    KindWeights(special=0.0, instruction=0.0, response=1.0, box=3.0, entity=1.5)
    """

    special: float = 0.0
    instruction: float = 0.0
    response: float = 1.0
    box: float = 2.0
    entity: float = 1.5

    def __post_init__(self) -> None:
        weights = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"kind weight '{name}': found {weight}; expected a finite number >= 0")
        if not any(weights.values()):
            raise UserError(
                "kind weights: found 0 for every kind; give at least one, usually 'response', more"
            )


def token_weights(kinds: Tensor, table: KindWeights, sample_weights: Tensor) -> Tensor:
    """The weight of every token: that of its kind times that of its sample.

    Args:
        kinds: Tensor of shape [batch, sequence], int8, values of `Kind`.
        table: The weight of each kind.
        sample_weights: Tensor of shape [batch], floating-point, on the device of `kinds`.
    Returns:
        Tensor of shape [batch, sequence], float32. The host never waits for the device.

    >>> kinds = torch.tensor([[Kind.IMAGE, Kind.RESPONSE, Kind.BOX], [Kind.RESPONSE, Kind.ENTITY, Kind.PAD]])
    >>> token_weights(kinds.to(torch.int8), KindWeights(), torch.tensor([1.0, 2.0]))
    tensor([[0., 1., 2.],
            [2., 3., 0.]])
    """
    by_kind = {
        Kind.PAD: 0.0,
        Kind.SPECIAL: table.special,
        Kind.IMAGE: 0.0,
        Kind.INSTRUCTION: table.instruction,
        Kind.RESPONSE: table.response,
        Kind.BOX: table.box,
        Kind.ENTITY: table.entity,
    }
    weights = torch.tensor([by_kind[kind] for kind in Kind], dtype=torch.float32)
    # A blocking copy of even these few numbers would make the host wait for the device.
    weights = weights.to(kinds.device, non_blocking=True)
    return weights[kinds.long()] * sample_weights.float()[:, None]
