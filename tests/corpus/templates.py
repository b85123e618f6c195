"""Chat templates that are broken, never end, or write what can't be learned from."""

import copy
from collections.abc import Callable

from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.data.render.renderer import Renderer
from tests.corpus.case import Case, Right, learned, renderer

TALK = Conversation(
    (
        Message("system", (Text("Be kind."),)),
        Message("user", (Text("Hi?"),)),
        Message("assistant", (Text("Yes."),)),
    ),
    source="data.jsonl:1",
)


def take(template: str) -> list[str]:
    """Render a conversation with a template."""
    processor = copy.copy(renderer().processor)
    processor.chat_template = template
    return learned(TALK, Renderer(processor, max_length=4096))


def text(template: str) -> Callable[[], str]:
    """A template as it is."""
    return lambda: template


def turn(words: str, before: str = "", loop: str = "messages") -> Callable[[], str]:
    """A template that writes each message so."""
    return lambda: before + "{% for message in " + loop + " %}" + words + "{% endfor %}"


SAID = "{{ message['role'] + '\\n' + message['content'][0]['text'] + '<|im_end|>\\n' }}"
FOREVER = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HUGE = "{{ 'a' * 10**9 }}"

CASES = {
    # Syntax
    "an empty template": Case(
        text(""), "LlavaProcessor has no chat template; name a ready one with model.chat_template (plain,"
    ),
    "an open block": Case(
        text("{% for message in messages %}"),
        "the chat template of LlavaProcessor is no Jinja: line 1: Unexpected end of template.",
    ),
    "an open variable": Case(
        text("{{ messages"),
        "the chat template of LlavaProcessor is no Jinja: line 1: unexpected end of template,",
    ),
    "an unknown tag": Case(
        text("{% while true %}{% endwhile %}"),
        "the chat template of LlavaProcessor is no Jinja: line 1: Encountered unknown tag",
    ),
    "an unknown filter": Case(
        turn("{{ message['role'] | shout }}"),
        "the chat template of LlavaProcessor is no Jinja: line 1: No filter named 'shout'.;",
    ),
    "an unknown test": Case(
        turn("{% if message is odd_one %}{% endif %}"),
        "the chat template of LlavaProcessor can't render a single question: No test named",
    ),
    "an else without if": Case(
        text("{% else %}"), "the chat template of LlavaProcessor is no Jinja: line 1: Encountered unknown tag"
    ),
    "nested 500 deep": Case(
        text("{% if true %}" * 500 + "{% endif %}" * 500),
        "the chat template of LlavaProcessor is no Jinja: it calls itself without end; choose",
    ),
    "brackets nested 2,000 deep": Case(
        text("{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}"),
        "the chat template of LlavaProcessor is no Jinja: it calls itself without end; choose",
    ),
    "a null byte": Case(turn("\0" + SAID), Right(["Be kind.", "Hi?", "Yes."])),
    # Names
    "an unknown variable": Case(
        turn("{{ mesage['role'] }}"),
        "the chat template of LlavaProcessor can't render a single question: 'mesage' is",
    ),
    "an unknown function": Case(
        turn("{{ shout(message) }}"),
        "the chat template of LlavaProcessor can't render a single question: 'shout' is",
    ),
    "an attribute that isn't there": Case(
        turn("{{ message.content.words.first }}"),
        "the chat template of LlavaProcessor can't render a single question: 'list object' has",
    ),
    "a content taken as a text": Case(
        turn("{{ message['role'] + message['content'] + '<|im_end|>' }}"),
        "the chat template of LlavaProcessor can't render a single question: TypeError: can only",
    ),
    "an import": Case(
        text("{% import 'os' as os %}"),
        "the chat template of LlavaProcessor can't render a single question: TypeError: no",
    ),
    "an include": Case(
        text("{% include 'other.jinja' %}"),
        "the chat template of LlavaProcessor can't render a single question: TypeError: no",
    ),
    "an inheritance": Case(
        text("{% extends 'base.jinja' %}"),
        "the chat template of LlavaProcessor can't render a single question: TypeError: no",
    ),
    "private attributes": Case(
        turn("{{ message.__class__.__mro__[1].__subclasses__() }}"),
        "the chat template of LlavaProcessor can't render a single question: access to attribute",
    ),
    # Without end
    "a loop without end": Case(
        text(FOREVER),
        "the chat template of LlavaProcessor can't render a single question: it takes more than",
    ),
    "a macro that calls itself": Case(
        text("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
        "the chat template of LlavaProcessor can't render a single question: it calls itself",
    ),
    "a text of a gigabyte": Case(
        text(HUGE), "the chat template of LlavaProcessor can't render a single question: it writes more than"
    ),
    "a power tower": Case(
        text("{{ 9**9**9 }}"),
        "the chat template of LlavaProcessor must write once, and in order, each text of a",
    ),
    "texts that double": Case(
        text("{% set n = namespace(a='aa') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}{% endfor %}"),
        "the chat template of LlavaProcessor can't render a single question: it writes more than",
    ),
    # Raising
    "an exception of its own": Case(
        text("{{ raise_exception('no tools here') }}"),
        "the chat template of LlavaProcessor can't render a single question: no tools here;",
    ),
    "a division by zero": Case(
        text("{{ 1 / 0 }}"),
        "the chat template of LlavaProcessor can't render a single question: ZeroDivisionError:",
    ),
    "an index out of range": Case(
        text("{{ messages[7]['role'] }}"),
        "the chat template of LlavaProcessor can't render a single question: list object has no",
    ),
    "no system turns": Case(
        turn(
            SAID, "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        ),
        "data.jsonl:1: messages: found a conversation that the chat template refuses (no system",
    ),
    # Wrong texts
    "no texts": Case(
        turn("{{ message['role'] }}"),
        "the chat template of LlavaProcessor must write once, and in order, each text of a",
    ),
    "no roles": Case(
        turn("{{ message['content'][0]['text'] + '<|im_end|>' }}"), Right(["Be kind.", "Hi?", "Yes."])
    ),
    "no end of a turn": Case(
        turn("{{ message['role'] + message['content'][0]['text'] }}"), Right(["Be kind.", "Hi?", "Yes."])
    ),
    "each text twice": Case(
        turn(2 * SAID), "the chat template of LlavaProcessor must write once, and in order, each text of a"
    ),
    "answers in capitals": Case(
        turn(SAID.replace("['text']", "['text'].upper()")),
        "data.jsonl:1: messages: found a text that the chat template changes; expected text that",
    ),
    "answers cut": Case(
        turn(SAID.replace("['text']", "['text'][:2]")),
        "the chat template of LlavaProcessor must write once, and in order, each text of a",
    ),
    "only the first turn": Case(
        turn(SAID, loop="messages[:1]"),
        "the chat template of LlavaProcessor must write once, and in order, each text of a",
    ),
    "turns the wrong way round": Case(
        turn(SAID, loop="messages | reverse"),
        "the chat template of LlavaProcessor must write once, and in order, each text of a",
    ),
    "chance": Case(
        turn(SAID + "{{ [1, 2, 3] | random }}"),
        "the chat template of LlavaProcessor can't render a single question: it writes something",
    ),
    "no jinja at all": Case(
        text("Hi?"), "the chat template of LlavaProcessor must write once, and in order, each text of a"
    ),
}
