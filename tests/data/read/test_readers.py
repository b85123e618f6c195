import base64
import json
import pickle
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader

from lightning_vlm.data.conversation import Box, Chain, Conversation, Image, Message, Slice, Text
from lightning_vlm.data.images import load_image
from lightning_vlm.data.read.faults import skip_summary, write_skip_report
from lightning_vlm.data.read.hf_dataset import HFDataset
from lightning_vlm.data.read.readers import LLaVA, Messages, OpenAIMessages, read
from lightning_vlm.errors import DataError, UserError
from tests.support.rows import ANSWER, CAT, GPT, HUMAN, QUESTION, image_url

pytestmark = pytest.mark.usefixtures("folder")


BASE64 = base64.b64encode(b"picture").decode()

PLAIN = {"messages": [QUESTION, ANSWER]}


def test_messages(write):
    rich = [
        {"type": "text", "text": "Is "},
        {"type": "image", "path": "cat.png"},
        {"type": "text", "text": " as "},
        {"type": "image", "base64": BASE64},
        {"type": "box", "box": [0, 0.25, 0.5, 1]},
    ]
    sample = {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": rich},
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "A "}, {"type": "entity", "text": "cat"}],
            },
            {"role": "user", "content": "Spell <image> and <|im_end|>."},
            {"role": "assistant", "content": "<image> <|im_end|>"},
        ],
        "task": "vqa",
        "weight": 2,
    }
    source = Messages(write(PLAIN, "", sample))
    assert len(source) == 2
    asked = (Text("Is "), Image(Path("cat.png"), root=Path(".")), Text(" as "), Image(data=b"picture"))
    assert (
        source[1]
        == source[-1]
        == Conversation(
            (
                Message("system", (Text("Be kind."),)),
                Message("user", (*asked, Box((0.0, 0.25, 0.5, 1.0)))),
                Message("assistant", (Text("A "), Text("cat", entity=True))),
                Message("user", (Text("Spell <image> and <|im_end|>."),)),
                Message("assistant", (Text("<image> <|im_end|>"),)),
            ),
            task="vqa",
            weight=2.0,
            source="data.jsonl:3",
        )
    )
    assert [sample.source for sample in source] == ["data.jsonl:1", "data.jsonl:3"]
    with pytest.raises(IndexError):
        source[2]


def test_image_root(write):
    record = {"image": "dog.png", "conversations": [{"from": "human", "value": "<image>"}, GPT]}
    Path("texts").mkdir()
    path = write(record, path="texts/data.jsonl")
    (conversation,) = LLaVA(path, image_root="pictures")
    assert load_image(conversation.images[0], conversation.source, "image").getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(DataError, match="below the image root 'texts'"):
        LLaVA(path)
    with pytest.raises(DataError, match="outside"):
        LLaVA(write({**record, "image": "../cat.png"}, path="texts/data.jsonl"), image_root="pictures")


@pytest.mark.parametrize("reader", [Messages, OpenAIMessages, LLaVA, HFDataset])
def test_the_command_line_can_make_it(reader):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(reader, "source", instantiate=False)
    wanted = {"path": "data.jsonl", "image_root": "pictures", "on_bad_sample": "skip"}
    config = parser.parse_args([f"--source.{key}={value}" for key, value in wanted.items()])
    assert {key: config.source[key] for key in wanted} == wanted


def test_sources_go_to_spawned_workers(write):
    records = [{"messages": [{"role": "user", "content": str(n)}, ANSWER]} for n in range(20)]
    source = Messages(write(*records, "{"), on_bad_sample="skip")
    assert len(pickle.dumps(source)) < 2000
    copy = pickle.loads(pickle.dumps(source))
    assert list(copy) == list(source)
    assert str(copy.skipped) == str(source.skipped)
    loader = DataLoader(source, batch_size=8, num_workers=1, multiprocessing_context="spawn", collate_fn=list)
    assert [sample for batch in loader for sample in batch] == list(source)


def test_one_file_may_hold_several_formats(write):
    ours = {"role": "user", "content": [{"type": "image", "path": "cat.png"}]}
    theirs = {"role": "user", "content": [{"type": "text", "text": "image_url"}, image_url("cat.png")]}
    records = [
        PLAIN,
        {"messages": [ours, ANSWER]},
        {"messages": [theirs, ANSWER], "id": 3},
        {"conversations": [HUMAN, GPT]},
    ]
    Path("data.json").write_text(json.dumps(records))
    for source in (read(write(*records)), read("data.json")):
        assert [len(conversation.images) for conversation in source] == [0, 1, 1, 0]
    (conversation,) = read(write("{", {"messages": [theirs]}), on_bad_sample="skip")
    assert conversation.images[0].path == CAT
    with pytest.raises(DataError, match=r"data.jsonl:1: column 2"):
        read(write("{", PLAIN))
    with pytest.raises(DataError, match=r"did you mean 'messages'"):
        read(write({"mesages": []}))


def test_skipped_samples_are_counted_listed_and_saved(write):
    bad = [{**PLAIN, "weight": -1}, "{", {"messages": [{**QUESTION, "role": "\ud800"}]}]
    source = Messages(write(PLAIN, *bad, PLAIN), on_bad_sample="skip")
    assert [sample.source for sample in source] == ["data.jsonl:1", "data.jsonl:5"]
    assert [error.source for error in source.skipped] == ["data.jsonl:2", "data.jsonl:3", "data.jsonl:4"]
    assert Chain([Slice(source, stop=1), source]).skipped == 2 * source.skipped
    summary = skip_summary(source.skipped)
    assert summary.startswith(
        "3 bad: weight (1), column * (1), messages[*].role (1); the first is data.jsonl:2"
    )
    assert "\n" not in summary
    assert skip_summary([]) == "none bad"
    write_skip_report(source.skipped, "new/report.jsonl")
    rows = [json.loads(line) for line in Path("new/report.jsonl").read_text("utf-8").splitlines()]
    assert [DataError(**row).args for row in rows] == [error.args for error in source.skipped]
    assert rows[0] == {
        "source": "data.jsonl:2",
        "key": "weight",
        "found": "-1.0",
        "expected": "a finite number >= 0",
    }


def test_nothing_is_left_after_skipping(write):
    with pytest.raises(UserError, match=r"data.jsonl: no sample is left; 2 bad: .*data.jsonl:1"):
        Messages(write("{", "}"), on_bad_sample="skip")


def test_an_unknown_policy_for_bad_samples_is_refused(write):
    with pytest.raises(UserError, match="on_bad_sample is 'ignore'; choose 'raise' or 'skip'"):
        Messages(write(PLAIN), on_bad_sample="ignore")
