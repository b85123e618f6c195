"""Tools and reasoning: ids by the processor's `apply_chat_template`, masks by what follows a prompt of it."""

import json
import re
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_vlm.data.conversation import Conversation, Image, Message, Text
from lightning_vlm.data.images import load_image
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.render.turns import THINKS_NOTHING, UNLEARNED
from lightning_vlm.data.tools import ToolCall
from lightning_vlm.errors import DataError
from lightning_vlm.kinds import Kind
from tests.data.render.test_renderer import PICTURE
from tests.support.rendering import ANSWERED
from tests.support.tiny.talk import TEMPLATES

pytestmark = pytest.mark.filterwarnings("ignore:the chat template of")
MODEL = "qwen3_vl"
THINKING = [name for name in TEMPLATES if name != "qwen3-vl-instruct"]
TOOL = {
    "type": "function",
    "function": {
        "name": "zoom",
        "description": "Looks closer, at „é“.",
        "parameters": {"type": "object", "properties": {"box": {"type": "array"}}, "required": ["box"]},
    },
}
NASTY = 'a "quote" \\ \n</tool_call> {"x": [1]} é 🙂'
CALL = ToolCall("zoom", {"box": [0, 0.5, 1, 1], "why": NASTY, "deep": {"a": None, "b": True}}, "call_0001")


def user(*parts):
    return Message("user", tuple(Text(part) if isinstance(part, str) else part for part in parts))


def assistant(text="", reasoning=None, *calls, weight=1.0):
    parts = (Text(text),) if text else ()
    return Message("assistant", parts, weight, reasoning, calls)


def tool(*parts):
    return replace(user(*parts), role="tool")


def talk(*messages, tools=(TOOL,)):
    return Conversation(messages, source="talk.jsonl:1", tools=tools)


TALKS = {
    "a call": talk(user(PICTURE, "What is it?"), assistant("", None, CALL)),
    "a call behind words": talk(user("What is it?"), assistant("Let me look.", None, CALL)),
    "two calls": talk(user("What is it?"), assistant("", None, CALL, CALL)),
    "a result": talk(user("What?"), assistant("", None, CALL), tool(NASTY), assistant("A cat.")),
    "two results": talk(
        user("What?"), assistant("", None, CALL, CALL), tool("A cat."), tool("A dog."), assistant("Both.")
    ),
    "a picture as result": talk(
        user(PICTURE, "What?"), assistant("", None, CALL), tool(PICTURE, "Here."), assistant("A cat.")
    ),
    "tools that are not called": talk(user("Hello?"), assistant("Hello.")),
    "several rounds": talk(
        user(PICTURE, "What?"),
        assistant("", None, CALL),
        tool("A cat."),
        assistant("A cat."),
        user("Sure?"),
        assistant("", None, CALL),
        tool("A cat indeed."),
        assistant("Yes."),
    ),
    "a system turn": talk(Message("system", (Text("Be brief."),)), user("What?"), assistant("", None, CALL)),
}
THOUGHT = {
    "reasoning": talk(user(PICTURE, "What?"), assistant("A cat.", "It has\n\nwhiskers."), tools=()),
    "reasoning and a call": talk(user("What?"), assistant("", "Look closer.", CALL)),
    "reasoning around results": talk(
        user(PICTURE, "What?"),
        assistant("", "Look closer.", CALL),
        tool(PICTURE),
        assistant("A cat.", "Whiskers."),
    ),
    "reasoning in each round": talk(
        user("What?"), assistant("A cat.", "Whiskers."), user("Sure?"), assistant("Yes.", "Quite."), tools=()
    ),
    "reasoning of calls in each round": talk(
        user("What?"),
        assistant("One moment.", "Look.", CALL),
        tool("A cat."),
        assistant("A cat.", "Whiskers."),
        user("Sure?"),
        assistant("", "Look again.", CALL),
        tool("A cat."),
        assistant("Yes.", "Quite."),
    ),
    "an answer without reasoning": talk(user("What?"), assistant("A cat."), tools=()),
}


@pytest.fixture(scope="module")
def renderer_with(processor_of):
    """A renderer with a template; with values of its variables."""
    from lightning_vlm.data.render.template_options import set_template_options

    made = {}

    def renderer(template, **options):
        key = (template, *options.items())
        if key not in made:
            processor = processor_of(MODEL)
            processor.chat_template = TEMPLATES[template]
            set_template_options(processor, options)
            made[key] = Renderer(processor)
        return made[key]

    return renderer


