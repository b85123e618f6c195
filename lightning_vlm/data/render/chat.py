"""The text that a chat template writes for the turns of a conversation."""

import itertools
import traceback
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import ProcessorMixin

from lightning_vlm.data.render.bounded_template import BoundedTemplate
from lightning_vlm.data.render.chat_messages import MarkedTurns, chat_messages, content_of
from lightning_vlm.data.render.markers import split_at_markers, text_marker, text_numbers
from lightning_vlm.data.render.reasoning import ReasoningMarks
from lightning_vlm.data.render.special_tokens import any_of
from lightning_vlm.data.render.stripped_texts import texts_as_written
from lightning_vlm.data.render.template_sizes import TemplateLimit
from lightning_vlm.data.render.templates import TEMPLATES
from lightning_vlm.data.render.turns import TextSpan, Turn
from lightning_vlm.errors import DataError, UserError

CHOOSE_ANOTHER = f"choose another with model.chat_template ({', '.join(TEMPLATES)}, a Jinja text or its file)"
_MOST_CACHED = 1000
"""How many orders of roles are cached, with whether the template accepts them."""
_COMPILED_NAMES = ("<template>", "<unknown>")
"""What a traceback names as the file of a template."""
_CHATS = {1: "a single question", 2: "a question and an answer", 4: "several rounds"}


