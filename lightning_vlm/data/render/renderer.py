"""From a conversation to token ids, each with its kind, through the processor's own chat template.

The template is rendered with a marker in place of every text and around every picture. The processor then
expands the pictures and calls its tokenizer; just there the markers are replaced by the texts, so it is known
of each character whether the template, a picture or a person wrote it. Tokens get their kind from their
characters.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers import ProcessorMixin

from lightning_vlm.data.conversation import Conversation, Image, Message
from lightning_vlm.data.images import load_image
from lightning_vlm.data.render.chat import ChatTemplate, any_of, check_unicode
from lightning_vlm.data.render.fitting import WITHOUT_LIMIT, longest_fit, turns_within
from lightning_vlm.data.render.recording_tokenizer import MARKERS, RecordingTokenizer, SpecialTokens
from lightning_vlm.data.render.turns import (
    TRAILING,
    TextSpan,
    Turn,
    arrange,
    plain_text,
    round_ends,
    text_spans,
)
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.kinds import Kind


@dataclass(slots=True)
class Example:
    """One rendered sample.

    Args:
        input_ids: Tensor of shape [length], int64.
        kinds: Tensor of shape [length], int8, a `Kind` for each token.
        inputs: What else the model's forward takes, as the processor gives it for one sample.
        conversation: What was rendered, without what comes after the last answer and the rounds that did not
            fit.
        turn_weights: Tensor of shape [length], float32: the weight of the turn of each token of an answer, 1
            for all others; None where each turn weighs 1.
        truncated: How many messages did not fit.
        changes: What else was done to its turns, each in a sentence of `turns`.
        answer_ends: Up to which token each answer goes, without what ends its turn.
    """

    input_ids: Tensor
    kinds: Tensor
    inputs: dict[str, Tensor]
    conversation: Conversation
    turn_weights: Tensor | None = None
    truncated: int = 0
    changes: tuple[str, ...] = ()
    answer_ends: tuple[int, ...] = ()


class TooLong(DataError):  # noqa: N818
    """A sample that does not fit, not even its first round."""

    @property
    def length(self) -> int:
        """How many tokens it has; of a text so long that they were not all counted, how many were."""
        number = re.search(r"[0-9][0-9,]*", self.found)
        return int(number[0].replace(",", "")) if number else 0


class Renderer:
    """Renders conversations for one processor.

    Every token gets a kind. Of an assistant turn, its words and its end-of-turn token are the response; so is
    white space that the template puts between the generation prompt and the words, since the model must write
    it when it answers. Nothing else is response. For ordinary text the ids are those of the processor's own
    `apply_chat_template`. Text that spells a special token or a picture's placeholder stays text; where the
    tokenizer would join an answer with what the template writes around it, the answer is tokenized
    alone, as generation would write it. The same holds where two turns of different weights share a token. A
    template that writes no end-of-turn token gets a warning.

    Turns in other orders than question and answer are written as the template takes them; see `arrange`.

    Args:
        processor: A processor of transformers that has a chat template.
        max_length: The most tokens of a sample, image tokens included. What is too long loses its last
            rounds, whole ones, until it fits. None cuts nothing, and refuses more than `most_tokens`.

    Raises:
        UserError: The processor has no chat template, or its tokenizer can't say which characters a token is.
    """

    def __init__(self, processor: ProcessorMixin, max_length: int | None = None) -> None:
        if not getattr(processor.tokenizer, "is_fast", False):
            raise UserError(
                f"{type(processor.tokenizer).__name__} is a slow tokenizer; exact masks need a fast one"
            )
        self.processor, self.tokenizer, self.max_length = processor, processor.tokenizer, max_length
        placeholders = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio"))
        self._placeholders = {str(token) for token in placeholders if token}
        added = self.tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in self.tokenizer.all_special_tokens}
        special |= {token.content for token in added if token.special} | self._placeholders
        never = sorted(special - {str(self.tokenizer.unk_token)})
        ids = (self.tokenizer.convert_tokens_to_ids(token) for token in never)
        known = {one for one in ids if one not in (None, self.tokenizer.unk_token_id)}
        self._special = SpecialTokens(any_of(special), np.array(sorted(known), np.int64))
        # In PaliGemma, tokens before the first answer (type 0) attend to each other in both directions. Its
        # processor doesn't know where the answers are, and would let their tokens see the ones to predict.
        self._sees_prefix_both_ways = "labels" in processor.model_input_names
        begin = {str(self.tokenizer.bos_token)} - {str(self.tokenizer.eos_token)}
        self.template = ChatTemplate(processor, special - self._placeholders - begin, self._placeholders)

    @property
    def most_tokens(self) -> int:
        """The most tokens of a sample: `max_length`, or a bound that only mistakes reach where it is None."""
        if self.max_length is not None:
            return self.max_length
        of_tokenizer = self.tokenizer.model_max_length
        return max(WITHOUT_LIMIT, of_tokenizer if of_tokenizer < 10**7 else 0)

    def example(self, conversation: Conversation) -> Example:
        """Render a conversation to learn from. What comes after its last answer is dropped.

        Raises:
            DataError: No assistant turn, a broken picture, what the template or the processor refuses, or a
                text that the template changes so that it can't be masked exactly.
            TooLong: Not even its first round fits into `max_length`.
        """
        source, messages = conversation.source, conversation.messages
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        if not answers:
            expected = "at least one answer to learn from (data.columns says which column it is in)"
            raise DataError(source, "messages", "no assistant turn", expected)
        learned = messages[: answers[-1] + 1]
        turns, changes = arrange(learned, self.template.writes)
        changes += (TRAILING,) if len(learned) < len(messages) else ()
        ends = round_ends(turns)
        within, least = turns_within(turns, self.most_tokens, self.tokenizer)
        rounds = sum(end <= within for end in ends)
        if least is not None and (not rounds or self.max_length is None):
            raise self._too_long(source, f"more than {least:,} tokens")
        pictures: dict[tuple[int, int], PIL.Image.Image] = {}
        rendered: dict[int, Example] = {}

        def render(count: int) -> tuple[int, list[int]]:
            if count not in rendered:
                rendered[count] = self._render(conversation, turns[: ends[count - 1]], False, pictures)
            example = rendered[count]
            answers = [place + 1 for place, turn in enumerate(turns) if turn.role == "assistant"]
            tokens = dict(zip(answers, example.answer_ends, strict=False))
            return len(example.input_ids), [tokens[end] for end in ends[:count]]

        fit = rounds if self.max_length is None else longest_fit(rounds, self.max_length, render)
        length, _ = render(max(fit, 1))
        example = rendered[max(fit, 1)]
        if not fit:
            of_pictures = int((example.kinds == Kind.IMAGE).sum())
            raise self._too_long(source, f"{length} tokens, {of_pictures} of them of pictures")
        kept = sum(len(turn.messages) for turn in turns[: ends[fit - 1]])
        conversation = replace(conversation, messages=messages[:kept])
        truncated = len(learned) - kept
        return replace(example, conversation=conversation, truncated=truncated, changes=changes)

    def prompt(self, conversation: Conversation) -> tuple[Example, str | None]:
        """Render what the model is to answer: everything before the last assistant turn, and the template's
        generation prompt.

        Returns:
            The prompt, and the words of the last assistant turn (None where there is none).

        Raises:
            As `example`. A prompt is never cut: TooLong if it exceeds `max_length`.
        """
        source, reference = conversation.source, None
        turns, changes = arrange(conversation.messages, self.template.writes)
        if turns[-1].role == "assistant":
            reference = plain_text(turns.pop())
        kept = sum(len(turn.messages) for turn in turns)
        if all(turn.role == "system" for turn in turns):
            turns.append(Turn("user", (), kept))  # a chat that begins with a greeting gets an empty question
        _, least = turns_within(turns, self.most_tokens, self.tokenizer)
        if least is not None:
            raise self._too_long(source, f"a prompt of more than {least:,} tokens")
        example = self._render(conversation, turns, True, {})
        if self.max_length is not None and len(example.input_ids) > self.max_length:
            raise self._too_long(source, f"a prompt of {len(example.input_ids)} tokens")
        asked = conversation.messages[:kept] or (Message("user", ()),)
        conversation = replace(conversation, messages=asked)
        return replace(example, conversation=conversation, changes=changes), reference

    def _too_long(self, source: str, found: str) -> TooLong:
        if self.max_length is None:
            expected = f"at most {self.most_tokens:,} without data.max_length; set it, so that it is cut"
        elif found.startswith("a prompt"):
            expected = f"at most {self.max_length} (max_length)"
        else:
            expected = f"at most {self.max_length} (max_length); smaller pictures or a shorter text"
        return TooLong(source, "", found, expected)

    def _render(
        self,
        conversation: Conversation,
        turns: list[Turn],
        generate: bool,
        opened: dict[tuple[int, int], PIL.Image.Image],
    ) -> Example:
        """Render some turns of a conversation; `opened` keeps the pictures for the next time."""
        source = conversation.source
        pictures: list[PIL.Image.Image] = []
        written: list[dict[str, Any]] = []
        spans: list[TextSpan] = []
        for turn in turns:
            pictures += self._open_pictures(turn, source, opened)
            content: list[dict[str, str]] = []
            for span in text_spans(turn):
                if span is None:
                    content.append({"type": "image"})
                else:
                    check_unicode(span.text, source, span.key)
                    content.append({"type": "text", "text": f"\ue000{len(spans)}\ue001"})
                    spans.append(span)
            written.append({"role": turn.role, "content": content})
        marked = self.template.render(written, generate, source)
        spans = self.template.as_written(marked, written, spans, generate, source)
        options: dict[str, Any] = {"return_tensors": "pt"}
        bos = self.tokenizer.bos_token
        if bos is not None and marked.startswith(bos):  # as apply_chat_template does
            options["add_special_tokens"] = False
        marked, places = any_of(self._placeholders).subn("\ue002\\g<0>\ue003", marked)
        if places != len(pictures):
            found = f"{len(pictures)} picture(s) and {places} place(s) for them in the rendered template"
            raise DataError(source, "messages", found, "as many places as pictures")
        recorder = RecordingTokenizer(
            self.tokenizer, self._special, self.template, spans, source, MARKERS.split(marked)[-1]
        )
        self.processor.tokenizer = recorder
        try:
            # Each other nesting than [[picture, ...]] is refused by some family.
            inputs = dict(self.processor(text=[marked], images=[pictures] if pictures else None, **options))
        except UserError:
            raise
        except ValueError as error:
            found = f"a sample that {type(self.processor).__name__} refuses ({error})"
            expected = "pictures of a usual size and shape" if pictures else "a picture in it"
            raise DataError(source, "messages", found, expected) from error
        finally:
            self.processor.tokenizer = self.tokenizer
        ids = inputs.pop("input_ids")[0]
        kinds = torch.from_numpy(recorder.kinds)
        if len(kinds) != len(ids):
            raise UserError(
                f"{type(self.processor).__name__} changes the ids after tokenizing; not supported"
            )
        inputs.pop("labels", None)
        if self._sees_prefix_both_ways:
            inputs["token_type_ids"] = (kinds >= Kind.RESPONSE).cumsum(0).clamp(max=1)[None]
        weights = None if recorder.weights is None else torch.from_numpy(recorder.weights)
        return Example(ids, kinds, inputs, conversation, weights, answer_ends=tuple(recorder.answer_ends))

    def _open_pictures(
        self, turn: Turn, source: str, opened: dict[tuple[int, int], PIL.Image.Image]
    ) -> list[PIL.Image.Image]:
        pictures = []
        for index, message in enumerate(turn.messages, turn.first):
            for place, part in enumerate(message.parts):
                if not isinstance(part, Image):
                    continue
                if (index, place) not in opened:
                    opened[index, place] = load_image(part, source, f"messages[{index}].content[{place}]")
                pictures.append(opened[index, place])
        return pictures
