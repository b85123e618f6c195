"""What a model answers to the prompts of a batch."""

import re
from collections.abc import Mapping
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel, ProcessorMixin

from lightning_vlm.counted import counted
from lightning_vlm.data.batch.collate import Batch, exact_again
from lightning_vlm.data.batch.image_groups import split_by_image_count
from lightning_vlm.data.boxes.codec import Found
from lightning_vlm.data.boxes.reader import BoxReader
from lightning_vlm.data.render.chat import ChatTemplate
from lightning_vlm.data.render.reasoning import ReasoningMarks
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.answer_masks import found_by_masks
from lightning_vlm.metrics.decoding import decode
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.metrics.ranking import Candidate, generate_candidates
from lightning_vlm.models.mask_head import MaskHead
from lightning_vlm.models.one_token import told_apart
from lightning_vlm.models.sharding import is_sharded
from lightning_vlm.models.video_features import without_filled_frames
from lightning_vlm.nearest import did_you_mean, one_line


def check_generation(generation: dict[str, Any] | None) -> dict[str, Any] | None:
    """Refuse arguments unknown to `generate`, which would itself raise only at the first validation.

    Returns:
        The arguments.

    Raises:
        UserError: An unknown key; the message has the nearest one.

    >>> check_generation({"num_beam": 8})
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: model.generation: there is no key num_beam; did you mean num_beams?
    """
    if generation is not None and not isinstance(generation, Mapping):
        raise UserError(
            f"model.generation: found {generation}; expected keys, such as {{max_new_tokens: 64}}"
        )
    known = {*vars(GenerationConfig()), *signature(GenerationMixin.generate).parameters}
    for key in generation or {}:
        if key not in known:
            names = [name for name in known if not name.startswith("_")]
            raise UserError(f"model.generation: there is no key {key}{did_you_mean(key, sorted(names))}")
    _check_values(generation or {})
    return generation


def _check_values(generation: Mapping[str, Any]) -> None:
    """Refuse values that can't be right.

    Raises:
        UserError: Names the key, or says it in the words of transformers, as the first validation would.
    """
    for key, (kind, least) in _NUMBERS.items():
        value = generation.get(key)
        is_number = isinstance(value, kind) and not isinstance(value, bool)
        if value is not None and not (is_number and value >= least):
            number = "a whole number" if kind is int else "a number"
            raise UserError(f"model.generation.{key}: found {value}; expected {number}, at least {least}")
    if generation.get("do_sample") and generation.get("temperature") == 0:
        raise UserError(
            "model.generation.temperature: found 0 with do_sample; expected more, or do_sample: false"
        )
    count, beams = generation.get("num_return_sequences") or 1, generation.get("num_beams") or 1
    if count > beams and not generation.get("do_sample"):
        raise UserError(
            f"model.generation.num_return_sequences: found {count} with {counted(beams, 'beam')} and "
            "do_sample false, which gives fewer different answers; set do_sample to true or num_beams as high"
        )
    without_effect(generation)  # refuses what transformers refuses


_NUMBERS = {
    "max_new_tokens": (int, 1),
    "min_new_tokens": (int, 0),
    "num_beams": (int, 1),
    "num_return_sequences": (int, 1),
    "temperature": (int | float, 0),
    "top_k": (int, 0),
    "top_p": (int | float, 0),
    "repetition_penalty": (int | float, 0),
}
"""Arguments of `generate` that are numbers: their type, and the least that each may be."""


def without_effect(generation: Mapping[str, Any]) -> list[str]:
    """Arguments that transformers ignores, because answers are neither drawn nor found with beams.

    Of several answers, `length_penalty` ranks them without beams, too; a temperature of 0 is what happens.

    Raises:
        UserError: Arguments that it refuses, in its words.

    >>> without_effect({"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 8})
    ['temperature']
    """
    config = GenerationConfig()
    for key, value in {"do_sample": False, **generation}.items():
        if hasattr(config, key):  # the others are of generate alone, such as a streamer
            setattr(config, key, value)
    try:
        config.validate(strict=True)
    except (ValueError, TypeError) as error:
        text = str(error)
        if not text.startswith("GenerationConfig is invalid"):
            raise UserError(f"model.generation: {one_line(text, 300)}") from error
        ignored = re.findall(r"^- `(\w+)`", text, re.MULTILINE)
        ranked = {"length_penalty"} if (generation.get("num_return_sequences") or 1) > 1 else set()
        return [key for key in ignored if generation.get(key) and key not in ranked]
    return []