class ChatTemplate:
    """A processor's chat template, rendered with the special tokens of its tokenizer.

    Args:
        processor: A processor of transformers.
        template: Another template than its own.

    Raises:
        UserError: There is no template, or it is no Jinja.
    """

    def __init__(self, processor: ProcessorMixin, template: str | None = None) -> None:
        self.name = type(processor).__name__
        template = template or getattr(processor, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        self._text = str(template or "")
        if not self._text.strip():
            raise UserError(
                f"{self.name} has no chat template; name a ready one with model.chat_template "
                f"({', '.join(TEMPLATES)}), or give the Jinja text"
            )
        self._special_tokens = processor.tokenizer.special_tokens_map
        self._accepted: dict[tuple[str, ...], bool] = {}
        self.as_text: set[str] = set()
        """The roles whose turns are given as texts, not parts; see `_find_roles_of_texts`."""
        try:
            self._template = BoundedTemplate(self._text)
        except Exception as error:
            reason = self._reason(error)
            raise UserError(
                f"the chat template of {self.name} is no Jinja: {reason}; {CHOOSE_ANOTHER}"
            ) from error
        self.as_text = self._find_roles_of_texts()

    def render_marked(
        self, turns: Sequence[Turn], generate: bool, source: str, tools: Sequence[Mapping[str, Any]] = ()
    ) -> MarkedTurns:
        """The text of some turns with a marker in place of each of their texts, and those texts.

        Args:
            turns: The turns.
            generate: Whether the generation prompt comes behind them.
            source: Of the sample, for errors.
            tools: The definitions of tools.

        Raises:
            DataError: The template refuses the turns, fails at them, does not end, or writes their texts
                in a way that can't be masked exactly; or a text is no Unicode.
        """
        contents = [content_of(turn) for turn in turns]
        spans = [span for content in contents for span in content.texts]
        for span in spans:
            _check_unicode(span, source)
        markers = map(text_marker, itertools.count())
        texts = (span.text for span in spans)
        marked = self._render_sample(chat_messages(turns, contents, markers), generate, source, tools)
        written = self._render_sample(chat_messages(turns, contents, texts), generate, source, tools)
        ends = list(itertools.accumulate(len(content.texts) for content in contents))
        numbers = [range(*edges) for edges in itertools.pairwise([0, *ends])]
        return MarkedTurns(marked, texts_as_written(marked, written, spans, source), numbers)

    def marked(
        self, turns: Sequence[Turn], generate: bool, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str | None:
        """The text of some turns with a marker in place of each of their texts; None if it refuses them."""
        contents = [content_of(turn) for turn in turns]
        markers = map(text_marker, itertools.count())
        try:
            return self._render(chat_messages(turns, contents, markers), generate, tools)
        except Exception:  # a template may raise anything
            return None

    def answer(self, turns: Sequence[Turn], source: str, tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """All that the template writes for the last of some turns behind the generation prompt.

        Raises:
            DataError: The template refuses the turns.
        """

        def written(turns: Sequence[Turn], generate: bool) -> str:
            contents = [content_of(turn) for turn in turns]
            texts = (span.text for content in contents for span in content.texts)
            return self._render_sample(chat_messages(turns, contents, texts), generate, source, tools)

        return written(turns, False).removeprefix(written(turns[:-1], True))

    @cached_property
    def reasoning(self) -> ReasoningMarks | None:
        """What the template writes around the reasoning of a last answer; None if it leaves reasoning out."""
        question, answer = _trial(("user", "assistant"))
        answer["reasoning_content"] = answer["thinking"] = text_marker(1)
        answer["content"] = [{"type": "text", "text": text_marker(2)}]
        try:
            marked = self._render([question, answer], False)
            prompt = self._render([question], True)
        except Exception:  # a template may raise anything for keys that it doesn't know
            return None
        if text_numbers(marked) != [0, 1, 2]:
            return None
        _, before, behind, _ = split_at_markers(marked)
        return ReasoningMarks.of(before.before, behind.before, prompt)

    def accepts(self, roles: tuple[str, ...]) -> bool:
        """Whether the template writes the text of each of some turns, once and in order."""
        if roles not in self._accepted:
            if len(self._accepted) >= _MOST_CACHED:
                self._accepted.clear()
            self._accepted[roles] = self._writes_each_text(roles)
        return self._accepted[roles]

    def around(self, *roles: str, generate: bool = False) -> list[str]:
        """What the template writes before, between and behind the texts of some turns.

        Args:
            roles: The roles of the turns.
            generate: Whether the generation prompt comes behind them.

        Raises:
            UserError: The template fails at them, or does not write each text once and in order.
        """
        chat = _CHATS[len(roles)]
        try:
            marked = self._render(_trial(roles), generate)
        except Exception as error:
            message = f"the chat template of {self.name} can't render {chat}: {self._reason(error)}"
            raise UserError(f"{message}; {CHOOSE_ANOTHER}") from error
        if text_numbers(marked) != list(range(len(roles))):
            flaw = "must write once, and in order, each text of" if marked.strip() else "writes nothing of"
            raise UserError(f"the chat template of {self.name} {flaw} {chat}; {CHOOSE_ANOTHER}")
        return [piece.before for piece in split_at_markers(marked)]

    def warn_of_flaws(self, placeholders: set[str]) -> None:
        """Warn if the template has no place for pictures, or writes the date.

        Args:
            placeholders: The tokens that may stand for a picture.
        """
        flaw = self._flaw_of_pictures(placeholders)
        if flaw:
            warnings.warn(f"the chat template of {self.name} {flaw}; {CHOOSE_ANOTHER}", stacklevel=3)
        if self._template.asked_for_date:
            day = self._template.now.date()
            flaw = f"writes the date: that of the start, {day}; a run on another day has other tokens"
            warnings.warn(f"the chat template of {self.name} {flaw}", stacklevel=3)

    def writes(self, medium: str, placeholder: str) -> bool:
        """Whether it writes the placeholder of a medium (`image`, `video`) in a question."""
        try:
            return placeholder in self._question_with(medium)
        except Exception:  # a template may raise anything for a part that it doesn't know
            return False

    def _writes_each_text(self, roles: Sequence[str]) -> bool:
        try:
            marked = self._render(_trial(roles), False)
        except Exception:  # a template may raise anything for an order of roles that it doesn't take
            return False
        return text_numbers(marked) == list(range(len(roles)))

    def _flaw_of_pictures(self, placeholders: set[str]) -> str | None:
        try:
            written = self._question_with("image")
        except Exception as error:
            return f"refuses a question with a picture ({self._reason(error)})"
        if placeholders and not any_of(placeholders).search(written):
            shown = " or ".join(sorted(placeholders))
            return f"writes no place for a picture ({shown}), so pictures will be refused"
        return None

    def _question_with(self, medium: str) -> str:
        (message,) = _trial(["user"])
        message["content"].insert(0, {"type": medium})
        return self._render([message], False)

    def _find_roles_of_texts(self) -> set[str]:
        """The roles of which a template writes the content as it is, as GLM-4.1V's does of answers.

        Parts would be written as Python shows them: `[{'type': 'text', ...}]`.
        """
        found = set()
        for roles in (("user",), ("user", "assistant"), ("system", "user")):
            messages = _trial(roles)
            try:
                written = self._render(messages, False)
            except Exception:  # a template may raise anything for what it doesn't take
                continue
            for message in messages:
                if str(message["content"]) in written:
                    found.add(message["role"])
        return found

    def _render(
        self, messages: list[dict[str, Any]], generate: bool, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        messages = [_with_text(one) if one["role"] in self.as_text else one for one in messages]
        return self._template.render(
            messages, list(tools) or None, add_generation_prompt=generate, **self._special_tokens
        )

    def _render_sample(
        self, messages: list[dict[str, Any]], generate: bool, source: str, tools: Sequence[Mapping[str, Any]]
    ) -> str:
        try:
            return self._render(messages, generate, tools)
        except Exception as error:  # a template is a program, and may raise anything
            roles = [message["role"] for message in messages]
            roles_after_system = itertools.dropwhile(lambda role: role == "system", roles)
            expected = "turns that it knows"
            if not isinstance(error, TemplateError):
                found = "a conversation at which the chat template fails"
            elif "system" in roles_after_system:
                found = "a system turn behind others, which the chat template refuses"
                expected = "system turns at the start"
            else:
                found = "a conversation that the chat template refuses"
            found += f" ({self._reason(error)})"
            expected += ", or another template (model.chat_template)"
            raise DataError(source, "messages", found, expected) from error

    def _reason(self, error: Exception) -> str:
        """Why the template failed, in one line, with its line in a template of several."""
        text = " ".join(str(error).split())
        if isinstance(error, TemplateSyntaxError):
            return f"line {error.lineno}: {text}"
        if isinstance(error, RecursionError):
            text = "it calls itself without end"
        elif not isinstance(error, TemplateError | TemplateLimit):
            text = f"{type(error).__name__}: {text}"
        if len(text) > 200:
            text = f"{text[:200]}..."
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename in _COMPILED_NAMES]
        if lines and "\n" in self._text:
            return f"line {lines[-1]}: {text}"
        return text


def _trial(roles: Sequence[str]) -> list[dict[str, Any]]:
    """Messages of some roles, each with a marker as its text."""
    messages: list[dict[str, Any]] = []
    for number, role in enumerate(roles):
        part = {"type": "text", "text": text_marker(number)}
        messages.append({"role": role, "content": [part]})
    return messages


def _with_text(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its text in the place of its parts, if it has no pictures."""
    parts = message["content"]
    if any(part["type"] != "text" for part in parts):
        return message
    return {**message, "content": "".join(part["text"] for part in parts)}


def _check_unicode(span: TextSpan, source: str) -> None:
    try:
        span.text.encode()
    except UnicodeEncodeError as error:
        found = f"half a character ({span.text[error.start]!r})"
        raise DataError(source, span.key, found, "whole Unicode characters") from None
