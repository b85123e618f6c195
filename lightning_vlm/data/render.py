"""From a conversation to token ids, each with its kind, through the processor's own chat template.

The template is rendered with a marker in place of every text and around every picture. The processor then
expands the pictures and calls its tokenizer; just there the markers are replaced by the texts, so it is known
of each character whether the template, a picture or a person wrote it. Tokens get their kind from their
characters.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import ProcessorMixin

from lightning_vlm.data.chat import ChatTemplate, Talk, any_of, check_unicode, talks_of
from lightning_vlm.data.conversation import Conversation, Image
from lightning_vlm.data.images import load_image
from lightning_vlm.data.tokens import Run, encode, one_kind
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.kinds import Kind

_MARKERS = re.compile("\ue000(\\d+)\ue001|\ue002(.*?)\ue003", re.DOTALL)
"""The place of a text, or an expanded picture."""


@dataclass(slots=True)
class Example:
    """One rendered sample.

    Args:
        input_ids: Tensor of shape [length], int64.
        kinds: Tensor of shape [length], int8, a `Kind` for each token.
        inputs: What else the model's forward takes, as the processor gives it for one sample.
        conversation: What was rendered, without the rounds that did not fit.
    """

    input_ids: Tensor
    kinds: Tensor
    inputs: dict[str, Tensor]
    conversation: Conversation


class TooLong(DataError):  # noqa: N818
    """A sample that does not fit, not even its first round."""

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return int(self.found.removeprefix("a prompt of ").split()[0])


class Renderer:
    """Renders conversations for one processor.

    Every token gets a kind. Of an assistant turn, its words and its end-of-turn token are the response; so is
    white space that the template puts between the generation prompt and the words, since the model must write
    it when it answers. Nothing else is response. For ordinary text the ids are those of the processor's own
    `apply_chat_template`. Text that spells a special token or a picture's placeholder stays text; where the
    tokenizer would join an answer with what the template writes around it, the answer is tokenized by
    itself, as generation would write it. A template that writes no end-of-turn token gets a warning.
    (Seed 3.2.2 instead supervises everything after the first marker.)

    Args:
        processor: A processor of transformers that has a chat template.
        max_length: The most tokens of a sample, image tokens included. None is no limit. What is too long
            loses its last rounds, whole ones, until it fits.

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
        self._spelled = any_of(special)
        never = sorted(special - {str(self.tokenizer.unk_token)})
        ids = (self.tokenizer.convert_tokens_to_ids(token) for token in never)
        known = {one for one in ids if one not in (None, self.tokenizer.unk_token_id)}
        self._never_words = np.array(sorted(known), np.int64)
        # PaliGemma: all before the first answer (type 0) sees itself both ways. Its processor, which makes
        # labels too, doesn't know where the answers are, and would let them see what they are to say.
        self._sees_prefix_both_ways = "labels" in processor.model_input_names
        begin = {str(self.tokenizer.bos_token)} - {str(self.tokenizer.eos_token)}
        self.template = ChatTemplate(processor, special - self._placeholders - begin)

    def example(self, conversation: Conversation) -> Example:
        """Render a conversation to learn from.

        Raises:
            DataError: No assistant turn, a broken picture, what the template or the processor refuses, or a
                text that the template changes so that it can't be masked exactly.
            TooLong: Not even its first round fits into `max_length`.
        """
        if all(message.role != "assistant" for message in conversation.messages):
            raise DataError(
                conversation.source, "messages", "no assistant turn", "at least one answer to learn from"
            )
        while True:
            example = self._render(conversation, generate=False)
            length = len(example.input_ids)
            if self.max_length is None or length <= self.max_length:
                return example
            messages = conversation.messages[: -2 if conversation.messages[-1].role == "assistant" else -1]
            if all(message.role != "assistant" for message in messages):
                found = f"{length} tokens, {int((example.kinds == Kind.IMAGE).sum())} of them of pictures"
                expected = f"at most {self.max_length} (max_length); smaller pictures or a shorter text"
                raise TooLong(conversation.source, "", found, expected)
            conversation = replace(conversation, messages=messages)

    def prompt(self, conversation: Conversation) -> tuple[Example, str | None]:
        """Render what the model is to answer: everything before the last assistant turn, and the template's
        generation prompt.

        Returns:
            The prompt, and the words of the last assistant turn (None where there is none).

        Raises:
            As `example`. A prompt is never cut: TooLong if it exceeds `max_length`.
        """
        reference = None
        if conversation.messages[-1].role == "assistant":
            reference = "".join(talk.text for talk in talks_of(conversation.messages[-1]) if talk)
            conversation = replace(conversation, messages=conversation.messages[:-1])
        example = self._render(conversation, generate=True)
        if self.max_length is not None and len(example.input_ids) > self.max_length:
            found = f"a prompt of {len(example.input_ids)} tokens"
            raise TooLong(conversation.source, "", found, f"at most {self.max_length} (max_length)")
        return example, reference

    def _render(self, conversation: Conversation, generate: bool) -> Example:
        source = conversation.source
        pictures, turns = [], []
        talks: list[Talk] = []
        for index, message in enumerate(conversation.messages):
            content: list[dict[str, str]] = []
            for place, part in enumerate(message.parts):
                if isinstance(part, Image):
                    pictures.append(load_image(part, source, f"messages[{index}].content[{place}]"))
            for talk in talks_of(message):
                if talk is None:
                    content.append({"type": "image"})
                else:
                    check_unicode(talk.text, source, f"messages[{index}].content")
                    content.append({"type": "text", "text": f"\ue000{len(talks)}\ue001"})
                    talks.append(talk)
            turns.append({"role": message.role, "content": content})
        marked = self.template.render(turns, generate, source)
        talks = self.template.as_written(marked, turns, talks, generate, source)
        options: dict[str, Any] = {"return_tensors": "pt"}
        bos = self.tokenizer.bos_token
        if bos is not None and marked.startswith(bos):  # as apply_chat_template does
            options["add_special_tokens"] = False
        marked, places = any_of(self._placeholders).subn("\ue002\\g<0>\ue003", marked)
        if places != len(pictures):
            found = f"{len(pictures)} picture(s) and {places} place(s) for them in the rendered template"
            raise DataError(source, "messages", found, "as many places as pictures")
        spy = _Spy(self, talks, source, behind=_MARKERS.split(marked)[-1])
        self.processor.tokenizer = spy
        try:
            # Any nesting but [[picture, ...]] is refused by one family or another.
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
        kinds = torch.from_numpy(spy.kinds)
        if len(kinds) != len(ids):
            raise UserError(
                f"{type(self.processor).__name__} changes the ids after tokenizing; not supported"
            )
        inputs.pop("labels", None)
        if self._sees_prefix_both_ways:
            inputs["token_type_ids"] = (kinds >= Kind.RESPONSE).cumsum(0).clamp(max=1)[None]
        return Example(ids, kinds, inputs, conversation)


