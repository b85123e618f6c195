"""Calls of tools and definitions of tools, as the formats of data write them."""

import json
from typing import Any

from lightning_vlm.data.read.fields import text_of, without_nulls
from lightning_vlm.data.read.reading import Location
from lightning_vlm.data.tools import ToolCall, texts_of

CALL_KEYS = ("id", "type", "index", "function")
"""What stands beside a call of OpenAI's."""


def calls_of(value: Any, at: Location) -> tuple[ToolCall, ...]:
    """The calls of a turn: a list or a single one, as objects or as a text in JSON.

    A call has `name` and `arguments`, either itself or in its `function`.
    """
    value = _from_json(value, at)
    if isinstance(value, dict):
        return (_call(value, at),)
    if not isinstance(value, list):
        raise at.wrong(value, "a list of calls, each with 'name' and 'arguments'")
    return tuple(_call(item, at / index) for index, item in enumerate(value))


def definitions_of(value: Any, at: Location) -> tuple[dict[str, Any], ...]:
    """What each tool is: a list of objects, or a text in JSON. A bare function is put into OpenAI's shape."""
    value = _from_json(value, at)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise at.wrong(value, "a list of tools, each with 'name' and 'parameters'")
    return tuple(_definition(item, at / index) for index, item in enumerate(value))


def _call(value: Any, at: Location) -> ToolCall:
    call = _from_json(value, at)
    if not isinstance(call, dict):
        raise at.wrong(call, "an object with the keys 'name', 'arguments'")
    identity = call.get("id")
    function, function_at = call, at
    if "function" in call and "name" not in call:
        function, function_at = _from_json(call["function"], at / "function"), at / "function"
        for name in call:
            if name not in CALL_KEYS:
                at.reading.notes.ignore(f"tool_calls[*].{name}")
    if not isinstance(function, dict) or "name" not in function:
        raise function_at.wrong(function, "an object with the keys 'name', 'arguments'")
    given = [name for name in ("arguments", "parameters") if name in function]
    for name in without_nulls(function):
        if name not in ("name", *given[:1], *CALL_KEYS):
            at.reading.notes.ignore(f"tool_calls[*].{name}")
    arguments: dict[str, Any] = {}
    if given:
        arguments = _arguments(function[given[0]], function_at / given[0])
    return ToolCall(
        text_of(function["name"], function_at / "name"),
        arguments,
        None if identity is None else text_of(identity, at / "id"),
    )


def _arguments(value: Any, at: Location) -> dict[str, Any]:
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}
    value = _from_json(value, at)
    if not isinstance(value, dict):
        raise at.wrong(value, "an object with the arguments, or a text in JSON that is one")
    return value


def _definition(value: Any, at: Location) -> dict[str, Any]:
    definition = _from_json(value, at)
    function = definition.get("function", definition) if isinstance(definition, dict) else definition
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise at.wrong(definition, "an object with the keys 'name', 'description', 'parameters'")
    if function is definition:
        at.note("tools without 'type' and 'function' are put into OpenAI's shape, as templates expect them")
        return {"type": "function", "function": definition}
    return definition


def _from_json(value: Any, at: Location) -> Any:
    """A value that may be written as a text in JSON; each text in it can be written in UTF-8."""
    if isinstance(value, str):
        try:
            value = json.loads(value, parse_constant=_refuse_constant)
        except ValueError as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise at.wrong(value, f"JSON ({reason})") from None
    for text in texts_of(value):
        text_of(text, at)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
