"""What a model answers to the prompts of a batch."""

from collections.abc import Mapping
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel, ProcessorMixin

from lightning_vlm.data.batch.collate import Batch, exact_again
from lightning_vlm.data.batch.image_groups import split_by_image_count
from lightning_vlm.data.render.chat import ChatTemplate
from lightning_vlm.data.render.reasoning import ReasoningMarks
from lightning_vlm.data.render.special_tokens import any_of
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.ranking import Candidate, generate_candidates
from lightning_vlm.models.one_token import told_apart
from lightning_vlm.models.video_features import without_filled_frames
from lightning_vlm.nearest import did_you_mean


def check_generation(generation: Mapping[str, Any] | None) -> None:
    """Refuse arguments unknown to `generate`, which would itself raise only at the first validation.

    Raises:
        UserError: An unknown key; the message has the nearest one.

    >>> check_generation({"num_beam": 8})
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: model.generation: there is no key num_beam; did you mean num_beams?
    """
    known = {*vars(GenerationConfig()), *signature(GenerationMixin.generate).parameters}
    for key in generation or {}:
        if key not in known:
            names = [name for name in known if not name.startswith("_")]
            raise UserError(f"model.generation: there is no key {key}{did_you_mean(key, sorted(names))}")


def generate_answers(
    model: PreTrainedModel, processor: ProcessorMixin, batch: Batch, generation: Mapping[str, Any] | None
) -> list[Prediction]:
    """Generate answers to the prompts of a batch. Of several answers to a prompt (`num_return_sequences`) the
    best by `length_score` is taken, and all are kept beside it.

    Args:
        model: Generates.
        processor: Has the tokenizer.
        batch: With prompts; without, there is no answer.
        generation: Arguments of `generate`, greedy unless they say otherwise; None is at most 64 new tokens.
    """
    if not batch.prompts:
        return []
    options = {"do_sample": False, "use_cache": True, **(generation or {"max_new_tokens": 64})}
    several = options.get("num_return_sequences", 1) > 1
    marks = _reasoning_marks(processor)
    texts = [""] * len(batch.references)
    ranked: list[tuple[Candidate, ...]] = [()] * len(texts)
    for rows, inputs in split_by_image_count(exact_again(batch.prompts)):
        with without_filled_frames(model, inputs), told_apart(model, inputs):
            if several:
                found = generate_candidates(model, processor.tokenizer, inputs, options)
                for row, candidates in zip(rows.tolist(), found, strict=True):
                    texts[row] = candidates[0].text
                    ranked[row] = tuple(candidates)
            else:
                answers = _generate(model, processor, inputs, options, marks)
                for row, text in zip(rows.tolist(), answers, strict=True):
                    texts[row] = text
    divided = [(None, text) if marks is None else marks.divide(text) for text in texts]
    return [
        Prediction(
            source=batch.sources[row],
            task=batch.tasks[row],
            text=text.strip(),
            reference=batch.references[row],
            candidates=ranked[row],
            prompt=batch.questions[row].text,
            images=tuple(batch.questions[row].images),
            videos=tuple(batch.questions[row].videos),
            reasoning=reasoning,
        )
        for row, (reasoning, text) in enumerate(divided)
    ]


def _generate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    inputs: Mapping[str, Tensor],
    options: Mapping[str, Any],
    marks: ReasoningMarks | None,
) -> list[str]:
    """One answer to each prompt, without special tokens but for those that mark reasoning."""
    tokenizer = processor.tokenizer
    ids = model.generate(**inputs, **options)  # type: ignore[operator]
    new = ids[:, inputs["input_ids"].shape[1] :]
    special = set(tokenizer.all_special_tokens)
    if marks is None or marks.end not in special:
        return tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    others = any_of(special - {marks.begin, marks.end})
    texts = tokenizer.batch_decode(new, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return [others.sub("", text) for text in texts]


_marks: WeakKeyDictionary[ProcessorMixin, tuple[Any, ReasoningMarks | None]] = WeakKeyDictionary()


def _reasoning_marks(processor: ProcessorMixin) -> ReasoningMarks | None:
    """What the chat template of a processor writes around reasoning; found once for each template."""
    template = getattr(processor, "chat_template", None)
    if not template:
        return None
    known = _marks.get(processor)
    if known is None or known[0] != template:
        known = _marks[processor] = template, ChatTemplate(processor).reasoning
    return known[1]
