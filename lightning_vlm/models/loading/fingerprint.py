"""What a base model is, in a short text, quantised or not."""

import hashlib
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from lightning_vlm.models.loading.quantize import QuantMethod, quantised_layers

_SAMPLED = 16
"""Values of each tensor that are looked at: reading all of a big model would take minutes."""
_BLOCK = 64
"""Values that nf4 scales together."""


class Fingerprint:
    """Names, shapes and some values of all parameters that the model's files have, taken once.

    It doesn't depend on where the model lies, nor on whether it was loaded as float32 or bfloat16. (Loaded as
    float16 a model that was saved in another dtype is rounded twice here, and counts as another.)

    Of quantised weights it holds the codes. For a model that isn't quantised it computes the codes that
    quantisation would give, so that what was trained on quantised weights fits their base model in 16 or
    32 bits; loaded with the dtype that was quantised, as rounding may move a code.

    Args:
        model: As it was loaded, without adapters.
        missing: Names of parameters that its files lack. They are drawn again at each load.
    """

    def __init__(self, model: nn.Module, missing: Collection[str] = ()) -> None:
        self.quantised: dict[str, QuantMethod] = {
            f"{name}.weight": method for name, method in quantised_layers(model).items()
        }
        """Names of quantised parameters, and by which method."""
        self._held = {
            name: (_shape(parameter), _sample(parameter, self.quantised.get(name)))
            for name, parameter in model.named_parameters()
            if name not in missing
        }

    @classmethod
    def unknown(cls) -> "Fingerprint":
        """That of a model without weights."""
        return cls(nn.Module())

    def text(self, quantised: Mapping[str, QuantMethod] | None = None) -> str:
        """The fingerprint.

        Args:
            quantised: Take these parameters as if they were quantised, by these methods.
        """
        digest = hashlib.sha256()
        for name, (shape, sample) in self._held.items():
            method, wanted = self.quantised.get(name), (quantised or {}).get(name)
            if method is None and wanted is not None:
                sample, method = _codes(sample, wanted), wanted
            if method is None:
                sample = sample[:_SAMPLED].to(torch.bfloat16).view(torch.int16)
            digest.update(f"{name}{shape}{method or ''}".encode())
            digest.update(sample.numpy().tobytes())
        return digest.hexdigest()[:16]


def _shape(parameter: Tensor) -> tuple[int, ...]:
    state = getattr(parameter, "quant_state", None)  # nf4 weights are one long column
    return tuple(parameter.shape if state is None else state.shape)


def _sample(parameter: Tensor, method: QuantMethod | None) -> Tensor:
    """Codes of a quantised parameter. Of another the first values, and of a matrix all that codes come from:
    the first block, and the largest of the first row."""
    data = parameter.detach()
    if method == "nf4":
        sample = data.flatten().view(torch.uint8)[: _SAMPLED // 2]
    elif method == "int8" or data.ndim != 2:
        sample = data.flatten()[:_SAMPLED]
    else:
        sample = torch.cat([data.flatten()[:_BLOCK], data[0].abs().amax()[None]])
    return sample.clone().cpu()  # training would change a view


def _codes(sample: Tensor, method: QuantMethod) -> Tensor:
    from bitsandbytes import functional

    if method == "nf4":
        codes, _ = functional.quantize_4bit(sample[:-1], blocksize=_BLOCK, quant_type="nf4")
        return codes.flatten()[: _SAMPLED // 2]
    row = torch.cat([sample[:_SAMPLED], sample[-1:]]).half()
    return functional.int8_vectorwise_quant(row[None])[0][0, :_SAMPLED]
