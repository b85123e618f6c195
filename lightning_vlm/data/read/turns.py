"""Turns as they stand in a row, before their contents are read."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning_vlm.data.conversation import Role, check_weight
from lightning_vlm.data.read.fields import (
    check_known_key,
    is_number,
    json_list,
    number_of,
    role_of,
    show,
    turns,
)
from lightning_vlm.data.read.reading import Reading
from lightning_vlm.errors import DataError

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
        key: Where the content stands in the row.
        role_key: Where the role stands.
        weight: How much the turn weighs in the loss.
    """

    role: Role
    content: Any
    key: str
    role_key: str
    weight: float = 1.0


def chat_turns(value: Any, source: str, key: str, reading: Reading) -> list[Turn]:
    """A list of turns with `role` and `content`, or with ShareGPT's `from` and `value`."""
    value = turns(json_list(value), source, key)
    return [_turn(turn, source, f"{key}[{index}]", reading) for index, turn in enumerate(value)]


def text_turn(role: Role, text: Any, source: str, key: str) -> Turn:
    """A turn whose text is the value of a key. Numbers, which tables hold as answers, are written out."""
    if is_number(text):
        text = str(text)
    if not isinstance(text, str | list):
        raise DataError(source, key, show(text), "a text")
    return Turn(role, text, key, key)


def _turn(turn: Any, source: str, key: str, reading: Reading) -> Turn:
    if not isinstance(turn, dict):
        expected = "an object with the keys 'role', 'content' (or 'from', 'value')"
        raise DataError(source, key, show(turn), expected)
    if None in turn.values():
        turn = {name: value for name, value in turn.items() if value is not None}
    for name in turn:
        if name not in _KNOWN:
            _check_other_key(name, turn, source, key, reading)
    sharegpt = "role" not in turn and ("from" in turn or "value" in turn)
    role_name = "from" if sharegpt else "role"
    content_name = "value" if "value" in turn and "content" not in turn else "content"
    if sharegpt and "content" not in turn:
        content_name = "value"
    for name in (role_name, content_name):
        if name not in turn:
            raise DataError(source, key, show(turn), f"the key '{name}' too")
    role = _role(turn[role_name], source, f"{key}.{role_name}")
    weight = _weight(turn, role, source, key, reading)
    return Turn(role, turn[content_name], f"{key}.{content_name}", f"{key}.{role_name}", weight)


def _check_other_key(name: str, turn: dict[str, Any], source: str, key: str, reading: Reading) -> None:
    if name in _REFUSED:
        if turn[name]:
            expected = f"no '{name}' in a turn: {_REFUSED[name]}"
            raise DataError(source, f"{key}.{name}", show(turn[name]), expected)
        return
    check_known_key(name, _KNOWN, turn, source, key)
    reading.notes.ignore(f"turns[*].{name}")


def _role(value: Any, source: str, key: str) -> Role:
    if isinstance(value, str):
        value = value.lower()
        if value in _TOOLS:
            expected = "one of 'system', 'user', 'assistant': turns of tools can't be read yet"
            raise DataError(source, key, show(value), expected)
    return role_of(value, ROLES, source, key)


def _weight(turn: dict[str, Any], role: Role, source: str, key: str, reading: Reading) -> float:
    """`weight` (OpenAI), `loss`, `loss_scale` (ms-swift) or `train` (Axolotl) of a turn."""
    given = [name for name in _WEIGHTS if name in turn] if len(turn) > 2 else []
    if not given:
        return 1.0
    if len(given) > 1:
        found = " and ".join(map(repr, given))
        raise DataError(source, f"{key}.{given[1]}", found, "one of them: each says how much the turn weighs")
    name = given[0]
    value, place = turn[name], f"{key}.{name}"
    if isinstance(value, bool):
        weight = float(value)
    elif is_number(value):
        weight = number_of(value, source, place)
        check_weight(weight, source, place)
    else:
        raise DataError(source, place, show(value), "true, false or a number")
    if role != "assistant" and weight:
        reading.notes.say(f"'{name}' has no effect on turns of the {role}: only answers are learned")
    return weight
