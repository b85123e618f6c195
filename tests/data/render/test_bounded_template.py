"""Chat templates are rendered as transformers renders them, and can't hang or fill the memory."""

import pickle
import re
import resource
import time
import warnings
from datetime import datetime

import pytest
from torch.utils.data import DataLoader
from transformers.utils.chat_template_utils import render_jinja_template

from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.data.render.bounded_template import BoundedTemplate
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.render.templates import TEMPLATES
from lightning_vlm.errors import DataError, UserError
from tests.support.tiny import FAMILIES

MESSAGES = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is <b>this</b>?\n"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Red é 🙂"}]},
    {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
]
OF_JINJA = {
    "loop controls": "{% for m in messages %}{{ m.role }}{% if true %}{% break %}{% endif %}{% endfor %}",
    "loop facts": "{% for m in messages if m.role > 'a' %}{{ loop.length }}{{ loop.previtem }}{% endfor %}",
    "recursive loop": "{% for m in messages recursive %}{{ m.type }}{{ loop(m.content or []) }}{% endfor %}",
    "macro": "{% macro f(a, b='x') %}{{ a ~ b ~ caller() }}{% endmacro %}{% call f('y') %}z{% endcall %}",
    "namespace": "{% set n = namespace(i=0) %}{% for m in 'a' %}{% set n.i = n.i + 1 %}{{ n.i }}{% endfor %}",
    "tojson": "{{ messages | tojson(indent=2) }}{{ messages[1] | tojson }}",
    "filters": "{{ messages[1].content[1].text | trim | upper | replace('IS', 'was') | e }}",
    "map": "{{ messages | map(attribute='role') | join(', ') }}",
    "select": "{{ messages | selectattr('role', 'eq', 'user') | list }}",
    "methods": "{{ 'a b'.split() }}{{ ' x '.strip() + 'y'.rjust(4) + '{:>5}'.format(7) + '%03d' % 7 }}",
    "comparisons": "{{ 1 < 2 <= 2 != 3 }}{{ messages[0].role == 'system' }}{{ 'u' in messages[1].role }}",
    "arithmetic": "{{ 7 // 2 }}{{ 2 ** 10 }}{{ 'ab' * 3 }}{{ [1] * 2 + [3] }}{{ 7 % 4 }}{{ 1.5 * 2 }}",
    "slices": "{{ messages[1:][0].role }}{{ 'hello'[::-1] }}{% set x %}{{ 'a' }}{% endset %}{{ x }}",
    "undefined": "[{{ nothing }}]{{ nothing is defined }}{{ messages[0].nothing }}{{ 'a' ~ nothing }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}",
    "constants": "{{ 'a' ~ 1 ~ none }}{{ 'x' | upper }}\n  {% if add_generation_prompt %}\n z{% endif %}",
    "white space": "  {%- for m in messages -%}  {{- m.role }}  {% endfor %}\n\n",
}


def theirs(template, **options):
    return render_jinja_template(conversations=[MESSAGES], chat_template=template, **options)[0][0]


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("name", [*FAMILIES, *TEMPLATES, *OF_JINJA])
def test_a_template_is_rendered_as_transformers_renders_it(name, generate):
    template = FAMILIES[name].template if name in FAMILIES else {**TEMPLATES, **OF_JINJA}[name]
    if template is None:
        return  # PaliGemma has none
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>"}
    try:
        expected = theirs(template, add_generation_prompt=generate, **tokens)
    except Exception as error:
        with pytest.raises(type(error), match=r"take turns|concatenate|can only"):
            BoundedTemplate(template).render(MESSAGES, add_generation_prompt=generate, **tokens)
        return
    assert BoundedTemplate(template).render(MESSAGES, add_generation_prompt=generate, **tokens) == expected


