"""Tools and reasoning from a file to what is learned, predicted and written: whole runs of a tiny model."""

import json
import pickle
import re
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from transformers import AutoProcessor

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.callbacks.answer_rows import answer_row
from lightning_vlm.data.conversation import Chain, Slice
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.read.readers import read
from lightning_vlm.data.render.split_answers import SplitAnswers, split_answers
from lightning_vlm.data.render.template_options import set_template_options
from lightning_vlm.errors import UserError
from lightning_vlm.inspect.scan import scan_data
from lightning_vlm.kinds import Kind
from lightning_vlm.metrics.answers import generate_answers
from tests.data.render.test_tool_talk import THOUGHT, generated, learned, renderer_with, theirs  # noqa: F401
from tests.support.tiny.talk import TEMPLATES

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore")
TOOL = {"type": "function", "function": {"name": "zoom", "description": "Look."}}
CALL = {"function": {"name": "zoom", "arguments": {"box": [1, 2]}}}


def ask(text):
    return {"role": "user", "content": text}


def say(text, reasoning=None, *calls):
    more = {"reasoning_content": reasoning} if reasoning else {}
    return {"role": "assistant", "content": text, **more, **({"tool_calls": list(calls)} if calls else {})}


RESULT = {"role": "tool", "content": "A cat."}
ROWS = [
    {
        "messages": [ask("What?"), say("A cat.", "Whiskers."), ask("Sure?"), say("Yes.", "Quite.")],
        "task": "vqa",
    },
    {"messages": [ask("What?"), say("", "Look.", CALL), RESULT, say("A cat.")], "tools": [TOOL]},
    {"messages": [ask("Hello?"), say("Hello.")]},
]
"""With a template as Qwen3's the first is two samples: reasoning stands behind the last question alone."""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.fixture
def folder_of_pictures(tmp_path):
    for name in ("street.jpg", "sign.jpg"):
        PIL.Image.new("RGB", (64, 64), "red").save(tmp_path / name)
    return tmp_path


@pytest.fixture
def thinking(model_folder, tmp_path):
    """A module whose template thinks."""

    def make(template="qwen3", **options):
        path = tmp_path / "template.jinja"
        path.write_text(TEMPLATES[template])
        folder = str(model_folder("qwen3_vl"))
        return VLMModule(folder, chat_template=str(path), template_options=options or None)

    return make


def test_each_answer_is_learned_once_as_it_would_be_generated(renderer_with, file):  # noqa: F811
    renderer = renderer_with("qwen3")
    source = read(file)
    samples, line = split_answers(source, renderer)
    names = [sample.source.rpartition("/")[2] for sample in samples]
    assert names == ["talk.jsonl:1#1", "talk.jsonl:1#2", "talk.jsonl:2", "talk.jsonl:3"]
    assert line == (
        "1 of 3 conversations are several samples, 4 in all: the chat template writes answers otherwise once "
        "later turns follow, so that each is learned as the model will write it"
    )
    expected = [
        generated(renderer, conversation, place)
        for conversation in source
        for place, turn in enumerate(conversation.messages)
        if turn.role == "assistant"
    ]
    found = []
    for sample in samples:
        example = renderer.example(sample)
        assert example.input_ids.tolist() == theirs(renderer, sample)
        found += learned(renderer, example)
    assert found == expected
    names, of = samples.task_table()
    assert [names[number] for number in of] == [sample.task for sample in samples]
    assert [sample.source for sample in pickle.loads(pickle.dumps(samples))] == [
        sample.source for sample in samples
    ]


def test_a_template_that_rewrites_nothing_splits_nothing(renderer_with, file):  # noqa: F811
    source = read(file)
    samples, line = split_answers(source, renderer_with("qwen3-vl-instruct"))
    assert samples is source
    assert line is None


def test_nothing_is_read_again_where_there_is_nothing_but_words(renderer_with, file, tmp_path):  # noqa: F811
    """Rows may hold their pictures, so that reading all of them takes long."""
    path = tmp_path / "plain.jsonl"
    path.write_text(json.dumps({"messages": [ask("What?"), say("A cat.")]}))
    plain = read(str(path))
    talk = read(file)
    assert (plain.only_words, talk.only_words) == (True, False)
    assert not Chain([plain, talk]).only_words
    renderer = renderer_with("qwen3-vl-instruct")
    path.unlink()
    for source in (plain, Slice(plain), Chain([plain, plain]), Drawn(size=10**12)):
        assert split_answers(source, renderer) == (source, None)
    with pytest.raises(FileNotFoundError):
        split_answers(plain, renderer_with("qwen3"))


def test_weights_of_turns_decide_how_many_samples_there_are(renderer_with, tmp_path):  # noqa: F811
    row = {"messages": [ask("What?"), {**say("A cat."), "weight": 0}, ask("Sure?"), say("Yes.")]}
    path = tmp_path / "weighed.jsonl"
    path.write_text(json.dumps(row))
    assert len(SplitAnswers(read(str(path)), renderer_with("qwen3"))) == 1


