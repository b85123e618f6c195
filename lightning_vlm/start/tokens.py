"""How long samples and answers are in tokens of a model, measured with its processor, without pixels."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from transformers import AutoConfig

from lightning_vlm.data.batch.lengths import Ruler
from lightning_vlm.data.conversation import Conversations
from lightning_vlm.data.render.example import Example
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind
from lightning_vlm.models.loading.load import load_processor, resolve

_ANSWER = (Kind.RESPONSE, Kind.BOX, Kind.ENTITY)


@dataclass
class Tokens:
    """What was measured.

    Args:
        lengths: The tokens of each sample, its pictures included.
        answers: The tokens of the longest answer of each.
        context: The most tokens that the model takes; None if it doesn't say.
        errors: Why samples can't be rendered.
    """

    lengths: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    context: int | None = None
    errors: list[DataError] = field(default_factory=list)


def measure(model: str, source: Conversations, samples: Sequence[int]) -> Tokens:
    """Measure some samples.

    Args:
        model: As `model.name_or_path`.
        source: All samples.
        samples: Which of them.

    Raises:
        UserError: The model can't be reached, or its processor can't be used.
        DataError: Not a single sample can be rendered for it.
    """
    ruler = Ruler(Renderer(load_processor(model)))
    measured = Tokens(context=_context(model))
    for index in samples:
        try:
            example = ruler.example(source[index])
        except DataError as error:
            measured.errors.append(error)
            continue
        measured.lengths.append(len(example.input_ids))
        measured.answers.append(max(_answers(example), default=0))
    if not measured.lengths:
        raise measured.errors[0]
    return measured


def _context(model: str) -> int | None:
    with contextlib.suppress(Exception):  # some configs come with code, and say nothing without it
        config = AutoConfig.from_pretrained(resolve(model)).get_text_config()
        return getattr(config, "max_position_embeddings", None)
    return None


def _answers(example: Example) -> Iterator[int]:
    """The tokens of each answer."""
    run = 0
    for kind in example.kinds.tolist():
        if kind in _ANSWER:
            run += 1
        elif run:
            yield run
            run = 0
    if run:
        yield run