DOUBLE = "{% set s = ['ab'] %}" + "{% set s = [s, s] %}" * 40
LONG = "{% set s = 'a' * 100000 %}"
NEVER_END = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "all passed over": "{% for i in range(9999) %}{% for j in range(9999) if 0 %}{% endfor %}{% endfor %}",
    "macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "macro without end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for i in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "power": "{% set n = 10 %}{{ n ** (n ** n) }}",
    "squares": "{% set x = 3 %}" + "{% set x = x * x %}" * 40 + "{{ x }}",
    "slices": LONG + "{% for i in range(99999) %}{% set t = s[1:] %}{% endfor %}",
    "compared lists": DOUBLE + DOUBLE.replace("set s", "set t").replace("[s, s]", "[t, t]") + "{{ s == t }}",
    "rounds": "{{ 1 | round(10**9, 'ceil') }}",
    "sum of lists": "{{ ([[1] * 1000] * 1000) | sum(start=[]) | length }}",
}
FILL_MEMORY = {
    "times": "{{ 'a' * 10**9 }}",
    "times a variable": "{% set n = 10**9 %}{{ messages[0].role * n }}",
    "list": "{{ ([1] * 10**9) | length }}",
    "doubled by ~": "{% set s = 'ab' %}" + "{% set s = s ~ s %}" * 40 + "{{ s }}",
    "doubled by +": "{% set s = 'ab' %}" + "{% set s = s + s %}" * 40 + "{{ s }}",
    "doubled in a namespace": "{% set n = namespace(x='a') %}"
    "{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "nested lists": DOUBLE + "{{ s }}",
    "nested lists to JSON": DOUBLE + "{{ s | tojson }}",
    "nested lists to text": DOUBLE + "{{ s | string }}",
    "written by loops": "{% for i in range(99999) %}{% for j in range(99) %}"
    + "many words " * 99
    + "{% endfor %}{% endfor %}",
    "kept by a macro": "{% macro m() %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endmacro %}"
    "{% set t = m() %}",
    "width": "{{ 'x'.ljust(10**10) }}",
    "width of a filter": "{{ 'x' | center(10**9) }}",
    "width of a format": "{{ '{:999999999}'.format(1) }}",
    "width in a format": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "width by %": "{{ '%999999999d' % 1 }}",
    "width by a filter": "{{ '%*d' | format(999999999, 1) }}",
    "replace": LONG + "{{ s.replace('a', s) }}{{ s | replace('a', s) }}",
    "join": LONG + "{{ s.join(s) }}",
    "join filter": LONG + "{{ s | join(s) }}",
    "indent": "{{ 'a\n\n' | indent(10**9) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "JSON": "{{ messages | tojson(indent=10**9) }}",
    "bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "replaced bytes": LONG + "{{ s.encode().replace('a'.encode(), s.encode()) }}",
    "joined bytes": LONG + "{{ s.encode().join(s | map('string') | map('trim') | list) }}",
    "translate": LONG + "{{ s.translate(s.maketrans({'a': s})) }}",
}


@pytest.mark.parametrize("name", [*NEVER_END, *FILL_MEMORY])
def test_a_template_that_never_ends_or_fills_the_memory_is_stopped(name):
    text = {**NEVER_END, **FILL_MEMORY}[name]
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(
        Exception, match=r"it (writes|takes) more than|digits|recursion depth|expected a bytes-like"
    ):
        BoundedTemplate(text).render(MESSAGES)
    assert time.thread_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_long_texts_and_long_chats_are_not_stopped():
    text = "{% for m in messages %}{{ m.role ~ ': ' ~ (m.content[0].text | trim) + '\n' }}{% endfor %}"
    long = [{"role": "user", "content": [{"type": "text", "text": "word " * 400_000}]}]
    assert len(BoundedTemplate(text).render(long)) == 2_000_006
    many = [{"role": "user", "content": [{"type": "text", "text": "word"}]}] * 20_000
    assert len(BoundedTemplate(text).render(many)) == 20_000 * 11


TURN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}"
    "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RAISES = {
    "{{ 1 / (messages | length - messages | length) }}": "ZeroDivisionError: division by zero",
    "{{ messages[5].role }}": "list object has no element 5",
    "{{ 1 + messages[0].role }}": "TypeError: unsupported operand",
    "{{ raise_exception('no\nway') }}": r"line 3: no way",
    "{{ 10.0 ** 400 }}": "OverflowError",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "it calls itself without end",
    "{{ range(10**9) }}": "OverflowError: Range too big",
    "{{ [1, 2] | random }}": "something else each time",
    NEVER_END["nested loops"]: "it takes more than",
    FILL_MEMORY["times"]: "it writes more than",
    "{% include 'a' %}": "TypeError: no loader",
    "{{ messages[0].role.encode('nothing') }}": "LookupError: unknown encoding",
}


def with_template(processor_of, template):
    processor = processor_of("shipped")
    processor.chat_template = template
    return processor


def chat(*texts, source="chat.jsonl:7"):
    roles = ["user", "assistant"] * len(texts)
    return Conversation(
        tuple(Message(role, (Text(text),)) for role, text in zip(roles, texts, strict=False)), source=source
    )