def test_a_run_learns_and_predicts_and_preview_shows_it(thinking, file, tmp_path, capsys):
    module = thinking()
    data = VLMDataModule(train=file, val=file, batch_size=2, batching="tokens", max_tokens=2048)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    samples = data.samples("train")
    assert len(samples) > len(data.source("train"))
    assert len(data.batching.lengths) == len(samples)
    preview = scan_data(module, VLMDataModule(train=file), samples=8)
    assert preview.size == len(samples)
    shown = {sample.conversation.source.rpartition("/")[2]: sample for sample in preview.samples}
    pieces = shown["talk.jsonl:2"].pieces
    text = "".join(piece.text for piece in pieces if piece.weight)
    assert text.startswith("<think>\nLook.\n</think>\n\n<tool_call>\n")
    given = "".join(piece.text for piece in pieces if piece.kind == Kind.INSTRUCTION)
    assert json.dumps(TOOL) in given


def test_options_of_a_template_hold_everywhere(thinking, file, tmp_path):
    module = thinking("qwen3.5", enable_thinking=False)
    saved = tmp_path / "saved"
    module.processor.save_pretrained(saved)
    chat = [ask("Hello?")]
    for processor in (module.processor, AutoProcessor.from_pretrained(saved)):
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        asked = processor.apply_chat_template(chat, add_generation_prompt=True, enable_thinking=True)
        assert asked.endswith("<|im_start|>assistant\n<think>\n")
    assert module.hparams["template_options"] == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enable_thinkng": False}, ": found 'enable_thinkng', .* did you mean 'enable_thinking'"),
        ({"messages": []}, ": found 'messages'"),
        (
            {"enable_thinking": [1]},
            r".enable_thinking: found \[1\]; expected a text, a number, true or false",
        ),
    ],
)
def test_options_that_a_template_does_not_read_are_refused(thinking, options, message):
    with pytest.raises(UserError, match=f"model.template_options{message}"):
        assert thinking("qwen3", **options).processor


def test_options_leave_the_rest_of_a_template_as_it_is(processor_of):
    processor = processor_of("qwen3_vl")
    for text in (
        "  {% if x %}a{% endif %}\nb",
        "\n\nb{{ x }}",
        "{%- macro m() %}{{ x }}{% endmacro %}{{ m() }}",
    ):
        processor.chat_template = text
        expected = processor.apply_chat_template([ask("?")], x=True)
        set_template_options(processor, {"x": True})
        assert processor.apply_chat_template([ask("?")]) == expected


def test_reasoning_is_apart_from_the_answer_and_its_score(thinking, file, monkeypatch):
    """What the model wrote stands in for generation here, which a tiny model can't be made to write."""
    module = thinking("qwen3.5")
    data = VLMDataModule(predict=file, batch_size=3, processor=module.processor)
    batch = data.rendered("predict", learn=False, prompts=True)[[0, 1, 2]]
    assert batch.references == ["Yes.", "A cat.", "Hello."]
    written = ["Quite.\n</think>\n\nYes.<|im_end|>", "It has whisk", "\n</think>\n\nHi.<|im_end|>"]
    tokenizer = module.processor.tokenizer
    ids = tokenizer(written, padding=True, padding_side="right", return_tensors="pt")["input_ids"]

    class Written:
        def generate(self, input_ids, **_):
            return torch.cat([input_ids, ids], dim=1)

    monkeypatch.setattr("lightning_vlm.metrics.answers.told_apart", lambda model, inputs: torch.no_grad())
    monkeypatch.setattr("lightning_vlm.metrics.answers.without_filled_frames", lambda *_: torch.no_grad())
    answers = generate_answers(Written(), module.processor, batch, None)
    assert [(answer.reasoning, answer.text) for answer in answers] == [
        ("Quite.", "Yes."),
        ("It has whisk", ""),
        ("", "Hi."),
    ]
    assert [answer_row(answer)["scores"]["exact_match"] for answer in answers] == [1.0, 0.0, 0.0]
    assert answer_row(answers[0])["reasoning"] == "Quite."
    assert batch.questions[1].text == 'user: What?\nassistant: zoom({"box": [1, 2]})\ntool: A cat.'


def test_what_the_guide_shows(thinking, folder_of_pictures, capsys):
    """Each snippet of docs/thinking-and-tools.md: rows are read and rendered, options taken, code runs."""
    text = (ROOT / "docs/thinking-and-tools.md").read_text("utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert [kind for kind, _ in blocks] == ["json", "json", "yaml", "python"]
    rows = [json.loads(block) for kind, block in blocks if kind == "json"]
    (folder_of_pictures / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = read(str(folder_of_pictures / "rows.jsonl"))
    renderer = VLMDataModule(processor=thinking("qwen3").processor).renderer
    answers = []
    for conversation in split_answers(source, renderer)[0]:
        answers += [
            renderer.tokenizer.decode(ids) for ids in learned(renderer, renderer.example(conversation))
        ]
    assert len(answers) == 4
    for call, answer in (answers[:2], answers[2:]):
        assert call.endswith('"arguments": {"box": [0, 0, 500, 500]}}\n</tool_call><|im_end|>')
        assert call.startswith("<think>\n")
        assert answer.startswith("<think>\n")
        assert answer.endswith("</think>\n\nIt says stop.<|im_end|>")
    options = yaml.safe_load(blocks[2][1])["model"]["template_options"]
    assert thinking("qwen3", **options).processor
    exec(blocks[3][1], {})
    printed = capsys.readouterr().out.strip().splitlines()[-1]
    assert f"# {printed}" in blocks[3][1]
