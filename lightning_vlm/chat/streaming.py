"""An answer that is read while it is written."""

import queue
import threading
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from lightning_vlm.chat.opened import OpenedModel
from lightning_vlm.data.batch.collate import Item, collate
from lightning_vlm.data.conversation import Conversation
from lightning_vlm.data.render.example import Example
from lightning_vlm.metrics.answers import divided, generate_answers, kept_tokens, reasoning_marks
from lightning_vlm.metrics.decoding import decode
from lightning_vlm.metrics.prediction import Prediction

_WAIT = 0.2
"""Seconds after which a waiting process looks at its signals."""
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class Answer(NamedTuple):
    """What a model has written so far.

    Args:
        text: The answer.
        reasoning: What it thinks before that, where its chat template marks it.
        prediction: The whole answer, with its boxes; None until it is there.
        was_stopped: Whether it was stopped before its end.
        changes: What was done to the conversation to fit, a sentence each.
    """

    text: str = ""
    reasoning: str | None = None
    prediction: Prediction | None = None
    was_stopped: bool = False
    changes: tuple[str, ...] = ()


class _Stop(StoppingCriteria):
    """Ends generation at the next token once an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)


class _Texts(BaseStreamer):
    """Puts the text so far into a queue as each token comes.

    Args:
        tokenizer: Of the model.
        kept: Special tokens that stay.
        found: Where texts go.
    """

    def __init__(self, tokenizer: Any, kept: Collection[str], found: "queue.Queue[Any]") -> None:
        self._tokenizer = tokenizer
        self._kept = kept
        self._found = found
        self._ids: list[int] | None = None

    def put(self, value: Tensor) -> None:
        """Called with the prompt first, then with each token."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        (text,) = decode(self._tokenizer, torch.tensor([self._ids]), [self._kept])
        if not text.endswith(_UNFINISHED):  # a character of several tokens
            self._found.put(text)

    def end(self) -> None:
        """Called at the end; `answers` says so itself."""


def answers(
    opened: OpenedModel,
    conversation: Conversation,
    generation: dict[str, Any],
    as_base: bool = False,
    stop: threading.Event | None = None,
) -> Iterator[Answer]:
    """The answer to the last turn of a conversation: what there is so far, again and again, and the whole.

    It is generated in a thread. When this iterator is closed, or `stop` is set, the model stops at the next
    token.

    Args:
        opened: Answers.
        conversation: Ends with a question.
        generation: Arguments of `generate`.
        as_base: Whether the base model is to answer; see `OpenedModel.as_base`.
        stop: Set from outside to end the answer early.

    Raises:
        DataError: The prompt can't be rendered.
    """
    _fit(opened, generation)
    prompt, _ = opened.renderer.prompt(conversation)
    marks = reasoning_marks(opened.processor)
    found: queue.Queue[Any] = queue.Queue()
    stop = stop or threading.Event()
    streamer = _Texts(opened.processor.tokenizer, kept_tokens(marks, prompt.reader), found)
    more = {"streamer": streamer, "stopping_criteria": StoppingCriteriaList([_Stop(stop)])}

    def work() -> None:
        try:
            found.put(_generate(opened, prompt, {**generation, **more}, as_base))
        except BaseException as error:  # it is raised where the answer is read
            found.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    shown = Answer(changes=prompt.changes)
    try:
        while True:
            try:
                got = found.get(timeout=_WAIT)
            except queue.Empty:
                continue  # so that signals are handled meanwhile
            if isinstance(got, BaseException):
                raise got
            if isinstance(got, Prediction):
                yield shown._replace(
                    text=got.text, reasoning=got.reasoning, prediction=got, was_stopped=stop.is_set()
                )
                return
            reasoning, text = divided(marks, got)
            shown = shown._replace(text=text, reasoning=reasoning)
            yield shown
    finally:
        stop.set()
        thread.join()


def _fit(opened: OpenedModel, generation: dict[str, Any]) -> None:
    """Let early rounds of a conversation go where the model has no positions for all of it."""
    length = opened.context_length
    if length is not None:
        opened.renderer.max_length = length
        opened.renderer.answer_tokens = min(generation.get("max_new_tokens", 0), length // 2)


@torch.inference_mode()
def _generate(opened: OpenedModel, prompt: Example, generation: dict[str, Any], as_base: bool) -> Prediction:
    tokenizer = opened.processor.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    batch = collate([Item(None, prompt, None)], pad, [], [])
    batch = opened.trainer.precision_plugin.convert_input(batch)
    prompts = {name: value.to(opened.device) for name, value in batch.prompts.items()}
    batch = batch._replace(prompts=prompts)
    with opened.lock, opened.computing():
        if not as_base:
            (made,) = generate_answers(opened.model, opened.processor, batch, generation, opened.mask_head)
            return made
        with opened.as_base():
            (made,) = generate_answers(opened.model, opened.processor, batch, generation)
            return made
