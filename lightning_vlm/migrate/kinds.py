"""Which kind of value a key has: a number, true or false, or keys of its own."""

import math
from collections.abc import Mapping
from typing import Any

from lightning_vlm.errors import UserError
from lightning_vlm.migrate.tools import Tool

_TRUE = (1, "yes", "y", "t", "on")
_FALSE = (0, "no", "n", "f", "off")
_LISTS = {
    *(
        "report_to",
        "dataset",
        "eval_dataset",
        "lora_target",
        "freeze_trainable_modules",
        "freeze_extra_modules",
    ),
    *("additional_target", "lora_target_modules", "lora_modules_to_save", "lora_target_parameters"),
    *("add_tokens", "add_special_tokens", "new_special_tokens", "datasets"),
}
"""Keys that have several words, though their default doesn't say so."""
_SWITCHES = {
    *("bf16", "fp16", "gradient_checkpointing", "disable_tqdm", "greater_is_better", "packing"),
    *("completion_only_loss", "enable_thinking"),
}
"""Keys that are true or false, or neither, which is the default of some tools."""
_NULLABLE = ("max_length",)
"""Keys that have a number, and for which none is a value of its own."""


def checked(where: str, key: str, value: Any, tool: Tool) -> Any:
    """A value, if it is of its key's kind; the default where none is given for a number.

    Args:
        where: For messages.
        key: Today's name of the key.
        value: Its value, as `theirs.plain` reads it.
        tool: Whose key it is. Those that aren't carried over may have any value.

    Raises:
        UserError: It is of another kind.

    >>> from lightning_vlm.migrate.tools import tool
    >>> checked("a.yaml: packing", "packing", "yes", tool("trl"))
    True
    >>> checked("a.yaml: learning_rate", "learning_rate", "fast", tool("trl"))
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: a.yaml: learning_rate: found fast; expected a number
    """
    if key not in tool.carried:
        return value
    default = tool.defaults[key]
    if key in tool.numbers or (isinstance(default, int | float) and not isinstance(default, bool)):
        if value is None:
            return None if key in _NULLABLE else default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            _refuse(where, value, "a number")
    elif is_switch(key, default):
        if value is None:
            return default
        if isinstance(value, str | int) and not isinstance(value, bool):
            word = value.lower() if isinstance(value, str) else value
            if word not in (*_TRUE, *_FALSE):
                _refuse(where, value, "true or false")
            return word in _TRUE
        if not isinstance(value, bool):
            _refuse(where, value, "true or false")
    elif key in tool.mappings:
        if value is not None and not isinstance(value, Mapping):
            _refuse(where, value, "keys with values, such as {min_lr_rate: 0.1}")
    elif isinstance(value, list) and not isinstance(default, list) and key not in _LISTS:
        _refuse(where, " ".join(map(str, value)), "one value")
    elif isinstance(value, Mapping) or (
        isinstance(value, list)
        and any(isinstance(one, Mapping | list) for one in value)
        and key != "datasets"
    ):
        _refuse(where, value, "a word, or several")
    elif (
        key == "datasets"
        and value
        and not (isinstance(value, list) and all(isinstance(one, Mapping) for one in value))
    ):
        _refuse(where, value, "a list of sources, each with its path")
    return value


def is_switch(key: str, default: Any) -> bool:
    """Whether a key is true or false.

    >>> is_switch("use_peft", False), is_switch("bf16", None), is_switch("optim", "sgd")
    (True, True, False)
    """
    return isinstance(default, bool) or key in _SWITCHES


def _refuse(where: str, value: Any, expected: str) -> None:
    shown = str(value)
    raise UserError(
        f"{where}: found {shown if len(shown) <= 60 else shown[:57] + '...'}; expected {expected}"
    )