def chat(conversation):
    """The messages of a conversation as a person would write them for `apply_chat_template`."""
    turns = []
    for message in conversation.messages:
        parts = [
            {"type": "image", "image": load_image(part, "", "")}
            if isinstance(part, Image)
            else {"type": "text", "text": part.text}
            for part in message.parts
        ]
        turn = {"role": message.role, "content": parts or ""}
        if message.reasoning is not None:
            turn["reasoning_content"] = message.reasoning
        if message.calls:
            turn["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": dict(call.arguments)}}
                for call in message.calls
            ]
        turns.append(turn)
    return turns


def theirs(renderer, conversation, **options):
    """The ids that the processor itself makes of a conversation."""
    batch = renderer.processor.apply_chat_template(
        chat(conversation),
        tools=list(conversation.tools) or None,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **options,
    )
    return batch["input_ids"][0].tolist()


def learned(renderer, example):
    """The ids that weigh something, a list for each unbroken stretch of them."""
    weights = example.turn_weights if example.turn_weights is not None else torch.ones(len(example.kinds))
    stretches, before = [], False
    for token, kind, weight in zip(
        example.input_ids.tolist(), example.kinds.tolist(), weights.tolist(), strict=True
    ):
        now = kind in ANSWERED and weight > 0
        if now and not before:
            stretches.append([])
        if now:
            stretches[-1].append(token)
        before = now
    return stretches


def generated(renderer, conversation, place):
    """What a model generates for the turn at a place, by the processor alone: all behind the prompt."""
    until = replace(conversation, messages=conversation.messages[: place + 1])
    before = replace(conversation, messages=conversation.messages[:place])
    prompt = theirs(renderer, before, add_generation_prompt=True)
    whole = theirs(renderer, until)
    assert whole[: len(prompt)] == prompt
    end = renderer.tokenizer.eos_token_id
    return whole[len(prompt) : len(whole) - whole[::-1].index(end)]


def check(renderer, conversation):
    """Ids are the processor's, what is learned is what it would generate, and all that can be is learned."""
    example = renderer.example(conversation)
    assert example.input_ids.tolist() == theirs(renderer, conversation)
    whole = theirs(renderer, conversation)
    expected = []
    answers = [place for place, turn in enumerate(conversation.messages) if turn.role == "assistant"]
    for place in answers:
        before = replace(conversation, messages=conversation.messages[:place])
        prompt = theirs(renderer, before, add_generation_prompt=True)
        answer = generated(renderer, conversation, place)
        if whole[: len(prompt) + len(answer)] == prompt + answer:
            expected.append(answer)
    assert learned(renderer, example) == expected
    assert len(expected) == len(answers) or UNLEARNED in example.changes
    assert expected[-1] == generated(renderer, conversation, answers[-1])
    return example


CASES = [(template, name) for template in TEMPLATES for name in TALKS]
CASES += [(template, name) for template in THINKING for name in THOUGHT]


@pytest.mark.parametrize(("template", "name"), CASES)
def test_what_is_learned_is_what_the_model_would_generate(renderer_with, template, name):
    check(renderer_with(template), (TALKS | THOUGHT)[name])


@pytest.mark.parametrize("name", TALKS | THOUGHT)
@pytest.mark.parametrize("template", ["qwen3", "qwen3.5"])
def test_thinking_that_is_turned_off(renderer_with, template, name):
    """The prompt ends with an empty block then. An answer with reasoning doesn't go on from there."""
    renderer = renderer_with(template, enable_thinking=False)
    conversation = (TALKS | THOUGHT)[name]
    if conversation.messages[-1].reasoning is not None:
        with pytest.raises(
            DataError, match=r"talk.jsonl:1: messages\[\d\]: found an answer that .* begins with"
        ):
            renderer.example(conversation)
    else:
        example = check(renderer, conversation)
        assert "think" not in renderer.tokenizer.decode(learned(renderer, example)[-1])


def test_calls_and_their_form_are_learned_and_results_are_not(renderer_with):
    renderer = renderer_with("qwen3-vl-instruct")
    example = renderer.example(TALKS["a result"])
    call, answer = [renderer.tokenizer.decode(ids) for ids in learned(renderer, example)]
    arguments = json.dumps(dict(CALL.arguments), ensure_ascii=False)
    assert call == f'<tool_call>\n{{"name": "zoom", "arguments": {arguments}}}\n</tool_call><|im_end|>'
    assert answer == "A cat.<|im_end|>"
    shown = renderer.tokenizer.decode(example.input_ids[example.kinds == Kind.INSTRUCTION])
    assert "# Tools" in shown
    assert json.dumps(TOOL, ensure_ascii=False) in shown
    assert shown.endswith(f"What?{NASTY}")


