"""Turns as the messages that a chat template gets, and the texts in them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from lightning_vlm.data.conversation import Image
from lightning_vlm.data.render.turns import TextSpan, Turn, reasoning_span, text_spans


class TurnContent(NamedTuple):
    """What a turn holds, in the order in which templates write it.

    Args:
        reasoning: What the assistant thinks before its words.
        parts: The texts, and what else stands between them.
    """

    reasoning: TextSpan | None
    parts: list[Any]

    @property
    def texts(self) -> list[TextSpan]:
        """The texts alone."""
        words = [part for part in self.parts if isinstance(part, TextSpan)]
        return words if self.reasoning is None else [self.reasoning, *words]


class MarkedTurns(NamedTuple):
    """Some turns as a template writes them.

    Args:
        text: The text, with a marker in place of each text of theirs.
        spans: Those texts as the template writes them: as they are, or stripped. It may leave out reasoning.
        numbers: Of each turn, the numbers of its texts.
    """

    text: str
    spans: list[TextSpan]
    numbers: list[range]


def content_of(turn: Turn) -> TurnContent:
    """What a turn holds. One that is only reasoning or calls has no text, not an empty one."""
    reasoning = reasoning_span(turn)
    parts = list(text_spans(turn))
    has_more = reasoning is not None or any(message.calls for message in turn.messages)
    if has_more:
        parts = [part for part in parts if not isinstance(part, TextSpan) or part.text]
    return TurnContent(reasoning, parts)


def chat_messages(
    turns: Sequence[Turn], contents: Sequence[TurnContent], texts: Iterator[str]
) -> list[dict[str, Any]]:
    """The messages of `apply_chat_template`, with other texts in place of their own."""
    return [_message(turn, content, texts) for turn, content in zip(turns, contents, strict=True)]


def _message(turn: Turn, content: TurnContent, texts: Iterator[str]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role}
    if content.reasoning is not None:
        # Templates read either; `apply_chat_template` gives both.
        message["reasoning_content"] = message["thinking"] = next(texts)
    parts: list[dict[str, str]] = []
    for part in content.parts:
        if isinstance(part, TextSpan):
            parts.append({"type": "text", "text": next(texts)})
        else:
            parts.append({"type": "image" if isinstance(part, Image) else "video"})
    message["content"] = parts
    calls = [call for given in turn.messages for call in given.calls]
    if calls:
        message["tool_calls"] = [_call(call) for call in calls]
    # Templates take a tool's words as a text, as OpenAI has them; some know no parts there.
    is_one_text = len(parts) == 1 and parts[0]["type"] == "text"
    if turn.role == "tool" and is_one_text:
        message["content"] = parts[0]["text"]
    elif not parts and (calls or content.reasoning is not None):
        message["content"] = ""
    if turn.role == "tool":
        given = turn.messages[0]
        named = {"tool_call_id": given.call_id, "name": given.name}
        message |= {name: value for name, value in named.items() if value is not None}
    return message


def _call(call: Any) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    named = {} if call.id is None else {"id": call.id}
    return {**named, "type": "function", "function": function}