def generate_answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    batch: Batch,
    generation: Mapping[str, Any] | None,
    mask_head: MaskHead | None = None,
) -> list[Prediction]:
    """Generate answers to the prompts of a batch. Of several answers to a prompt (`num_return_sequences`) the
    best by `length_score` is taken, and all are kept beside it.

    Args:
        model: Generates.
        processor: Has the tokenizer.
        batch: With prompts; without, there is no answer.
        generation: Arguments of `generate`, greedy unless they say otherwise; None is at most 64 new tokens.
        mask_head: Makes masks of answers, if there are to be any; of several answers to a prompt of none.
    """
    options = {"do_sample": False, "use_cache": True, **(generation or {"max_new_tokens": 64})}
    if not batch.prompts:
        if is_sharded(model):
            _generate_along(model, options)
        return []
    several = options.get("num_return_sequences", 1) > 1
    tokenizer = processor.tokenizer
    marks = reasoning_marks(processor)
    readers = batch.readers or [None] * len(batch.references)
    texts = [""] * len(batch.references)
    ranked: list[tuple[Candidate, ...]] = [()] * len(texts)
    masked: dict[int, Found | None] = {}
    for rows, inputs in split_by_image_count(exact_again(batch.prompts)):
        kept = [kept_tokens(None if several else marks, readers[row]) for row in rows.tolist()]
        with without_filled_frames(model, inputs), told_apart(model, inputs):
            if several:
                found = generate_candidates(model, tokenizer, inputs, options, kept)
                for row, candidates in zip(rows.tolist(), found, strict=True):
                    texts[row] = candidates[0].text
                    ranked[row] = tuple(candidates)
            else:
                ids = model.generate(**inputs, **options)  # type: ignore[operator]
                found_texts = decode(tokenizer, ids[:, inputs["input_ids"].shape[1] :], kept)
                for row, text in zip(rows.tolist(), found_texts, strict=True):
                    texts[row] = text
                if mask_head is not None:
                    words = [divided(marks, text)[1] for text in found_texts]
                    of_rows = [readers[row] for row in rows.tolist()]
                    regions = found_by_masks(model, processor, mask_head, inputs, ids, words, of_rows)
                    masked |= zip(rows.tolist(), regions, strict=True)
    answers = []
    for row, text in enumerate(texts):
        reasoning, answer = divided(marks, text)
        made = _prediction(batch, row, answer, reasoning, ranked[row])
        answers.append(made._replace(found=masked[row]) if row in masked else made)
    return answers


def _generate_along(model: PreTrainedModel, options: Mapping[str, Any]) -> None:
    """Generate for nobody, while the other processes of a sharded model do so and gather its weights."""
    ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)  # type: ignore[operator]


def divided(marks: ReasoningMarks | None, text: str) -> tuple[str | None, str]:
    """The reasoning before an answer, and the answer."""
    reasoning, words = (None, text) if marks is None else marks.divide(text)
    return reasoning, words.strip()


def _prediction(
    batch: Batch, row: int, text: str, reasoning: str | None, candidates: tuple[Candidate, ...]
) -> Prediction:
    reader = batch.readers[row] if batch.readers else None
    return Prediction(
        source=batch.sources[row],
        task=batch.tasks[row],
        text=text,
        reference=batch.references[row],
        candidates=candidates,
        prompt=batch.questions[row].text,
        images=tuple(batch.questions[row].images),
        videos=tuple(batch.questions[row].videos),
        reasoning=reasoning,
        references=batch.questions[row].references,
        level=batch.questions[row].level,
        found=None if reader is None else reader.read(text),
        right=() if reader is None else reader.right or (),
        views=() if reader is None else reader.views,
        id=batch.questions[row].id,
    )


def kept_tokens(marks: ReasoningMarks | None, reader: BoxReader | None) -> frozenset[str]:
    """The tokens that an answer keeps although they are special."""
    of_reasoning = () if marks is None else (marks.begin, marks.end)
    of_boxes = () if reader is None else reader.codec.tokens
    return frozenset((*of_reasoning, *of_boxes))


_marks: WeakKeyDictionary[ProcessorMixin, tuple[Any, ReasoningMarks | None]] = WeakKeyDictionary()


def reasoning_marks(processor: ProcessorMixin) -> ReasoningMarks | None:
    """What the chat template of a processor writes around reasoning; found once for each template."""
    template = getattr(processor, "chat_template", None)
    if not template:
        return None
    known = _marks.get(processor)
    if known is None or known[0] != template:
        known = _marks[processor] = template, ChatTemplate(processor).reasoning
    return known[1]