def test_marks_of_reasoning_around_nothing_are_said(renderer_with):
    plain = THOUGHT["an answer without reasoning"]
    assert renderer_with("qwen3").example(plain).changes == (THINKS_NOTHING,)
    assert renderer_with("qwen3", enable_thinking=False).example(plain).changes == ()
    assert renderer_with("qwen3").example(THOUGHT["reasoning"]).changes == ()
    assert renderer_with("qwen3-vl-instruct").example(plain).changes == ()


def test_reasoning_of_the_last_answer_is_learned_behind_what_the_prompt_begins(renderer_with):
    conversation = THOUGHT["reasoning in each round"]
    ends = {
        "qwen3-vl-thinking": "Quite.\n</think>\n\nYes.<|im_end|>",
        "qwen3": "<think>\nQuite.\n</think>\n\nYes.<|im_end|>",
        "qwen3.5": "Quite.\n</think>\n\nYes.<|im_end|>",
    }
    for template, expected in ends.items():
        renderer = renderer_with(template)
        (stretch,) = learned(renderer, renderer.example(conversation))
        assert renderer.tokenizer.decode(stretch) == expected


@pytest.mark.parametrize("template", THINKING)
@pytest.mark.parametrize(
    "written", ["<think>\nWhiskers.\n</think>\n\nA cat.", "<think>\n\n</think>\n\nA cat."]
)
def test_reasoning_in_the_text_is_reasoning(renderer_with, template, written):
    renderer = renderer_with(template)
    conversation = talk(user("What?"), assistant(written), user("Sure?"), assistant(written), tools=())
    example = check(renderer, conversation)
    apart = assistant("A cat.", "Whiskers." if "Whiskers" in written else None)
    same = renderer.example(talk(user("What?"), apart, user("Sure?"), apart, tools=()))
    assert torch.equal(example.input_ids, same.input_ids)
    assert renderer.prompt(conversation)[1] == "A cat."


def test_where_a_template_knows_no_reasoning_it_is_text_or_refused(renderer_with):
    renderer = renderer_with("qwen3-vl-instruct")
    written = "<think>\nWhiskers.\n</think>\n\nA cat."
    check(renderer, talk(user("What?"), assistant(written), tools=()))
    with pytest.raises(DataError) as caught:
        renderer.example(THOUGHT["reasoning"])
    assert str(caught.value) == (
        "talk.jsonl:1: messages[1].reasoning: found reasoning, which the chat template leaves out; expected "
        "another template (model.chat_template), or <think>...</think> in the words of the answer"
    )


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_and_references(renderer_with, template):
    renderer = renderer_with(template)
    for name, conversation in (TALKS if template == "qwen3-vl-instruct" else TALKS | THOUGHT).items():
        prompt, reference = renderer.prompt(conversation)
        before = replace(conversation, messages=conversation.messages[:-1])
        assert prompt.input_ids.tolist() == theirs(renderer, before, add_generation_prompt=True), name
        answer = renderer.tokenizer.decode(generated(renderer, conversation, len(conversation.messages) - 1))
        assert reference == re.sub(r".*</think>|<\|im_end\|>", "", answer, flags=re.DOTALL).strip()


@pytest.mark.parametrize(
    ("conversation", "key"),
    [
        (
            talk(user("?"), assistant("", None, ToolCall("zoom", {"a": ["x<|im_end|>"]}))),
            "messages[1].tool_calls[0]",
        ),
        (
            talk(user("?"), assistant("", None, ToolCall("zoom", {"<|image_pad|>": 1}))),
            "messages[1].tool_calls[0]",
        ),
        (talk(user("?"), assistant("", None, ToolCall("\ue000", {}))), "messages[1].tool_calls[0]"),
        (talk(user("?"), assistant("!"), tools=({"function": {"name": "<|im_start|>"}},)), "tools[0]"),
    ],
)
def test_calls_and_definitions_can_forge_nothing(renderer_with, conversation, key):
    for render in (renderer_with("qwen3").example, renderer_with("qwen3").prompt):
        with pytest.raises(DataError, match="found a text that spells") as caught:
            render(conversation)
        assert (caught.value.source, caught.value.key) == ("talk.jsonl:1", key)


