"""A model as it was loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from lightning_vlm.models.loading.fingerprint import Fingerprint
from lightning_vlm.models.loading.initial import Check
from lightning_vlm.models.parts import Parts


@dataclass(frozen=True)
class LoadedModel:
    """A model as it was loaded, and what was found out about it.

    Args:
        model: In eval mode and with every parameter trainable, as `from_pretrained` gives it.
        parts: Where its parts are, as from `find_parts(model)`.
        missing: The parameters that its files lack, which are new, by name.
        fingerprint: What tells its weights from those of other models.
        checks: What `initial_checks` found before the model was cut into pieces; None where it is whole.
    """

    model: PreTrainedModel
    parts: Parts
    missing: Mapping[str, nn.Parameter]
    fingerprint: Fingerprint
    checks: list[Check] | None = None
