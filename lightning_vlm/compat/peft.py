"""Names of layers in PEFT's configurations, which it rewrites for some mixtures of experts.

PEFT takes `gate_proj`, `up_proj`, `down_proj` and `gate` of families whose experts were single layers up to
transformers 4 (GLM-4.5V among them) for parts of today's fused experts, wherever these names are: also for
layers beside the experts, such as shared experts, which then get no adapters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.utils import transformers_weight_conversion as conversion
from torch import nn

_CONVERT = "convert_peft_config_for_transformers"


@contextmanager
def names_as_they_are() -> Iterator[None]:
    """A context in which PEFT adapts the layers and parameters that a configuration names, and no others."""
    convert = getattr(conversion, _CONVERT)
    setattr(conversion, _CONVERT, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(conversion, _CONVERT, convert)


def rewritten_names(model: nn.Module) -> set[str]:
    """The last names of layers that PEFT takes for another when it loads adapters of a model; mostly none."""
    config: Any = getattr(model, "config", None)
    patterns: Any = getattr(conversion, "_MODEL_TO_CONVERSION_PATTERN", {})
    mapping: Any = getattr(conversion, "_MOE_TARGET_MODULE_MAPPING", {})
    return set(mapping.get(patterns.get(getattr(config, "model_type", None)), {}))
