"""Frozen weights in 4 or 8 bits, to train adapters on: QLoRA (https://arxiv.org/abs/2305.14314).

bitsandbytes scales every 64 values by their own largest one, so that an outlier costs only its neighbours
their precision; `double_quant` stores those scales in 8 bits: 4.127 bits a weight instead of 4.5.
"""

import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal, get_args

from lightning_vlm_callbacks.selectors import SelectorError, select_modules
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from lightning_vlm.compat import bitsandbytes as bitsandbytes_fix
from lightning_vlm.errors import UserError
from lightning_vlm.models.experts import mixtures_of
from lightning_vlm.models.forwards import asked_for_dtype, is_read_directly
from lightning_vlm.models.parts import Parts, find_parts
from lightning_vlm.nearest import did_you_mean, one_line

QuantMethod = Literal["nf4", "int8"]
"""How weights are quantised."""
ComputeDtype = Literal["bfloat16", "float16", "float32"]


@dataclass(frozen=True)
class Quantization:
    """What of a model is loaded quantised, and how.

    Linear layers are quantised; norms, embeddings (of patches, too, where a family's code asks for their
    dtype), biases, routers of experts and the head never are. The vision tower and the projector aren't
    unless named: they are small beside the language model, and all that is seen goes through them.

    Args:
        method: `nf4`, or `int8` (LLM.int8, Dettmers et al. 2022, https://arxiv.org/abs/2208.07339), which
            also rounds what goes into a layer to 8 bits and passes it through float16.
        parts: Selectors of what is quantised.
        double_quant: Of nf4: quantise the scales too.
        compute_dtype: Of nf4: what weights are turned into to be multiplied.

    Raises:
        UserError: An unknown value, no parts, or a setting of nf4 given for int8.

    >>> Quantization("int4")
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: quantization.method: found 'int4'; expected one of: nf4, int8
    """

    method: QuantMethod = "nf4"
    parts: list[str] = field(default_factory=lambda: ["language"])
    double_quant: bool = True
    compute_dtype: ComputeDtype = "bfloat16"

    def __post_init__(self) -> None:
        for key, known in (("method", get_args(QuantMethod)), ("compute_dtype", get_args(ComputeDtype))):
            found = getattr(self, key)
            if found not in known:
                raise UserError(f"quantization.{key}: found {found!r}; expected one of: {', '.join(known)}")
        if not isinstance(self.parts, list) or not self.parts:
            raise UserError(f"quantization.parts: found {self.parts!r}; expected a list such as [language]")
        if self.method == "int8" and (self.compute_dtype != "bfloat16" or not self.double_quant):
            raise UserError(
                "quantization: found double_quant or compute_dtype with method int8; they belong to nf4"
            )

    @classmethod
    def read(cls, value: object) -> "Quantization | None":
        """From what a config or a checkpoint says: None, a method's name, or a mapping.

        Raises:
            UserError: Something else, or an unknown key.

        >>> Quantization.read("int8").method
        'int8'
        """
        if value is None or isinstance(value, Quantization):
            return value
        keys = tuple(cls.__dataclass_fields__)
        methods = get_args(QuantMethod)
        if value in methods:
            return cls(method=value)  # type: ignore[arg-type]
        if not isinstance(value, Mapping) or not set(value) <= set(keys):
            known = f"{', '.join(methods)}, or some of the keys {', '.join(keys)}"
            near = did_you_mean(value, methods) if isinstance(value, str) else ""
            raise UserError(f"quantization: found {one_line(str(value), 80)}; expected {known}{near}")
        return cls(**value)


def refuse_quantised(config: PretrainedConfig) -> None:
    """Refuse what can't be quantised here, before anything is loaded.

    Raises:
        UserError: The model is quantised already, or bitsandbytes isn't installed.
    """
    own = getattr(config, "quantization_config", None)
    if own is not None:
        method = own.get("quant_method") if isinstance(own, Mapping) else own.quant_method
        raise UserError(f"quantization: found a model that is quantised already ({method}); leave it out")
    if find_spec("bitsandbytes") is None:
        raise UserError("quantization: found no bitsandbytes; pip install bitsandbytes")


