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
    turns_of,
    without_nulls,
)
from lightning_vlm.data.read.reading import Location

OWN_ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
ROLES: Mapping[str, Role] = {
    **OWN_ROLES,
    "human": "user",
    "gpt": "assistant",
    "developer": "system",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
}
"""What people call the three roles."""
_TOOLS = ("tool", "function", "ipython", "observation", "function_call", "tool_call", "function_response")
_REFUSED = {
    "tool_calls": "calls of tools can't be learned yet",
    "function_call": "calls of tools can't be learned yet",
    "images": "write pictures beside the turns, or as parts of the content",
    "image": "write pictures beside the turns, or as parts of the content",
    "videos": "videos can't be read yet",
    "audios": "sound can't be read yet",
    "train_detail": "a whole turn is learned or not; say so by 'train'",
}
"""Keys of a turn that would change what is learned, and that nothing here can honour."""
_WEIGHTS = ("weight", "loss", "train", "loss_scale")
_KNOWN = frozenset(("role", "from", "content", "value", *_WEIGHTS))


class Turn(NamedTuple):
    """One turn of a row.

    Args:
        role: The speaker.
        content: A text, or a list of parts.
        at: Where the content stands in the row.
        weight: How much the turn weighs in the loss.
    """

    role: Role
    content: Any
    at: Location
    weight: float = 1.0


def chat_turns(value: Any, at: Location) -> list[Turn]:
    """A list of turns with `role` and `content`, or with ShareGPT's `from` and `value`."""
    turns = turns_of(json_list(value), at)
    return [_turn(turn, at / index) for index, turn in enumerate(turns)]


def text_turn(role: Role, text: Any, at: Location) -> Turn:
    """A turn whose text is the value of a key. Numbers, which tables hold as answers, are written out."""
    if is_number(text):
        text = str(text)
    if not isinstance(text, str | list):
        raise at.wrong(text, "a text")
    return Turn(role, text, at)


def _turn(turn: Any, at: Location) -> Turn:
    if not isinstance(turn, dict):
        raise at.wrong(turn, "an object with the keys 'role', 'content' (or 'from', 'value')")
    turn = without_nulls(turn)
    for name in turn:
        if name not in _KNOWN:
            _check_other_key(name, turn, at)
    role_name, content_name = _names_of(turn)
    for name in (role_name, content_name):
        if name not in turn:
            raise at.wrong(turn, f"the key '{name}' too")
    role = _role(turn[role_name], at / role_name)
    return Turn(role, turn[content_name], at / content_name, _weight(turn, role, at))


def _names_of(turn: dict[str, Any]) -> tuple[str, str]:
    """What the keys of the role and of the content are called."""
    is_sharegpt = "role" not in turn and ("from" in turn or "value" in turn)
    has_value = "content" not in turn and (is_sharegpt or "value" in turn)
    return ("from" if is_sharegpt else "role"), ("value" if has_value else "content")


def _check_other_key(name: str, turn: dict[str, Any], at: Location) -> None:
    if name not in _REFUSED:
        check_spelling(name, _KNOWN, turn, at)
        at.reading.notes.ignore(f"turns[*].{name}")
    elif turn[name]:
        raise (at / name).wrong(turn[name], f"no '{name}' in a turn: {_REFUSED[name]}")


def _role(value: Any, at: Location) -> Role:
    if isinstance(value, str):
        value = value.lower()
        if value in _TOOLS:
            expected = "one of 'system', 'user', 'assistant': turns of tools can't be read yet"
            raise at.wrong(value, expected)
    return role_of(value, ROLES, at)


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
