"""Which codec the model of a processor has."""

from collections import defaultdict
from functools import cache
from typing import Any

from transformers import ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from lightning_vlm.data.boxes.choice import Choice, choose_codec
from lightning_vlm.data.boxes.codecs import NO_FORMAT
from lightning_vlm.errors import UserError
from lightning_vlm.published import families

KEY = "box_codec"
"""What a saved tokenizer calls the codec that its model was trained with."""
_MODEL_TYPE = "_model_type"


def remember_model_type(processor: ProcessorMixin, model_type: str) -> None:
    """Note whose processor it is: some families share one."""
    vars(processor)[_MODEL_TYPE] = model_type


def codec_for(processor: ProcessorMixin, name: str | None = None) -> Choice:
    """The codec that is asked for; or that the model was trained with here; or that of its family.

    Args:
        processor: Of the model.
        name: `data.boxes`.

    Raises:
        UserError: There is no such codec, or the tokenizer lacks the tokens of the one that is asked for.
    """
    tokenizer: Any = processor.tokenizer
    model_type = model_type_of(processor)
    if name is not None:
        return choose_codec(name, model_type, tokenizer)
    trained = tokenizer.init_kwargs.get(KEY)
    if trained is not None:
        choice = choose_codec(str(trained), model_type, tokenizer)
        return choice._replace(why=f"{choice.why}, as the model was trained")
    try:
        return choose_codec(None, model_type, tokenizer)
    except UserError:  # a tokenizer without the tokens of its family has another format
        return choose_codec(NO_FORMAT, model_type, tokenizer)


def model_type_of(processor: ProcessorMixin) -> str:
    """The `config.model_type` of a processor's model, or of a family with such a processor.

    Returns:
        The name of the processor's class where nothing is known.
    """
    known = vars(processor).get(_MODEL_TYPE)
    if known is not None:
        return str(known)
    name = type(processor).__name__
    return _by_class().get(name, [name.removesuffix("Processor").lower()])[0]


@cache
def _by_class() -> dict[str, list[str]]:
    """The families that each class of processors is of; those with a format of boxes come first."""
    found: dict[str, list[str]] = defaultdict(list)
    for family in families().values():
        classes = PROCESSOR_MAPPING_NAMES.get(family.name, f"{family.name.title().replace('-', '')}Processor")
        found[classes[0] if isinstance(classes, tuple) else str(classes)].append(family.name)
    return {name: sorted(types, key=lambda one: not families()[one].codec) for name, types in found.items()}
