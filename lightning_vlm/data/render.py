"""From a conversation to token ids, each with its kind, through the processor's own chat template.

The template is rendered with a marker in place of every text. The processor then expands the pictures and calls
its tokenizer; just there the markers are replaced by the texts, so it is known of each character whether the
template, a picture or a person wrote it. Tokens get their kind from their characters.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from lightning_vlm.data.conversation import Box, Conversation, Image, Message, Part, Text
from lightning_vlm.data.images import load_image
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.kinds import Kind

_MARKER = re.compile("\ue000(\\d+)\ue001")


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


class _Talk(NamedTuple):
    """One run of text in a message, as the template gets it, and the kind of each of its characters."""

    text: str
    kinds: bytes
    answer: bool


class TooLong(DataError):
    """A sample that does not fit, not even its first round."""


class Renderer:
    """Renders conversations for one processor.

    Every token gets a kind. Of an assistant turn, its words and its end-of-turn token are the response; so is
    white space that the template puts between the generation prompt and the words, since the model must write
    it when it answers. Nothing else is response. For ordinary text the ids are those of the processor's own
    `apply_chat_template`. Text that spells a special token or a picture's placeholder stays text; where the
    tokenizer would join the start of an answer with the prompt before it, the answer is tokenized by itself,
    as generation would write it. (Seed 3.2.2 instead supervises everything after the first marker.)

    Args:
        processor: A processor of transformers that has a chat template.
        max_length: The most tokens of a sample, image tokens included. None is no limit. What is too long
            loses its last rounds, whole ones, until it fits.

    Raises:
        UserError: The processor has no chat template, or its tokenizer can't say which characters a token is.
    """

    def __init__(self, processor: ProcessorMixin, max_length: int | None = None) -> None:
        if not getattr(processor, "chat_template", None):
            raise UserError(
                f"{type(processor).__name__} has no chat template; name a ready one with "
                "model.chat_template (such as chatml), or give the Jinja text"
            )
        if not getattr(processor.tokenizer, "is_fast", False):
            raise UserError(
                f"{type(processor.tokenizer).__name__} is a slow tokenizer; exact masks need a fast one"
            )
        self.processor, self.tokenizer, self.max_length = processor, processor.tokenizer, max_length
        placeholders = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio"))
        self._placeholders = {str(token) for token in placeholders if token}
        special = {str(token) for token in self.tokenizer.all_special_tokens}
        special |= {
            token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special
        }
        self._spelled = _any_of(special | self._placeholders)
        begin = {str(self.tokenizer.bos_token)} - {str(self.tokenizer.eos_token)}
        self._end_of_turn = re.compile(rf"\s*(?:{_any_of(special - self._placeholders - begin).pattern})")
        self._generation_prompt: str | None = None

    def example(self, conversation: Conversation) -> Example:
        """Render a conversation to learn from.

        Raises:
            DataError: No assistant turn, a broken picture, pictures that the template has no place for, or a
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
            reference = "".join(talk.text for talk in _runs(conversation.messages[-1]) if talk)
            conversation = replace(conversation, messages=conversation.messages[:-1])
        example = self._render(conversation, generate=True)
        if self.max_length is not None and len(example.input_ids) > self.max_length:
            found = f"a prompt of {len(example.input_ids)} tokens"
            raise TooLong(conversation.source, "", found, f"at most {self.max_length} (max_length)")
        return example, reference

    def _render(self, conversation: Conversation, generate: bool) -> Example:
        source = conversation.source
        pictures, turns, talks = [], [], []
        for index, message in enumerate(conversation.messages):
            content: list[dict[str, str]] = []
            for place, part in enumerate(message.parts):
                if isinstance(part, Image):
                    pictures.append(load_image(part, source, f"messages[{index}].content[{place}]"))
            for talk in _runs(message):
                if talk is None:
                    content.append({"type": "image"})
                else:
                    content.append({"type": "text", "text": f"\ue000{len(talks)}\ue001"})
                    talks.append(talk)
            turns.append({"role": message.role, "content": content})
        marked = self._template(turns, generate)
        talks = self._as_written(marked, turns, talks, generate, source)
        spy = _Spy(self, marked, talks, source)
        bos = self.tokenizer.bos_token
        options: dict[str, Any] = {"return_tensors": "pt"}
        if bos is not None and marked.startswith(bos):  # as apply_chat_template does
            options["add_special_tokens"] = False
        places = len(self._placeholders) and len(_any_of(self._placeholders).findall(marked))
        if places != len(pictures):
            found = f"{len(pictures)} picture(s) and {places} place(s) for them in the rendered template"
            raise DataError(source, "messages", found, "as many places as pictures")
        self.processor.tokenizer = spy
        try:
            # Any nesting but [[picture, ...]] is refused by one family or another.
            inputs = dict(self.processor(text=[marked], images=[pictures] if pictures else None, **options))
        finally:
            self.processor.tokenizer = self.tokenizer
        ids = inputs.pop("input_ids")[0]
        kinds = torch.from_numpy(spy.kinds)
        if len(kinds) != len(ids):
            raise UserError(f"{type(self.processor).__name__} changes the ids after tokenizing; not supported")
        inputs.pop("labels", None)
        return Example(ids, kinds, inputs, conversation)

    def _template(self, turns: list[dict[str, Any]], generate: bool) -> str:
        template = self.processor.chat_template
        template = template["default"] if isinstance(template, dict) else template
        (text,), _ = render_jinja_template(
            conversations=[turns],
            chat_template=template,
            add_generation_prompt=generate,
            **self.tokenizer.special_tokens_map,
        )
        return str(text)

    def _as_written(
        self, marked: str, turns: list[dict[str, Any]], talks: list[_Talk], generate: bool, source: str
    ) -> list[_Talk]:
        """The texts as the template writes them: as they are, or stripped. Anything else is refused."""
        found = [int(number) for number in _MARKER.findall(marked)]
        if found != list(range(len(talks))):
            lost = sorted(set(range(len(talks))) - set(found))
            what = f"that leaves out text {lost[0] + 1}" if lost else "that repeats or reorders texts"
            raise DataError(
                source, "messages", f"a chat template {what}", "one that writes every text once, in order"
            )
        texts = iter(talks)
        real = [
            {
                **turn,
                "content": [
                    part if part["type"] == "image" else {**part, "text": next(texts).text}
                    for part in turn["content"]
                ],
            }
            for turn in turns
        ]
        written = self._template(real, generate)
        for form in (talks, [_stripped(talk) for talk in talks]):
            if _MARKER.sub(lambda match, form=form: form[int(match[1])].text, marked) == written:
                return form
        raise DataError(
            source, "messages", "a text that the chat template changes", "text that it writes as it is"
        )

    def _gap(self, before: str) -> int:
        """How many characters at the end of `before`, an answer's lead-in, come after the generation prompt."""
        if self._generation_prompt is None:
            ask = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
            without, with_prompt = self._template(ask, False), self._template(ask, True)
            fits = with_prompt.startswith(without)
            self._generation_prompt = with_prompt[len(without) :] if fits else ""
        prompt = self._generation_prompt
        words = before.rstrip()
        if not prompt or before.endswith(prompt) or prompt != prompt.rstrip() or not words.endswith(prompt):
            return 0
        return len(before) - len(words)