@pytest.mark.parametrize("fault", RAISES)
def test_what_a_template_raises_is_one_line(processor_of, fault):
    """At setup it is the user's error; where only some samples bring it about, those samples'."""
    always = with_template(processor_of, f"line one\nline two\n{fault}{TURN}")
    with pytest.raises(UserError, match=RAISES[fault]) as error:
        Renderer(always)
    assert not isinstance(error.value, DataError)
    assert "\n" not in str(error.value)
    assert "model.chat_template" in str(error.value)
    late = f"line one\nline two\n{{% if messages[0].role == 'system' %}}{fault}{{% endif %}}{TURN}"
    renderer = Renderer(with_template(processor_of, late))
    renderer.example(chat("Q", "A"))
    system = Message("system", (Text("S"),))
    fault_in = Conversation((system, *chat("Q", "A").messages), source="chat.jsonl:7")
    with pytest.raises(DataError, match=RAISES[fault]) as error:
        renderer.example(fault_in)
    assert re.match("chat.jsonl:7: messages: found a conversation (that|at which) the chat", str(error.value))
    assert "\n" not in str(error.value)


class _Rendering:
    def __init__(self, renderer, conversation):
        self.renderer, self.conversation = renderer, conversation

    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            return str(len(self.renderer.example(self.conversation).input_ids))
        except DataError as error:
            return str(error)


def test_a_template_is_stopped_in_a_data_worker_too(processor_of):
    late = f"{{% if messages | length > 2 %}}{NEVER_END['nested loops']}{{% endif %}}{TURN}"
    renderer = Renderer(with_template(processor_of, late))
    conversation = Conversation((Message("system", (Text("S"),)), *chat("Q", "A").messages), source="a:1")
    loader = DataLoader(_Rendering(renderer, conversation), batch_size=None, num_workers=1)
    assert next(iter(loader)).startswith(
        "a:1: messages: found a conversation at which the chat template fails"
    )


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("a\nb\n{% for %}", r"is no Jinja: line 3: Expected an expression"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "is no Jinja: it calls itself"),
        ("  \n ", "has no chat template"),
        ("{% if false %}{{ messages }}{% endif %}", "writes nothing of a single question"),
        ("Hello", "must write once, and in order, each text of a single question"),
        (
            TURN.replace("{{ p.text }}", "{{ p.text }}{{ p.text }}"),
            "must write once, and in order, each text of a single question",
        ),
        (
            TURN.replace("in messages", "in messages[:1]", 1),
            "must write once, and in order, each text of a question and an answer",
        ),
    ],
)
def test_a_template_that_can_never_work_is_refused_at_setup(processor_of, template, reason):
    with pytest.raises(UserError, match=reason) as error:
        Renderer(with_template(processor_of, template))
    assert "\n" not in str(error.value)
    assert not isinstance(error.value, DataError)


LAST = TURN.replace("<|im_end|>", "{% if loop.last or m.role == 'user' %}<|im_end|>{% endif %}", 1)
NOT_LAST = TURN.replace("<|im_end|>", "{% if not loop.last %}<|im_end|>{% endif %}", 1)


@pytest.mark.parametrize(
    ("template", "warning", "ends"),
    [
        (TURN, None, [True, True]),
        (LAST, "ends only the last answer of a chat with '<|im_end|>'", [False, True]),
        (NOT_LAST, "ends every answer but the last one of a chat with '<|im_end|>'", [True, True]),
        (TURN.replace("<|im_end|>", ""), "writes no end-of-turn token", [False, False]),
        (TURN.replace("<image>", ""), "writes no place for a picture (<image>)", [True, True]),
        ("{{ strftime_now('%Y') }}" + TURN, "writes the date", [True, True]),
    ],
)
def test_what_is_suspicious_is_said_once_at_setup(processor_of, template, warning, ends):
    with warnings.catch_warnings(record=True, action="always") as caught:
        renderer = Renderer(with_template(processor_of, template))
        example = renderer.example(chat("Q?", "A", "R?", "B"))
    said = [str(caught_warning.message) for caught_warning in caught]
    assert len(said) == (warning is not None)
    assert warning is None or warning in said[0]
    learned = renderer.tokenizer.decode(example.input_ids[example.kinds >= 4])
    assert learned == "".join(text + "<|im_end|>" * end for text, end in zip("AB", ends, strict=True))


def test_the_date_is_that_of_the_start_in_every_worker():
    template = BoundedTemplate("{{ strftime_now('%d %b %Y %H:%M:%S') }}", datetime(2024, 2, 29, 23, 59, 59))
    assert template.render([]) == "29 Feb 2024 23:59:59"
    assert pickle.loads(pickle.dumps(template)).render([]) == "29 Feb 2024 23:59:59"
    assert template.asked_for_date
