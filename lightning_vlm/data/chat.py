"""The texts of a conversation, and what a chat template makes of them."""

import re
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from lightning_vlm.data.conversation import Box, Image, Message, Part, Text
from lightning_vlm.data.templates import TEMPLATES
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.kinds import Kind

_MARKER = re.compile("\ue000(\\d+)\ue001")

_ASK = {"role": "user", "content": [{"type": "text", "text": "\ue0000\ue001"}]}
_ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "\ue0001\ue001"}]}


class Talk(NamedTuple):
    """One run of text in a message, as the template gets it, and the kind of each of its characters."""

    text: str
    kinds: bytes
    answer: bool


class ChatTemplate:
    """A processor's chat template, rendered with the special tokens of its tokenizer.

    Args:
        processor: A processor of transformers.
        ends: The tokens that may end a turn.

    Raises:
        UserError: There is no template, or it can't render one question and one answer.
    """

    def __init__(self, processor: ProcessorMixin, ends: set[str]) -> None:
        self._name = type(processor).__name__
        template = getattr(processor, "chat_template", None)
        template = template.get("default") if isinstance(template, dict) else template
        if not template:
            raise UserError(
                f"{self._name} has no chat template; name a ready one with model.chat_template "
                f"({', '.join(TEMPLATES)}), or give the Jinja text"
            )
        self._jinja, self._tokens = str(template), processor.tokenizer.special_tokens_map
        self._generation_prompt = self._find_generation_prompt()
        self._check_beginning()
        self.end_of_turn = self._find_end_of_turn(ends)
        """What it writes to end an answer: a special token, and white space before it."""

    def render(self, turns: list[dict[str, Any]], generate: bool, source: str) -> str:
        """The text of some turns, with the generation prompt behind it if asked for.

        Raises:
            DataError: The template refuses them.
        """
        try:
            rendered: Any = render_jinja_template(
                conversations=[turns],
                chat_template=self._jinja,
                add_generation_prompt=generate,
                **self._tokens,
            )
        except (TemplateError, TypeError) as error:
            found = f"a conversation that the chat template refuses ({error})"
            expected = "turns that it knows, or another template (model.chat_template)"
            raise DataError(source, "messages", found, expected) from error
        return str(rendered[0][0])

    def as_written(
        self, marked: str, turns: list[dict[str, Any]], talks: list[Talk], generate: bool, source: str
    ) -> list[Talk]:
        """The texts as the template writes them: as they are, or stripped. Anything else is refused."""
        pieces = _MARKER.split(marked)  # template, number, template, number, ..., template
        found = [int(number) for number in pieces[1::2]]
        if found != list(range(len(talks))):
            lost = sorted(set(range(len(talks))) - set(found))
            what = f"that leaves out text {lost[0] + 1}" if lost else "that repeats or reorders texts"
            expected = "one that writes every text once, in order"
            raise DataError(source, "messages", f"a chat template {what}", expected)
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
        written = self.render(real, generate, source)
        if _MARKER.sub(lambda match: talks[int(match[1])].text, marked) == written:
            return talks
        forms = [_forms(talk) for talk in talks]
        pattern = re.escape(pieces[0]) + "".join(
            f"({'|'.join(map(re.escape, form))}){re.escape(piece)}"
            for form, piece in zip(forms, pieces[2::2], strict=True)
        )
        match = re.fullmatch(pattern, written)
        if match is None:
            found_text, expected = "a text that the chat template changes", "text that it writes as it is"
            raise DataError(source, "messages", found_text, expected)
        return [form[text] for form, text in zip(forms, match.groups(), strict=True)]

    def _find_generation_prompt(self) -> str:
        """What the template writes to have an answer begun; if nothing, how it ends a question."""
        without, prompt = self.render([_ASK], False, "?"), self.render([_ASK], True, "?")
        begin = prompt[len(without) :] if prompt.startswith(without) else ""
        return begin or _MARKER.split(prompt)[-1]

    def _check_beginning(self) -> None:
        """Warn of a template that begins the answers in a chat otherwise than it asks for one."""
        before = _MARKER.split(self.render([_ASK, _ANSWER], False, "?"))[2]
        if self._gap(before) is None:
            warnings.warn(
                f"the chat template of {self._name} begins an answer with {before!r}, but asks for one with "
                f"{self._generation_prompt!r}, so the model would be asked otherwise than it was trained; "
                f"choose another with model.chat_template ({', '.join(TEMPLATES)})",
                stacklevel=3,
            )

    def _find_end_of_turn(self, special: set[str]) -> str:
        """What the template writes to end an answer: a special token, and white space before it."""
        behind = _MARKER.split(self.render([_ASK, _ANSWER], False, "?"))[-1]
        match = re.match(rf"\s*(?:{any_of(special).pattern})", behind)
        if match is None:
            warnings.warn(
                f"the chat template of {self._name} writes no end-of-turn token after an "
                "answer, so the model would never learn to stop; choose one that does with "
                f"model.chat_template ({', '.join(TEMPLATES)})",
                stacklevel=3,
            )
        return match[0] if match else ""

    def gap(self, before: str) -> int:
        """How many characters at the end of an answer's lead-in come after the generation prompt."""
        return self._gap(before) or 0

    def _gap(self, before: str) -> int | None:
        for gap in range(len(before) - len(before.rstrip()) + 1):
            if before[: len(before) - gap].endswith(self._generation_prompt):
                return gap
        return None


def talks_of(message: Message) -> Iterator[Talk | None]:
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
            yield Talk(text, b"".join(_kind(one, answer) for one in run), answer)
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


def _forms(talk: Talk) -> dict[str, Talk]:
    """A text as it is, and with white space stripped in the ways that templates do."""
    forms = {talk.text: talk}
    for space in (None, "\n"):
        start = len(talk.text) - len(talk.text.lstrip(space))
        stop = len(talk.text.rstrip(space))
        for one in (slice(start, stop), slice(start, None), slice(stop)):
            forms.setdefault(talk.text[one], Talk(talk.text[one], talk.kinds[one], talk.answer))
    return forms


def check_unicode(text: str, source: str, key: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"half a character ({text[error.start]!r})"
        raise DataError(source, key, found, "whole Unicode characters") from None


def any_of(words: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) or r"(?!)")
