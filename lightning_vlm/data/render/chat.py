"""The text that a chat template writes for the turns of a conversation."""

import itertools
import re
import traceback
import warnings
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import ProcessorMixin

from lightning_vlm.data.render.bounded_template import BoundedTemplate
from lightning_vlm.data.render.stripped_texts import match_stripped
from lightning_vlm.data.render.template_sizes import TemplateLimit
from lightning_vlm.data.render.templates import TEMPLATES
from lightning_vlm.data.render.turns import TextSpan
from lightning_vlm.errors import DataError, UserError

_MARKER = re.compile("\ue000(\\d+)\ue001")
_OTHER = f"choose another with model.chat_template ({', '.join(TEMPLATES)}, a Jinja text or its file)"
_PATTERNS = 1000
"""How many orders of roles are cached, with whether the template accepts them."""


class ChatTemplate:
    """A processor's chat template, rendered with the special tokens of its tokenizer.

    Args:
        processor: A processor of transformers.
        ends: The tokens that may end a turn.
        placeholders: The tokens that may stand for a picture.

    Raises:
        UserError: There is no template, or it can't render one question and one answer.
    """

    def __init__(self, processor: ProcessorMixin, ends: set[str], placeholders: set[str]) -> None:
        self.name = type(processor).__name__
        template = getattr(processor, "chat_template", None)
        template = template.get("default") if isinstance(template, dict) else template
        if not template or not str(template).strip():
            raise UserError(
                f"{self.name} has no chat template; name a ready one with model.chat_template "
                f"({', '.join(TEMPLATES)}), or give the Jinja text"
            )
        self._tokens = processor.tokenizer.special_tokens_map
        self._written: dict[tuple[str, ...], bool] = {}
        try:
            self._template = BoundedTemplate(str(template))
        except Exception as error:
            reason = _reason(error, str(template))
            raise UserError(f"the chat template of {self.name} is no Jinja: {reason}; {_OTHER}") from error
        self._generation_prompt = self._find_generation_prompt()
        self._check_beginning()
        self.end_of_turn = self._find_end_of_turn(ends, str(processor.tokenizer.eos_token))
        """What it writes to end an answer: a special token, and white space before it."""
        self._check_picture(placeholders)
        if self._template.asked_for_date:
            day = self._template.now.date()
            self._warn(f"writes the date: that of the start, {day}; a run on another day has other tokens")

    def render(self, turns: list[dict[str, Any]], generate: bool, source: str) -> str:
        """The text of some turns, with the generation prompt behind it if asked for.

        Raises:
            DataError: The template refuses them, fails at them, or does not end.
        """
        try:
            return self._render(turns, generate)
        except Exception as error:  # a template is a program, and may raise anything
            reason = _reason(error, self._template.text)
            roles = [turn["role"] for turn in turns]
            late = any(role != "system" and later == "system" for role, later in itertools.pairwise(roles))
            if not isinstance(error, TemplateError):
                found = f"a conversation at which the chat template fails ({reason})"
                expected = "turns that it knows, or another template (model.chat_template)"
            elif late:
                found = f"a system turn behind others, which the chat template refuses ({reason})"
                expected = "system turns at the start, or another template (model.chat_template)"
            else:
                found = f"a conversation that the chat template refuses ({reason})"
                expected = "turns that it knows, or another template (model.chat_template)"
            raise DataError(source, "messages", found, expected) from error

    def writes(self, roles: tuple[str, ...]) -> bool:
        """Whether it writes the text of each of some turns, once and in order."""
        if roles not in self._written:
            if len(self._written) >= _PATTERNS:
                self._written.clear()
            try:
                marked = self._render([_turn(role, index) for index, role in enumerate(roles)], False)
            except Exception:
                marked = ""
            self._written[roles] = _numbers(marked) == list(range(len(roles)))
        return self._written[roles]

    def as_written(
        self, marked: str, turns: list[dict[str, Any]], spans: list[TextSpan], generate: bool, source: str
    ) -> list[TextSpan]:
        """The texts as the template writes them: as they are, or stripped. Anything else is refused."""
        pieces = _MARKER.split(marked)  # template, number, template, number, ..., template
        found = _numbers(marked)
        if found != list(range(len(spans))):
            lost = sorted(set(range(len(spans))) - set(found))
            what = f"that leaves out {spans[lost[0]].key}" if lost else "that repeats or reorders texts"
            expected = "one that writes every text once, in order"
            raise DataError(source, "messages", f"a chat template {what}", expected)
        texts = iter(spans)
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
        if _MARKER.sub(lambda match: spans[int(match[1])].text, marked) == written:
            return spans
        stripped = match_stripped(written, pieces[::2], spans)
        if stripped is None:
            found_text, expected = "a text that the chat template changes", "text that it writes as it is"
            raise DataError(source, "messages", found_text, expected)
        return stripped

    def _render(self, turns: list[dict[str, Any]], generate: bool) -> str:
        return self._template.render(turns, add_generation_prompt=generate, **self._tokens)

    def _trial(self, *roles: str, generate: bool = False) -> list[str]:
        """What the template writes before, between and behind the texts of some turns.

        Raises:
            UserError: It fails at them, or does not write each text once and in order.
        """
        chat = {1: "a single question", 2: "a question and an answer"}.get(len(roles), "several rounds")
        try:
            marked = self._render([_turn(role, index) for index, role in enumerate(roles)], generate)
        except Exception as error:
            reason = _reason(error, self._template.text)
            message = f"the chat template of {self.name} can't render {chat}: {reason}; {_OTHER}"
            raise UserError(message) from error
        if _numbers(marked) != list(range(len(roles))):
            what = (
                "writes nothing of" if not marked.strip() else "must write once, and in order, each text of"
            )
            raise UserError(f"the chat template of {self.name} {what} {chat}; {_OTHER}")
        return _MARKER.split(marked)[::2]

    def _warn(self, what: str) -> None:
        warnings.warn(f"the chat template of {self.name} {what}", stacklevel=4)

    def _find_generation_prompt(self) -> str:
        """What the template writes to have an answer begun; if nothing, how it ends a question."""
        _, without = self._trial("user")
        _, prompt = self._trial("user", generate=True)
        begin = prompt[len(without) :] if prompt.startswith(without) else ""
        return begin or prompt

    def _check_beginning(self) -> None:
        """Warn if answers in a chat begin differently from the generation prompt."""
        before = self._trial("user", "assistant")[1]
        if self._gap(before) is None:
            self._warn(
                f"begins an answer with {before!r}, but asks for one with {self._generation_prompt!r}, so "
                f"the prompt of a new answer would differ from training; {_OTHER}"
            )

    def _find_end_of_turn(self, special: set[str], eos: str) -> str:
        """What the template writes to end an answer: a special token, and white space before it."""
        pattern = re.compile(rf"\s*({any_of(special).pattern})")
        begin, _, last = self._trial("user", "assistant")
        match = pattern.match(last)
        between = self._between_rounds()
        if match and between is not None and not between.startswith(match[0]):
            self._warn(
                f"ends only the last answer of a chat with {match[1]!r}, so after the others the model would "
                f"not learn to stop; {_OTHER}"
            )
        if match:
            return match[0]
        inner = pattern.match(between or "")
        # What also begins the first turn belongs to the next turn here, and doesn't end this one.
        if inner and (inner[1] == eos or inner[1] not in begin):
            self._warn(
                f"ends every answer but the last one of a chat with {inner[1]!r}, so the model would hardly "
                f"learn to stop; {_OTHER}"
            )
            return inner[0]
        self._warn(
            f"writes no end-of-turn token after an answer, so the model would never learn to stop; {_OTHER}"
        )
        return ""

    def _between_rounds(self) -> str | None:
        """What it writes between an answer and the next question; None if it takes one round only."""
        roles = ("user", "assistant") * 2
        return self._trial(*roles)[2] if self.writes(roles) else None

    def _check_picture(self, placeholders: set[str]) -> None:
        """Warn of a template that has no place for pictures."""
        turn = _turn("user", 0)
        turn["content"].insert(0, {"type": "image"})
        try:
            written = self._render([turn], False)
        except Exception as error:
            reason = _reason(error, self._template.text)
            self._warn(f"refuses a question with a picture ({reason}); {_OTHER}")
            return
        if placeholders and not any_of(placeholders).search(written):
            shown = " or ".join(sorted(placeholders))
            self._warn(f"writes no place for a picture ({shown}), so pictures will be refused; {_OTHER}")

    def gap(self, before: str) -> int:
        """How many characters at the end of an answer's lead-in come after the generation prompt."""
        return self._gap(before) or 0

    def _gap(self, before: str) -> int | None:
        for gap in range(len(before) - len(before.rstrip()) + 1):
            if before[: len(before) - gap].endswith(self._generation_prompt):
                return gap
        return None


def _turn(role: str, number: int) -> dict[str, Any]:
    """A turn with a marker as its text."""
    return {"role": role, "content": [{"type": "text", "text": f"\ue000{number}\ue001"}]}


def _numbers(marked: str) -> list[int]:
    """The numbers of the markers in a text."""
    return [int(number) for number in _MARKER.findall(marked)]


def _reason(error: Exception, template: str) -> str:
    """Why a template failed, in one line, with its line in a template of several."""
    text = " ".join(str(error).split())
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno}: {text}"
    if isinstance(error, RecursionError):
        text = "it calls itself without end"
    elif not isinstance(error, TemplateError | TemplateLimit):
        text = f"{type(error).__name__}: {text}"
    text = text if len(text) <= 200 else f"{text[:200]}..."
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename in ("<template>", "<unknown>")]
    return f"line {lines[-1]}: {text}" if lines and template.count("\n") else text


def check_unicode(text: str, source: str, key: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = f"half a character ({text[error.start]!r})"
        raise DataError(source, key, found, "whole Unicode characters") from None


def any_of(words: set[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) or r"(?!)")
