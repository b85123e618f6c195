"""Calls of tools, and what is checked of them and of reasoning in a conversation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_vlm.errors import DataError

if TYPE_CHECKING:
    from lightning_vlm.data.conversation import Message


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool by the assistant.

    Args:
        name: The tool.
        arguments: As JSON has them: texts, numbers, truth values, nulls, lists and objects.
        id: What results name the call by, where the data has it.

    >>> ToolCall("zoom", {"box": [0, 0, 500, 500]}).name
    'zoom'
    """

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None


def check_tools(messages: Sequence["Message"], source: str) -> None:
    """Raise where reasoning, calls or results stand in a turn of someone else, or a result has no call."""
    called: set[str] = set()
    for index, message in enumerate(messages):
        key = f"messages[{index}]"
        only_of_assistant = {"reasoning": message.reasoning is not None, "tool_calls": bool(message.calls)}
        only_of_tool = {"tool_call_id": message.call_id is not None, "name": message.name is not None}
        for name, is_there in {**only_of_assistant, **only_of_tool}.items():
            role = "assistant" if name in only_of_assistant else "tool"
            if is_there and message.role != role:
                found = f"'{name}' in a turn of the {message.role}"
                raise DataError(source, f"{key}.{name}", found, f"it in turns of the {role} alone")
        called |= {call.id for call in message.calls if call.id is not None}
        if message.call_id is not None and message.call_id not in called:
            known = f"one of {', '.join(map(repr, sorted(called)))}" if called else "a call before it"
            raise DataError(source, f"{key}.tool_call_id", f"'{message.call_id}'", f"the id of {known}")


def texts_of(value: Any) -> Iterator[str]:
    """Every text and key in a JSON value.

    >>> list(texts_of({"a": ["b", {"c": 1}]}))
    ['a', 'b', 'c']
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from texts_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_of(item)
