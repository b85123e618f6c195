"""Load a vision-language model and its processor by name or folder, ready to be adapted and trained."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning_vlm_callbacks.modes import freeze_statistics
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lightning_vlm.compat import padding_of_zeros, picture_beams, picture_numbers
from lightning_vlm.data.boxes.of_model import remember_model_type
from lightning_vlm.data.render.template_options import set_template_options
from lightning_vlm.data.render.templates import TEMPLATES
from lightning_vlm.data.render.templates import chat_template as ready_template
from lightning_vlm.errors import UserError
from lightning_vlm.models.attention import choice
from lightning_vlm.models.family_hooks import FamilyHooks, is_of_transformers, use_hooks, use_picture_token
from lightning_vlm.models.loading.failures import why_not_loaded
from lightning_vlm.models.loading.fingerprint import Fingerprint
from lightning_vlm.models.loading.initial import init_missing_weights
from lightning_vlm.models.loading.loaded import LoadedModel
from lightning_vlm.models.loading.quantize import Quantization, bitsandbytes_config, prepare, refuse_quantised
from lightning_vlm.models.loading.trainable import why_not_trainable
from lightning_vlm.models.parts import find_parts, vision_tower
from lightning_vlm.models.precision import give_pixels_their_dtype
from lightning_vlm.models.recompute import use_gradient_checkpointing
from lightning_vlm.models.shipped import SHIPPED
from lightning_vlm.nearest import did_you_mean, shorten

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


def load_processor(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    family: FamilyHooks | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> ProcessorMixin:
    """Load tokenizer, image processor and chat template.

    Args:
        name_or_path: A folder, the name of a shipped model (`SHIPPED`), or a name on the Hugging Face hub.
        revision: Commit, branch or tag on the hub.
        trust_remote_code: Run Python code that comes with the model. Only for sources that you trust.
        chat_template: Replaces the model's own: the name of a ready template, a Jinja template, or the path
            of a file with one. A model without a template loads; rendering a chat then needs one.
        family: Says what stands for a picture.
        template_options: Values of variables of the template; see `set_template_options`.

    Returns:
        The processor, with `tokenizer` and `image_processor`.

    Raises:
        UserError: Nothing there to load, no image processor or tokenizer with it, no such template file, or
            a model that can't be trained.
    """
    model_type = _checked_type(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    with _explained(name_or_path):
        processor: Any = AutoProcessor.from_pretrained(
            resolve(name_or_path), revision=revision, trust_remote_code=trust_remote_code
        )
    for part in ("image_processor", "tokenizer"):
        if getattr(processor, part, None) is None:
            raise UserError(
                f"model {str(name_or_path)!r}: found a {type(processor).__name__} without {part}; "
                "expected the processor files of an image-text model"
            )
    if family is not None:
        use_picture_token(processor, family)
    if chat_template is not None:
        is_ready = chat_template in TEMPLATES
        text = ready_template(chat_template, processor) if is_ready else _template(chat_template)
        # Both save it under the same file name, so their contents must be equal.
        processor.chat_template = processor.tokenizer.chat_template = text
    elif processor.chat_template is None:  # some classes forget what was saved with them
        processor.chat_template = processor.tokenizer.chat_template
    set_template_options(processor, template_options or {})
    if model_type is not None:
        remember_model_type(processor, model_type)
    return processor


def forgets_template(folder: Path, trust_remote_code: bool) -> bool:
    """Whether only the tokenizer of a saved processor has the chat template when both are loaded again."""
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return processor.chat_template is None and processor.tokenizer.chat_template is not None


def load_model(
    name_or_path: str | Path,
    *,
    dtype: Dtype = "auto",
    attn_implementation: str | None = None,
    gradient_checkpointing: bool = False,
    quantization: Quantization | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    family: FamilyHooks | None = None,
    first: bool = True,
) -> LoadedModel:
    """Load an image-text model in its own class.

    The forward pass keeps no key-value cache (`generate` still does). What the files lack is new and starts
    as `init_missing_weights` says.

    Args:
        name_or_path: As in `load_processor`.
        dtype: Of the weights; `auto` is the one that they were saved in.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`, ...; None or `auto` is what transformers
            chooses, with `flash_varlen` in place of `sdpa` where it is exact (`models.attention`).
            `flash_varlen` is the same, or an error where the language model can't have it.
        gradient_checkpointing: Compute activations again in the backward pass, for less memory; see
            `use_gradient_checkpointing`.
        quantization: What is quantised as it is loaded, if anything. All other weights have `dtype`.
        revision: Commit, branch or tag on the hub.
        trust_remote_code: Run Python code that comes with the model. Only for sources that you trust.
        family: Says where the parts of a class of your own are.
        first: False makes the same modules without weights, on the meta device, for a process that gets its
            share of them from the first one. What is found out about weights then says nothing.

    Raises:
        UserError: Nothing there to load, not an image-text model, an option that it doesn't support, or
            `quantization` names what can't be quantised.
    """
    where: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    path, config = resolve(name_or_path), _config(name_or_path, **where)
    options: dict[str, Any] = {}
    attention = choice.for_transformers(attn_implementation)
    if attention is not None:
        options["attn_implementation"] = attention
    if quantization is not None:
        refuse_quantised(config)
        skeleton = model_without_weights(name_or_path, family=family, **where)
        options["quantization_config"] = bitsandbytes_config(skeleton, quantization)
    if not first:
        options["device_map"] = "meta"
    with _explained(name_or_path):
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, output_loading_info=True, **options, **where
        )
        model, found = loaded
        if gradient_checkpointing:
            use_gradient_checkpointing(model)
    _use_family(model, family)
    make_ready(model, attn_implementation)
    parts = find_parts(model)
    missing = init_missing_weights(model, found["missing_keys"], parts)
    held = Fingerprint(model, missing) if first else Fingerprint.unknown()
    return LoadedModel(model, parts, missing, held)


def make_ready(model: PreTrainedModel, attn_implementation: str | None) -> None:
    """What else a model needs to be trained here; its weights may be missing."""
    picture_beams.install(model)
    picture_numbers.install(model)
    padding_of_zeros.install(model)
    choice.settle(model, attn_implementation)
    prepare(model)
    give_pixels_their_dtype(model)
    freeze_statistics(model)
    for config in (model.config, model.config.get_text_config()):
        config.use_cache = False
    model.generation_config.use_cache = True
    for part in model.modules():
        if isinstance(part, GenerationMixin) and part is not model:  # BLIP-2's language model generates
            part.generation_config = model.generation_config


def model_without_weights(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    family: FamilyHooks | None = None,
    **options: Any,
) -> PreTrainedModel:
    """The modules of a model on the meta device, where they take neither memory nor time.

    Arguments and errors as in `load_model`; `options` go to transformers.
    """
    config = _config(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    with _explained(name_or_path), torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            config, trust_remote_code=trust_remote_code, **options
        )
    _use_family(model, family)
    return model


def _use_family(model: PreTrainedModel, family: FamilyHooks | None) -> None:
    """Let a model's hooks say what can't be found, and refuse a class of somebody's own without parts.

    Raises:
        UserError: Generic code finds no vision encoder or no head in it.
    """
    if family is not None:
        use_hooks(model, family)
    if is_of_transformers(model):
        return
    lacks = []
    if vision_tower(model) is None:
        lacks.append("vision encoder")
    if model.get_output_embeddings() is None:
        lacks.append("head")
    if lacks:
        raise UserError(
            f"{type(model).__name__}: found no {' and no '.join(lacks)} where transformers keeps them; say "
            "where they are with model.family (docs/own-model.md)"
        )


def _config(name_or_path: str | Path, **where: Any) -> PretrainedConfig:
    """The configuration of a model that reads images."""
    with _explained(name_or_path):
        config = AutoConfig.from_pretrained(resolve(name_or_path), **where)
    remote = "AutoModelForImageTextToText" in (getattr(config, "auto_map", None) or {})
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not remote:
        raise UserError(
            f"model {str(name_or_path)!r}: found model type {config.model_type!r}, which reads no images; "
            "expected an image-text model such as llava, smolvlm or qwen2_5_vl"
        )
    _refuse(name_or_path, config)
    return config


def _checked_type(name_or_path: str | Path, **where: Any) -> str | None:
    """The type of a model, unless it can't be trained; None where a processor lies alone."""
    try:
        config = AutoConfig.from_pretrained(resolve(name_or_path), **where)
    except Exception:  # what else is wrong is said when it is loaded
        return None
    _refuse(name_or_path, config)
    return str(config.model_type)


def _refuse(name_or_path: str | Path, config: PretrainedConfig) -> None:
    reason = why_not_trainable(config)
    if reason is not None:
        raise UserError(f"model {str(name_or_path)!r}: {reason}")


def resolve(name_or_path: str | Path) -> str:
    """What transformers finds a model by: of a shipped one its folder, else as given."""
    return str(SHIPPED.get(str(name_or_path), name_or_path))


def _template(text_or_path: str) -> str:
    if "{" in text_or_path:
        return text_or_path
    expected = "expected a ready template, a Jinja template or the path of a file with one"
    try:
        text = Path(text_or_path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: bytes that are no UTF-8, a null byte
        near = did_you_mean(text_or_path, TEMPLATES, quoted=True)
        hint = near or f" ({', '.join(TEMPLATES)} are ready)"
        why = " (a file that is no text)" if isinstance(error, UnicodeDecodeError) else ""
        raise UserError(f"chat_template: found {shorten(text_or_path)}{why}; {expected}{hint}") from None
    if not text.strip():
        raise UserError(f"chat_template: found {shorten(text_or_path)}, which is an empty file; {expected}")
    return text


@contextmanager
def _explained(name_or_path: str | Path) -> Iterator[None]:
    """Turn an error that transformers raises while loading into one sentence."""
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"model {str(name_or_path)!r}: {why_not_loaded(resolve(name_or_path), error)}"
        ) from error