def chosen_layers(model: PreTrainedModel, quantization: Quantization, parts: Parts) -> list[str]:
    """Names of the linear layers to quantise.

    Args:
        model: Not quantised; on the meta device will do.
        quantization: Says which parts.
        parts: As from `find_parts(model)`.

    Raises:
        UserError: A selector finds nothing, or no linear layer, or the head.
    """
    head = model.get_output_embeddings()
    # SigLIP 2 turns pixels into the dtype of its patch embedding's weight: whole numbers, were it quantised.
    kept = {id(layer) for module in model.modules() for layer in asked_for_dtype(module)}
    for mixture in mixtures_of(model):  # rounding would send tokens to other experts
        kept |= {id(layer) for layer in model.get_submodule(mixture.router_path).modules()}
    kept |= {id(layer) for name, layer in model.named_modules() if is_read_directly(name)}
    chosen: set[int] = set()
    for selector in quantization.parts:
        try:
            modules = select_modules(model, [selector], parts).values()
        except SelectorError as error:
            raise UserError(f"quantization.parts: {error}") from None
        inside = [module for outer in modules for module in outer.modules()]
        if any(module is head for module in inside):
            raise UserError(f"quantization.parts: {selector!r} names the head, which stays in 16 or 32 bits")
        # Exactly nn.Linear, as bitsandbytes: torch reads the weight of a subclass without calling it.
        linear = {id(module) for module in inside if type(module) is nn.Linear} - kept
        if not linear:
            raise UserError(f"quantization.parts: {selector!r} has no linear layer")
        chosen.update(linear)
    return [name for name, module in model.named_modules() if id(module) in chosen]


def bitsandbytes_config(skeleton: PreTrainedModel, quantization: Quantization) -> BitsAndBytesConfig:
    """What `from_pretrained` takes to quantise the chosen layers and no others.

    Args:
        skeleton: The model on the meta device.
        quantization: Says what and how.

    Raises:
        UserError: As from `chosen_layers`.
    """
    chosen = set(chosen_layers(skeleton, quantization, find_parts(skeleton)))
    linear = [name for name, module in skeleton.named_modules() if type(module) is nn.Linear]
    rest = [name for name in linear if name not in chosen]
    # transformers matches names as beginnings, as endings and as regular expressions, so that `fc1` would
    # keep every other tower's fc1. A regular expression with an end matches whole names only.
    skip = [f"(?:{'|'.join(map(re.escape, rest))})$"] if rest else []
    if quantization.method == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=quantization.compute_dtype,
        llm_int8_skip_modules=skip,
    )


def quantised_layers(model: nn.Module) -> dict[str, QuantMethod]:
    """Names of the layers that bitsandbytes has quantised, and by which method."""
    if "bitsandbytes" not in sys.modules:  # the model has no such layers then, and the import takes a second
        return {}
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    layers: dict[str, QuantMethod] = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            layers[name] = "nf4"
        elif isinstance(module, Linear8bitLt):
            layers[name] = "int8"
    return layers


def prepare(model: PreTrainedModel) -> None:
    """Make a model that was just loaded fit to be trained, as far as it is quantised. Works in place."""
    layers = quantised_layers(model)
    if "nf4" in layers.values():
        bitsandbytes_fix.install()
    for name, method in layers.items():
        layer: Any = model.get_submodule(name)
        if method == "nf4":
            # On a CPU with AVX512-BF16, a forward without gradients packs the weights for good. Later
            # gradients would be wrong, and rows that aren't whole blocks would raise an error.
            layer.support_avx512bf16_for_cpu = False
            if layer.bias is not None:  # as its first forward would do
                layer.bias.data = layer.bias.data.to(layer.compute_dtype)
        else:
            logging.getLogger("bitsandbytes.autograd._functions").addFilter(_is_no_cast)


def _is_no_cast(record: logging.LogRecord) -> bool:
    """Drops what int8 layers log at each call: that their input is cast."""
    return "will be cast from" not in str(record.msg)