def test_weights_of_turns_hold_for_all_that_the_turn_writes(renderer_with):
    renderer = renderer_with("qwen3-vl-instruct")
    call, answer = assistant("", None, CALL, weight=0.5), assistant("A cat.", weight=2.0)
    example = renderer.example(talk(user("What?"), call, tool("A cat."), answer))
    answered = torch.isin(example.kinds, torch.tensor(ANSWERED))
    for weight, starts in ((0.5, "<tool_call>"), (2.0, "A cat.")):
        ids = example.input_ids[answered & (example.turn_weights == weight)]
        text = renderer.tokenizer.decode(ids)
        assert text.startswith(starts)
        assert text.endswith("<|im_end|>")
    unlearned = renderer.example(talk(user("What?"), replace(call, weight=0.0), tool("A cat."), answer))
    assert [renderer.tokenizer.decode(ids) for ids in learned(renderer, unlearned)] == ["A cat.<|im_end|>"]


def test_the_fields_of_results_reach_the_template(processor_of):
    """As Mistral's template asks for them."""
    processor = processor_of(MODEL)
    processor.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% for call in m.tool_calls or [] %}{{ call.id + call.function.name }}{% endfor %}"
        "{{ (m.tool_call_id or '') + (m.name or '') }}"
        "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    renderer = Renderer(processor)
    result = replace(tool("A cat."), call_id="call_0001", name="zoom")
    example = renderer.example(talk(user("What?"), assistant("", None, CALL), result, assistant("Yes.")))
    text = renderer.tokenizer.decode(example.input_ids)
    assert (
        "<|im_start|>assistant\ncall_0001zoom<|im_end|>\n<|im_start|>tool\ncall_0001zoomA cat.<|im_end|>"
        in text
    )
    assert [renderer.tokenizer.decode(ids) for ids in learned(renderer, example)] == [
        "call_0001zoom<|im_end|>",
        "Yes.<|im_end|>",
    ]


def test_published_thinking_templates_get_no_warning(processor_of):
    for template in TEMPLATES.values():
        processor = processor_of(MODEL)
        processor.chat_template = template
        with warnings.catch_warnings(record=True, action="always") as found:
            Renderer(processor)
        assert not [str(warning.message) for warning in found if "the chat template" in str(warning.message)]


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).map(str.strip).filter(bool)
TEXTS = WORDS | st.sampled_from(["<|im_end|>", "<think>", "a  b", "{{ x }}", "</tool_call>", '"', "\\n"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | WORDS.filter(lambda text: not ("\ue000" <= max(text) <= "\uf8ff")),
    lambda values: st.lists(values, max_size=2) | st.dictionaries(st.sampled_from("ab"), values, max_size=2),
    max_leaves=4,
)
CALLS = st.builds(
    ToolCall, st.sampled_from(["zoom", "look"]), st.dictionaries(st.sampled_from("xyz"), VALUES)
)


@st.composite
def talks(draw):
    messages = []
    for _ in range(draw(st.integers(1, 2))):
        messages.append(user(*[PICTURE] * draw(st.integers(0, 1)), draw(TEXTS)))
        for _ in range(draw(st.integers(0, 2))):
            calls = draw(st.lists(CALLS, min_size=1, max_size=2))
            said = draw(st.just("") | WORDS)
            messages.append(assistant(said, draw(st.none() | WORDS), *calls))
            messages += [tool(draw(TEXTS)) for _ in calls]
        messages.append(assistant(draw(WORDS), draw(st.none() | WORDS)))
    return talk(*messages, tools=draw(st.sampled_from([(), (TOOL,)])))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(template=st.sampled_from(sorted(THINKING)), conversation=talks())
def test_any_talk_is_exact_or_refused(renderer_with, template, conversation):
    renderer = renderer_with(template)
    try:
        example = renderer.example(conversation)
    except DataError as error:
        if error.found != "a text that the chat template changes":  # it reads `</think>` itself
            raise
        return
    spelled = any(
        renderer.special.pattern.search(part.text)
        for m in conversation.messages
        for part in m.parts
        if isinstance(part, Text)
    )
    if not spelled:
        check(renderer, conversation)
    answers = [place for place, turn in enumerate(conversation.messages) if turn.role == "assistant"]
    assert learned(renderer, example)[-1] == generated(renderer, conversation, answers[-1])
