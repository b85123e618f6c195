"""Variables of a chat template that a user sets, such as `enable_thinking`."""

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateSyntaxError, meta
from transformers import ProcessorMixin
from transformers.utils import chat_template_utils

from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean

_GIVEN = ("messages", "tools", "documents", "add_generation_prompt")
"""What a template gets for each chat."""


def template_variables(text: str, special_tokens: Mapping[str, Any] | None = None) -> list[str]:
    """What a user may set of a chat template; nothing if it is no Jinja, which its renderer says better.

    >>> template_variables("{{ bos_token }}{{ messages if enable_thinking }}", {"bos_token": "<s>"})
    ['enable_thinking']
    """
    environment = chat_template_utils._compile_jinja_template("").environment
    try:
        names = meta.find_undeclared_variables(environment.parse(text))
    except TemplateSyntaxError:
        return []
    return sorted(names - {*_GIVEN, *environment.globals, *(special_tokens or {})})


def set_template_options(processor: ProcessorMixin, options: Mapping[str, Any]) -> None:
    """Make values the defaults of variables of a processor's chat template.

    They are written into the template itself, so that they hold in training, validation and prediction alike,
    and in the exported processor too. Who asks that one for another value still gets it.

    Raises:
        UserError: The template reads no such variable; the message has the nearest one that it does.
    """
    if not options:
        return
    templates = processor.chat_template
    if not isinstance(templates, dict):
        templates = {"default": str(templates or "")}
    special = processor.tokenizer.special_tokens_map
    known = sorted({name for text in templates.values() for name in template_variables(text, special)})
    for name, value in options.items():
        if name not in known:
            reads = f"it reads {', '.join(known)}" if known else "it reads none that could be set"
            near = did_you_mean(name, known, quoted=True)
            raise UserError(
                f"model.template_options: found {name!r}, which the chat template of "
                f"{type(processor).__name__} doesn't read; {reads}{near}"
            )
        if not isinstance(value, bool | int | float | str | None):
            raise UserError(
                f"model.template_options.{name}: found {value!r}; expected a text, a number, true or false"
            )
    # Python's and Jinja's literals are alike. Jinja drops the new line, which keeps the first line first.
    defaults = "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif %}}"
        for name, value in options.items()
    )
    changed = {name: f"{defaults}\n{text}" for name, text in templates.items()}
    processor.chat_template = changed if isinstance(processor.chat_template, dict) else changed["default"]
    processor.tokenizer.chat_template = processor.chat_template