class _Spy:
    """Stands in for the tokenizer while the processor works: gets the expanded text, puts in the real texts,
    and knows the kind of each character."""

    def __init__(self, renderer: Renderer, marked: str, talks: list[_Talk], source: str) -> None:
        self._renderer, self._marked, self._talks, self._source = renderer, marked, talks, source
        self.kinds = np.zeros(0, np.int8)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._renderer.tokenizer, name)

    def __call__(self, text: list[str], **options: Any) -> Any:
        pieces = _MARKER.split(text[0])  # template, number, template, number, ..., template
        images = self._expansions(pieces[::2])
        whole, kinds, owners = "", bytearray(), [0]
        owners = []  # which answer a character belongs to; 0 is none
        cuts: list[tuple[int, bool]] = [(0, False)]  # where a segment begins, and whether it is only text
        needs_cuts = False
        end = 0  # end of the last end-of-turn token, from which on the template speaks
        for index, piece in enumerate(pieces):
            if index % 2 == 0:
                start = len(whole)
                kinds += images[index // 2]
                whole += piece
                owners += [0] * len(piece)
                if index and self._talks[int(pieces[index - 1])].answer:
                    match = self._renderer._end_of_turn.match(piece)
                    end = start + match.end() if match else start
                    kinds[start:end] = bytes([Kind.RESPONSE]) * (end - start)
                    owners[start:end] = [index - 1] * (end - start)
                continue
            talk = self._talks[int(piece)]
            spelled = self._renderer._spelled.search(talk.text) is not None
            gap = self._renderer._gap(whole[end:]) if talk.answer else 0
            if gap:
                kinds[-gap:] = bytes([Kind.RESPONSE]) * gap
                owners[-gap:] = [index] * gap
            if talk.answer:
                cuts.append((len(whole) - gap, False))
            if spelled:
                needs_cuts = True
                cuts += [(len(whole), True), (len(whole) + len(talk.text), False)]
            whole += talk.text
            kinds += talk.kinds
            owners += [index if talk.answer else 0] * len(talk.text)
        characters, owner = np.frombuffer(bytes(kinds) + b"\0", np.int8), np.array([*owners, 0])
        if not needs_cuts:
            encoded = self._renderer.tokenizer([whole], return_offsets_mapping=True, **_no_tensors(options))
            offsets = encoded.pop("offset_mapping")[0]
            kinds_found = _kinds(characters, owner, offsets)
            if kinds_found is not None:
                self.kinds = kinds_found
                return encoded
        ids, offsets = self._segments(whole, cuts, options.get("add_special_tokens", True))
        kinds_found = _kinds(characters, owner, offsets)
        if kinds_found is None:
            found = "an answer whose end the tokenizer joins with what the template writes after it"
            raise DataError(self._source, "messages", found, "an answer without white space at its end")
        self.kinds = kinds_found
        return {"input_ids": [ids], "attention_mask": [[1] * len(ids)]}

    def _segments(
        self, whole: str, cuts: list[tuple[int, bool]], add_special_tokens: bool
    ) -> tuple[list[int], list[tuple[int, int]]]:
        tokenizer = self._renderer.tokenizer
        ids = list(tokenizer("", add_special_tokens=True)["input_ids"]) if add_special_tokens else []
        offsets = [(0, 0)] * len(ids)
        begins = [start for start, _ in cuts] + [len(whole)]
        for (start, plain), stop in zip(cuts, begins[1:], strict=True):
            if start == stop:
                continue
            encoded = tokenizer(
                whole[start:stop],
                add_special_tokens=False,
                split_special_tokens=plain,
                return_offsets_mapping=True,
            )
            placeholder = set(tokenizer.convert_tokens_to_ids(sorted(self._renderer._placeholders)))
            if plain and placeholder & set(encoded["input_ids"]):
                found = "text that spells the placeholder of pictures, which this tokenizer can't keep as text"
                raise DataError(self._source, "messages", found, "other words")
            ids += encoded["input_ids"]
            offsets += [(start + a, start + b) for a, b in encoded["offset_mapping"]]
        return ids, offsets

    def _expansions(self, expanded: list[str]) -> Iterator[bytes] | list[bytes]:
        """Of each template piece, the kinds of its characters: special, or image where a picture expanded."""
        placeholder = _any_of(self._renderer._placeholders)
        result = []
        for short, long in zip(_MARKER.split(self._marked)[::2], expanded, strict=True):
            kinds = bytearray([Kind.SPECIAL]) * len(long)
            around = placeholder.split(short) if self._renderer._placeholders else [short]
            if len(around) > 1:
                match = re.fullmatch("(.+?)".join(map(re.escape, around)), long, re.DOTALL)
                spans = [match.span(n + 1) for n in range(len(around) - 1)] if match else []
                spans = spans or [one.span() for one in placeholder.finditer(long)]
                for start, stop in spans:
                    kinds[start:stop] = bytes([Kind.IMAGE]) * (stop - start)
            result.append(bytes(kinds))
        return result


def _kinds(characters: np.ndarray, owner: np.ndarray, offsets: list[tuple[int, int]]) -> np.ndarray | None:
    """The kind of each token: the highest among its characters. None if one token is of two owners."""
    spans = np.array(offsets, np.int64).reshape(-1, 2)
    flat = spans.reshape(-1)
    if not len(flat):
        return np.zeros(0, np.int8)
    kinds = np.maximum.reduceat(characters, flat)[::2].copy()
    empty = spans[:, 0] == spans[:, 1]  # added by the tokenizer itself, such as begin-of-sequence
    kinds[empty] = Kind.SPECIAL
    lowest, highest = (edge.reduceat(owner, flat)[::2] for edge in (np.minimum, np.maximum))
    return None if (lowest != highest)[~empty].any() else kinds


def _runs(message: Message) -> Iterator[_Talk | None]:
    """The texts of a message, neighbours joined, in order; None for each picture. An empty message has one
    empty text."""
    answer = message.role == "assistant"
    run: list[Part] = []
    for part in (*message.parts, None):
        if part is not None and not isinstance(part, Image):
            run.append(part)
            continue
        if run or (not message.parts):
            text = "".join(_words(one) for one in run)
            yield _Talk(text, b"".join(_kind(one, answer) for one in run), answer)
            run = []
        if part is not None:
            yield None


def _words(part: Part) -> str:
    return part.text if isinstance(part, Text) else str(part)


def _kind(part: Part, answer: bool) -> bytes:
    kind = Kind.INSTRUCTION
    if answer:
        kind = Kind.RESPONSE
        if isinstance(part, Box):
            kind = Kind.BOX
        elif isinstance(part, Text) and part.entity:
            kind = Kind.ENTITY
    return bytes([kind]) * len(_words(part))


def _stripped(talk: _Talk) -> _Talk:
    start = len(talk.text) - len(talk.text.lstrip())
    text = talk.text.strip()
    return _Talk(text, talk.kinds[start : start + len(text)], talk.answer)


def _any_of(words: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) or r"(?!)")


def _no_tensors(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in ("return_tensors", "return_offsets_mapping")}
