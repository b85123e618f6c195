"""Chat templates that know tools and reasoning, in the shapes of published ones, for the tiny processors.

They write what the published ones write, for the messages of the tests; the words are our own.
"""

# --- ChatML of the Qwen line. Tools stand in the system turn; results are a turn of the user.
_JSON_CALLS = (
    "You may call one or more functions to assist with the user query.\n\nYou are provided with function "
    "signatures within <tools></tools> XML tags:\n<tools>"
)
_JSON_FORM = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
    "<args-json-object>}\n</tool_call>"
)
_XML_CALLS = "You have access to the following functions:\n\n<tools>"
_XML_FORM = (
    "\n</tools>\n\nTo call one, reply in this form alone:\n\n<tool_call>\n<function=name>\n<parameter=name>\n"
    "value\n</parameter>\n</function>\n</tool_call>"
)
_WORDS = (
    "{% macro words(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "{% if part.type == 'text' %}{{ part.text }}"
    "{% else %}{{ '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' }}{% endif %}"
    "{% endfor %}{% endif %}{% endmacro %}"
)
_JSON_CALL = (
    "{% if said or not loop.first %}{{ '\n' }}{% endif %}"
    '{{ \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}{{ '}\n</tool_call>' }}"
)
_XML_CALL = (
    "{% if said or not loop.first %}{{ '\n\n' if loop.first else '\n' }}{% endif %}"
    "{{ '<tool_call>\n<function=' + call.function.name + '>\n' }}"
    "{% for name, value in call.function.arguments.items() %}"
    "{{ '<parameter=' + name + '>\n' }}"
    "{% if value is mapping or (value is sequence and value is not string) %}{{ value | tojson }}"
    "{% else %}{{ value | string }}{% endif %}{{ '\n</parameter>\n' }}"
    "{% endfor %}{{ '</function>\n</tool_call>' }}"
)


def _chatml(*, xml: bool = False, block: str = "", prompt: str = "", trims: bool = False) -> str:
    """ChatML with tools.

    Args:
        xml: Calls are written as XML (Qwen3.5), or else as JSON (Qwen3-VL).
        block: When an answer to the last question begins with its reasoning, be it empty: a Jinja condition
            over `reasoning` and `loop`. Empty: never.
        prompt: What the generation prompt adds: a Jinja expression.
        trims: Texts are stripped.
    """
    trim = " | trim" if trims else ""
    calls, form = (_XML_CALLS, _XML_FORM) if xml else (_JSON_CALLS, _JSON_FORM)
    thinks = (
        "{% set reasoning = message.reasoning_content if message.reasoning_content is string else '' %}"
        "{% if not reasoning and '</think>' in said %}"
        "{% set reasoning = said.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
        "{% set said = said.split('</think>')[-1].lstrip('\n') %}"
        "{% endif %}"
        f"{{% if loop.index0 > last.question and ({block}) %}}"
        "{{ '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' }}"
        "{% set said = said.lstrip('\n') %}"
        "{% endif %}"
    )
    return (
        _WORDS + "{% set first = words(messages[0].content) if messages[0].role == 'system' else '' %}"
        "{% if tools %}"
        "{{ '<|im_start|>system\n' }}{% if first %}{{ first + '\n\n' }}{% endif %}"
        f"{{{{ {'# Tools' + chr(10) * 2 + calls!r} }}}}"
        "{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}"
        f"{{{{ {form + '<|im_end|>' + chr(10)!r} }}}}"
        "{% elif messages[0].role == 'system' %}{{ '<|im_start|>system\n' + first + '<|im_end|>\n' }}"
        "{% endif %}"
        "{% set last = namespace(question=-1) %}"
        "{% for message in messages %}{% if message.role == 'user' %}"
        "{% set last.question = loop.index0 %}{% endif %}{% endfor %}"
        "{% for message in messages %}"
        f"{{% set said = words(message.content){trim} %}}"
        "{% if message.role == 'user' %}{{ '<|im_start|>user\n' + said + '<|im_end|>\n' }}"
        "{% elif message.role == 'assistant' %}"
        "{{ '<|im_start|>assistant\n' }}"
        f"{thinks if block else ''}"
        "{{ said }}"
        f"{{% for call in message.tool_calls or [] %}}{_XML_CALL if xml else _JSON_CALL}{{% endfor %}}"
        "{{ '<|im_end|>\n' }}"
        "{% elif message.role == 'tool' %}"
        "{% if loop.previtem is undefined or loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}"
        "{% endif %}"
        "{{ '\n<tool_response>\n' + said + '\n</tool_response>' }}"
        "{% if loop.nextitem is undefined or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}"
        f"{{{{ '<|im_start|>assistant\n' + ({prompt or repr('')}) }}}}"
        "{% endif %}"
    )


_OFF = r"'<think>\n\n</think>\n\n' if enable_thinking is defined and not enable_thinking else "
TEMPLATES = {
    "qwen3-vl-instruct": _chatml(),
    "qwen3-vl-thinking": _chatml(block="loop.last or reasoning", prompt=r"'<think>\n'"),
    "qwen3": _chatml(block="loop.last or reasoning", prompt=_OFF + "''"),
    "qwen3.5": _chatml(xml=True, block="true", prompt=_OFF + r"'<think>\n'", trims=True),
}
"""Of Qwen3-VL-Instruct: tools. Of Qwen3-VL-Thinking: tools and reasoning, and its generation prompt begins to
think. Of Qwen3: reasoning that `enable_thinking: false` turns off. Of Qwen3.5: so too, but it is begun."""
