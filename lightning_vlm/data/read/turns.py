"""Turns as they stand in a row, before their contents are read."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_vlm.data.conversation import Role, check_weight
from lightning_vlm.data.read.fields import (
    check_spelling,
    is_number,
    json_list,
    number_of,
    role_of,
    text_of,
    turns_of,
    without_nulls,
)
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.read.tool_calls import calls_of
from lightning_vlm.data.tools import ToolCall

OWN_ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
ROLES: Mapping[str, Role] = {
    **OWN_ROLES,
    "human": "user",
    "gpt": "assistant",
    "developer": "system",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "tool_call": "assistant",
    "function_call": "assistant",
}
"""What people call the roles."""
_OF_CALLS = ("tool_call", "function_call")
"""Roles of turns that are calls of tools: those of ms-swift and of ShareGPT."""
_REFUSED = {
    "tool_call": "write 'tool_calls'",
    "images": "write pictures beside the turns, or as parts of the content",
    "image": "write pictures beside the turns, or as parts of the content",
    "videos": "write videos beside the turns, or as parts of the content",
    "audios": "sound can't be read yet",
    "train_detail": "a whole turn is learned or not; say so by 'train'",
}
"""Keys of a turn that would change what is learned, and that nothing here can honour."""
_WEIGHTS = ("weight", "loss", "train", "loss_scale")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_CALLS = ("tool_calls", "function_call")
_KNOWN = frozenset(("role", "from", "content", "value", "tool_call_id", *_WEIGHTS, *_REASONING, *_CALLS))


class Turn(NamedTuple):
    """One turn of a row.

    Args:
        role: The speaker.
        content: A text, or a list of parts.
        at: Where the content stands in the row.
        weight: How much the turn weighs in the loss.
        reasoning: What the assistant thinks before it answers, where that has a key of its own.
        calls: The tools that it calls.
        call_id: Of a tool's turn, which call it is the result of.
        name: Of a tool's turn, the tool.
    """

    role: Role
    content: Any
    at: Location
    weight: float = 1.0
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None


def chat_turns(value: Any, at: Location) -> list[Turn]:
    """A list of turns with `role` and `content`, or with ShareGPT's `from` and `value`."""
    turns: list[Turn] = []
    for index, written in enumerate(turns_of(json_list(value), at)):
        turn, is_call = _turn(written, at / index)
        if is_call and turns and turns[-1].role == "assistant":
            turns[-1] = _with_more_calls(turns[-1], turn)
        else:
            turns.append(turn)
    return turns


def text_turn(role: Role, text: Any, at: Location) -> Turn:
    """A turn whose text is the value of a key. Numbers, which tables hold as answers, are written out."""
    if is_number(text):
        text = str(text)
    if not isinstance(text, str | list):
        raise at.wrong(text, "a text")
    return Turn(role, text, at)


def _turn(turn: Any, at: Location) -> tuple[Turn, bool]:
    """A turn, and whether it is nothing but calls of tools."""
    if not isinstance(turn, dict):
        raise at.wrong(turn, "an object with the keys 'role', 'content' (or 'from', 'value')")
    turn = without_nulls(turn)
    for name in turn:
        if name not in _KNOWN:
            _check_other_key(name, turn, at)
    role_name, content_name = _names_of(turn)
    calls = _calls(turn, at)
    for name in (role_name, content_name):
        if name not in turn and not (name == content_name and calls):
            raise at.wrong(turn, f"the key '{name}' too")
    role = role_of(_lower(turn[role_name]), ROLES, at / role_name)
    weight = _weight(turn, role, at)
    if _lower(turn[role_name]) in _OF_CALLS:
        calls = calls_of(turn[content_name], at / content_name)
        return Turn(role, "", at / content_name, weight, _reasoning(turn, at), calls), True
    is_tool = role == "tool"
    if not is_tool and "name" in turn:
        at.reading.notes.ignore("turns[*].name")
    return Turn(
        role,
        turn.get(content_name, ""),
        at / content_name,
        weight,
        _reasoning(turn, at),
        calls,
        text_of(turn["tool_call_id"], at / "tool_call_id") if "tool_call_id" in turn else None,
        text_of(turn["name"], at / "name") if is_tool and "name" in turn else None,
    ), False


def _with_more_calls(turn: Turn, more: Turn) -> Turn:
    """A turn of the assistant, with the calls that the next turn of a row is."""
    if turn.weight != more.weight:
        found = f"a weight of {more.weight:g} behind words of weight {turn.weight:g}"
        raise more.at.error(found, "one weight for an answer and its calls: they are one turn")
    if more.reasoning is not None:
        raise more.at.error("reasoning behind the words of the answer", "reasoning before them")
    return turn._replace(calls=turn.calls + more.calls)


def _calls(turn: dict[str, Any], at: Location) -> tuple[ToolCall, ...]:
    given = [name for name in _CALLS if turn.get(name)]
    if len(given) > 1:
        raise (at / given[1]).error("both 'tool_calls' and 'function_call'", "one of them")
    return calls_of(turn[given[0]], at / given[0]) if given else ()


def _reasoning(turn: dict[str, Any], at: Location) -> str | None:
    texts = {name: text_of(turn[name], at / name) for name in _REASONING if name in turn}
    different = {text for text in texts.values() if text.strip()}
    if len(different) > 1:
        names = " and ".join(map(repr, texts))
        raise at.error(f"{names} with different texts", "one of them")
    return next(iter(different), None)


def _names_of(turn: dict[str, Any]) -> tuple[str, str]:
    """What the keys of the role and of the content are called."""
    is_sharegpt = "role" not in turn and ("from" in turn or "value" in turn)
    has_value = "content" not in turn and (is_sharegpt or "value" in turn)
    return ("from" if is_sharegpt else "role"), ("value" if has_value else "content")


def _check_other_key(name: str, turn: dict[str, Any], at: Location) -> None:
    if name == "name":
        return
    if name not in _REFUSED:
        check_spelling(name, _KNOWN, turn, at)
        at.reading.notes.ignore(f"turns[*].{name}")
    elif turn[name]:
        raise (at / name).wrong(turn[name], f"no '{name}' in a turn: {_REFUSED[name]}")


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _weight(turn: dict[str, Any], role: Role, at: Location) -> float:
    """`weight` (OpenAI), `loss`, `loss_scale` (ms-swift) or `train` (Axolotl) of a turn."""
    given = [name for name in _WEIGHTS if name in turn]
    if not given:
        return 1.0
    if len(given) > 1:
        found = " and ".join(map(repr, given))
        raise (at / given[1]).error(found, "one of them: each says how much the turn weighs")
    name = given[0]
    value = turn[name]
    at = at / name
    if isinstance(value, bool):
        weight = float(value)
    elif is_number(value):
        weight = number_of(value, at)
        check_weight(weight, at.source, at.key)
    else:
        raise at.wrong(value, "true, false or a number")
    if role != "assistant" and weight:
        at.note(f"'{name}' has no effect on turns of the {role}: only answers are learned")
    return weight