class _Text(dict[str, Any]):
    """What a tokenizer gives, where a processor may also ask for the token of a character."""

    def __init__(self, inputs: Mapping[str, Any], token_of: Mapping[int, int]) -> None:
        super().__init__(inputs)
        self._token_of = token_of

    def char_to_token(self, _: int, char: int) -> int | None:
        """As of a tokenizer; for the first and last characters of pictures."""
        return self._token_of.get(char)


class _Spy:
    """Stands in for the tokenizer while the processor works: gets the expanded text, puts in the real texts,
    and knows the kind of each character.

    Args:
        renderer: Whose tokenizer it stands in for.
        talks: The texts.
        source: Of the sample.
        behind: What the template writes behind the last text or picture.
    """

    def __init__(self, renderer: Renderer, talks: list[Talk], source: str, behind: str) -> None:
        self._renderer, self._talks, self._source, self._behind = renderer, talks, source, behind
        self.kinds = np.zeros(0, np.int8)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._renderer.tokenizer, name)

    def __call__(self, text: list[str], **options: Any) -> dict[str, Any]:
        for name in ("return_tensors", "return_offsets_mapping"):
            options.pop(name, None)
        runs = self._runs(text[0])
        encoded = encode(self._renderer.tokenizer, runs, options)
        ids = np.array(encoded.inputs["input_ids"][0])
        forged = ids[encoded.words & np.isin(ids, self._renderer._never_words)]
        if len(forged):
            token = self._renderer.tokenizer.convert_ids_to_tokens(int(forged[0]))
            found = f"text that spells {token}, which this tokenizer can't keep as text"
            raise DataError(self._source, "messages", found, "other words")
        self.kinds = encoded.kinds
        return _Text(encoded.inputs, self._picture_tokens(text[0], runs, encoded.spans))

    def _runs(self, text: str) -> list[Run]:
        renderer, runs = self._renderer, []
        pieces = _MARKERS.split(text)  # template, number or None, picture or None, template, ...
        # What a processor writes behind everything (PaliGemma's a new line) ends the question, also when the
        # answer is there already.
        added = pieces[-1][len(self._behind) :] if pieces[-1].startswith(self._behind) else ""
        pieces[-1] = pieces[-1].removesuffix(added)
        answer = 0  # the one that ended just before
        for place in range(0, len(pieces), 3):
            piece = pieces[place]
            number, picture = pieces[place + 1 : place + 3] or (None, None)
            if answer and piece.startswith(renderer.template.end_of_turn):
                runs.append(one_kind(renderer.template.end_of_turn, Kind.RESPONSE, answer))
                piece = piece[len(renderer.template.end_of_turn) :]
            talk = None if number is None else self._talks[int(number)]
            answer = int(number or 0) + 1 if talk and talk.answer else 0
            gap = renderer.template.gap(piece) if answer else 0
            runs.append(one_kind(piece[: len(piece) - gap], Kind.SPECIAL))
            if answer or place == len(pieces) - 1:
                runs.append(one_kind(added, Kind.SPECIAL))
                added = ""
            if gap:
                runs.append(one_kind(piece[-gap:], Kind.RESPONSE, answer))
            if picture is not None:
                begin = str(renderer.tokenizer.bos_token)  # PaliGemma's processor puts it behind the pictures
                begin = begin if picture.endswith(begin) else ""
                runs.append(one_kind(picture.removesuffix(begin), Kind.IMAGE))
                runs.append(one_kind(begin, Kind.SPECIAL))
            if talk:
                plain = renderer._spelled.search(talk.text) is not None
                runs.append(Run(talk.text, talk.kinds, answer, words=True, plain=plain))
        return runs

    def _picture_tokens(self, text: str, runs: list[Run], spans: np.ndarray) -> dict[int, int]:
        """The tokens of the first and last characters of each picture, by their places in the marked text."""
        pictures = [match.span(2) for match in _MARKERS.finditer(text) if match[2] is not None]
        place, places = 0, []
        for run in runs:
            if run.kinds[:1] == bytes([Kind.IMAGE]):
                places.append((place, place + len(run.text)))
            place += len(run.text)
        found = {}
        for (start, stop), (begin, end) in zip(pictures, places, strict=True):
            found[start] = int(np.searchsorted(spans[:, 1], begin, side="right"))
            found[stop - 1] = int(np.searchsorted(spans[:, 1], end - 1, side="right"))
        return found
