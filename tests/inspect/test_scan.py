"""What a preview counts and keeps, compared with the processor's own `apply_chat_template` and with tokens
counted by hand."""

import io
import json
import re

import PIL.Image
import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.callbacks.token_weight_schedule import TokenWeightSchedule
from lightning_vlm.data.conversation import Box, Conversation, Image, Message, Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.inspect.page import page as render_page
from lightning_vlm.inspect.scan import choose, scan_data
from lightning_vlm.inspect.summary import length_bins
from lightning_vlm.inspect.tokens import pieces
from lightning_vlm.kinds import Kind
from lightning_vlm.losses.weights import KindWeights
from tests.inspect.samples import (
    END,
    WORLD,
    ListSource,
    chat,
    count_tokens,
    learned_stretches,
    png,
    preview_of,
    printed,
    template_text,
)


def test_tokens_with_weight_are_the_answers_and_their_ends(module):
    conversation = chat("Hello?", "Good day.", "And  now?\n", " Still\n\tgood. ")
    (sample,) = preview_of(module, conversation).samples
    assert learned_stretches(sample) == [f"Good day.{END}", f" Still\n\tgood. {END}"]
    assert "".join(piece.text for piece in sample.pieces) == template_text(module, conversation)


def test_weights_of_kinds_and_sample(module):
    answer = ("A ", Text("cat", entity=True), " at ", Box((0.1, 0.2, 0.3, 0.4)), " .")
    picture = png(PIL.Image.new("RGB", (64, 64)))
    (sample,) = preview_of(module, chat((picture, "Where?"), answer, weight=0.5)).samples
    shown = {
        weight: "".join(piece.text for piece in sample.pieces if piece.weight == weight)
        for weight in (0.5, 0.75, 1.0)
    }
    assert shown == {0.5: f"A at .{END}", 0.75: " cat", 1.0: " [100, 200, 300, 400]"}
    image = [piece for piece in sample.pieces if piece.kind == Kind.IMAGE]
    assert [(piece.text, piece.ids, piece.weight) for piece in image] == [("image ×16", [3] * 16, 0.0)]


def test_weights_of_turns_and_what_was_done_to_them_are_shown_at_80_columns(module, processor_of):
    ask, more = Message("user", (Text("What?"),)), Message("user", (Text("Sure?"),))
    wrong = Message("assistant", (Text("Blue."),), weight=0.0)
    right = Message("assistant", (Text("Red."),), weight=2.0)
    apart = Conversation((ask, wrong, more, right, ask), source="t:1")
    preview = preview_of(module, apart)
    (sample,) = preview.samples
    assert learned_stretches(sample) == [f"Red.{END}"]
    assert {piece.weight for piece in sample.pieces} == {0.0, 2.0}
    for shown in (printed(preview, 80), render_page(preview)):
        assert "weights of its answers 0, 2, turns after the last answer dropped" in shown
        assert "in 1 of 1 sample read turns come after the last answer; they are dropped" in shown
    lines = printed(preview, 80).splitlines()
    assert "  Blue.<|im_end|>↵" in lines
    assert f"  ⟦Red.{END}⟧×2↵" in lines

    data = VLMDataModule(
        train=ListSource(Conversation((wrong, ask, more, right), source="t:2")),
        processor=processor_of("gemma3"),
    )
    preview = scan_data(module, data)
    shown = printed(preview, 80)
    assert "  ⟦Red.<end_of_turn>⟧×2↵" in shown
    assert "turns of one role merged" in shown
    assert "empty user turn added" in shown
    assert "  What?↵\n  Sure?<end_of_turn>↵" in shown


def test_a_text_that_is_too_long_to_be_counted_does_not_stop_it(module):
    long = chat("What?", "A red square. " * 100_000, source="t:9")
    preview = preview_of(module, chat("What?", "Red."), long, max_length=100)
    assert [skipped.error.source for skipped in preview.skipped] == ["t:9"]
    assert preview.skipped[0].length == 262_144
    assert "too long (1)" in printed(preview)


def test_both_views_write_the_weights(module):
    answer = ("A ", Text("cat", entity=True), " sat.")
    preview = preview_of(module, chat("What?", answer))
    assert f"⟦A⟧⟦·cat⟧×1.5⟦·sat.{END}⟧↵" in printed(preview)
    assert re.findall(r"t</span><sup class=mark>×([\d.]+)</sup><span", render_page(preview)) == ["1.5"]
    assert render_page(preview).count("<sup") == 1


def test_weights_at_any_progress(module):
    schedule = TokenWeightSchedule(
        [{"at": 0, "instruction": 1.0}, {"at": 0.5, "instruction": 0.25}, {"at": 1, "instruction": 0.0}]
    )
    data, own = VLMDataModule(train=ListSource(chat("Hello?", "Hi."))), module.token_weights
    for progress, weight in ((0, 1), (0.49, 1), (0.5, 0.25), (0.99, 0.25), (1, 0)):
        preview = scan_data(module, data, schedule=schedule, progress=progress)
        (sample,) = preview.samples
        assert learned_stretches(sample) == (["Hello?"] if weight else []) + [f"Hi.{END}"]
        assert {piece.weight for piece in sample.pieces if piece.kind == Kind.INSTRUCTION} == {weight}
        assert preview.kind_weight(Kind.INSTRUCTION) == weight
        assert preview.by_kind()[Kind.INSTRUCTION].learned == (
            count_tokens(module, "Hello?") if weight else 0
        )
        note = f"weights are those at {progress:.0%} of training; instruction goes by steps: 1 at 0%, 0.25 at"
        assert note in printed(preview)
        assert note in render_page(preview)
        assert module.token_weights is own
    assert "no TokenWeightSchedule" in printed(scan_data(module, data, progress=0.5))
    assert "TokenWeightSchedule" not in printed(scan_data(module, data))
    with pytest.raises(UserError, match="progress: found 50; expected a fraction"):
        scan_data(module, data, schedule=schedule, progress=50)


def test_what_nothing_predicts_has_no_weight():
    module = VLMModule("drawn-vlm", token_weights=KindWeights(special=1.0, instruction=1.0))
    (sample,) = preview_of(module, chat("Hello?", "Hi.")).samples
    assert [piece.weight for piece in sample.pieces] == [0.0] + [1.0] * (len(sample.pieces) - 1)


@pytest.mark.parametrize("name", ["shipped", "llava", "qwen2_5_vl"])
@pytest.mark.filterwarnings("ignore:the chat template of")
def test_characters_of_several_tokens_stay_whole(name, processor_of):
    processor = processor_of(name)
    example = Renderer(processor).example(chat(WORLD, WORLD))
    shown = pieces(processor.tokenizer, example.input_ids, example.kinds, torch.zeros(len(example.kinds)))
    assert "".join(piece.text for piece in shown) == processor.tokenizer.decode(
        example.input_ids, clean_up_tokenization_spaces=False
    )
    assert not any("\ufffd" in piece.text for piece in shown)
    assert [token for piece in shown for token in piece.ids] == example.input_ids.tolist()


def test_a_space_that_a_tokenizer_drops_in_front_is_kept_between_words():
    tokenizer = Tokenizer(models.WordLevel({"▁Good": 0, "▁day": 1}, unk_token="▁day"))
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    kinds = torch.tensor([Kind.INSTRUCTION, Kind.RESPONSE, Kind.RESPONSE])
    shown = pieces(fast, torch.tensor([0, 1, 1]), kinds, kinds.eq(Kind.RESPONSE).float())
    assert fast.decode([1]) == "day"  # by itself it would lose its space
    assert [piece.text for piece in shown] == ["Good", " day", " day"]


def test_counts_are_those_of_the_source(module):
    source = Drawn(size=40, tasks=["vqa", "ocr"])
    preview = preview_of(module, source)
    tokens = dict.fromkeys(("vqa", "ocr"), 0)
    answers = dict.fromkeys(("vqa", "ocr"), 0)
    for conversation in source:
        turns, pictures = [], []
        for message in conversation.messages:
            content = []
            for part in message.parts:
                if isinstance(part, Image):
                    pictures.append(PIL.Image.open(io.BytesIO(part.data)))
                    content.append({"type": "image"})
                else:
                    content.append({"type": "text", "text": part.text})
            turns.append({"role": message.role, "content": content})
            if message.role == "assistant":
                text = "".join(part["text"] for part in content)
                answers[conversation.task] += count_tokens(module, text + END)
        text = module.processor.apply_chat_template(turns)
        tokens[conversation.task] += len(module.processor(text=[text], images=pictures)["input_ids"][0])
    rows = {row.name: row for row in preview.by_task()}
    assert {name: row.tokens for name, row in rows.items()} == tokens
    assert {name: row.learned for name, row in rows.items()} == answers
    assert preview.total.weight == preview.total.learned == sum(answers.values())
    kinds = preview.by_kind()
    assert kinds[Kind.IMAGE].tokens == 40 * 16
    assert [kinds[kind].learned for kind in Kind] == [0, 0, 0, 0, sum(answers.values()), 0, 0]
    shown = printed(preview)
    both = sum(answers.values()), sum(tokens.values())
    share = f"{100 * both[0] / both[1]:.1f}% of the tokens are learned: {both[0]:,} of {both[1]:,}, in all 40"
    assert share in shown
    assert share in render_page(preview)
    for task in tokens:
        shares = f"{100 * answers[task] / tokens[task]:.1f}%", f"{100 * answers[task] / both[0]:.1f}%"
        assert re.search(rf"^ *{task} .* {shares[0]} +{shares[1]} *$", shown, re.MULTILINE)
        assert re.search(
            rf"<td>{task}</td>[^\n]*?<td>{shares[0]}</td><td>{shares[1]}</td></tr>", render_page(preview)
        )


def test_what_is_read_lies_spread_and_hides_no_rhythm(module):
    source = ListSource(*(chat("?", "!", task="even" if place % 2 == 0 else "odd") for place in range(200)))
    preview = preview_of(module, source, scan=20)
    assert [stats.index // 10 for stats in preview.stats] == list(range(20))
    assert {row.name for row in preview.by_task()} == {"even", "odd"}  # every tenth would be even
    assert (preview.read, preview.size, len(preview.samples)) == (20, 200, 8)


def test_every_sort_is_shown(module):
    picture = png(PIL.Image.new("RGB", (8, 8)))
    common = [chat("?", "!", task="a") for _ in range(30)]
    preview = preview_of(
        module,
        *common,
        chat((picture, "?"), "!", task="a"),
        chat("?", "!", task="b"),
        samples=4,
    )
    assert [(sample.stats.task, sample.stats.pictures) for sample in preview.samples] == [("a", 0)] * 2 + [
        ("a", 1),
        ("b", 0),
    ]
    assert len({sample.stats.index for sample in preview.samples}) == 4
    assert choose(preview.stats, 0) == []
    assert len(choose(preview.stats, 99)) == 32


def test_what_does_not_fit_is_cut_or_left_out_and_reported(module):
    short, more = (
        chat("Hello?", "Hi.", source="t:1"),
        chat("Hello?", "Hi.", "And?", "more " * 30, source="t:2"),
    )
    never = chat("Hello?", "much " * 60, source="t:3")
    lengths = [
        count_tokens(module, template_text(module, conversation)) for conversation in (short, more, never)
    ]
    limit = lengths[0] + 3
    preview = preview_of(module, short, more, never, max_length=limit)
    assert sorted(preview.lengths()) == sorted(zip(lengths, ("kept", "truncated", "skipped"), strict=True))
    assert preview.total.tokens == 2 * lengths[0]
    assert sum(bin.total for bin in length_bins(preview)) == 3
    for bin in length_bins(preview):
        inside = [bin.start <= length < bin.stop for length in lengths]
        assert [bin.counts[fate] for fate in ("kept", "truncated", "skipped")] == list(map(int, inside))
    for shown in (printed(preview, 160), render_page(preview)):
        for words in (
            f"max_length {limit}",
            "2 exceed",
            "Cut to fit by whole rounds: 1 of 3 read (33.3%)",
            "Left out: 1 of 3 read (33.3%): too long (1)",
            "its end is cut off: 2 of 4 messages",
            "t:3",
        ):
            assert words in shown


def test_bad_samples_stop_it_or_are_counted(module, tmp_path):
    good, bad = chat("?", "!"), chat((Image(data=b"none"), "?"), "!", source="bad:7")
    with pytest.raises(DataError, match="bad:7"):
        preview_of(module, good, bad)
    preview = preview_of(module, good, bad, on_bad_sample="skip")
    assert preview.reasons() == {"bad messages[*].content[*]": 1}
    for shown in (printed(preview, 200), render_page(preview)):
        assert "bad:7" in shown
        assert "not a picture" in shown
    # One that the source leaves out before anything is read.
    lines = [
        json.dumps({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]})
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([*lines * 2, '{"mesages": []}']))
    preview = scan_data(module, VLMDataModule(train=str(path), on_bad_sample="skip"))
    assert (preview.size, len(preview.skipped_at_opening)) == (2, 1)
    assert "Left out when the data was opened: 1 of all" in printed(preview)
    assert "data.jsonl:3" in render_page(preview)


def test_what_teaches_nothing_is_noted(module):
    preview = preview_of(module, chat("?", "!", weight=0.0), chat("?", "!"))
    (note,) = preview.notes
    assert "1 of the samples that were read teach nothing" in note
    assert "teach nothing" in printed(preview)
    assert "teach nothing" in render_page(preview)


def test_nothing_is_left(module):
    preview = preview_of(module, chat("Hello?", "Hi."), max_length=3)
    assert (preview.total.tokens, preview.samples) == (0, [])
    assert "Left out: 1 of 1" in printed(preview)
    assert "Left out: 1 of 1" in render_page(preview)


@pytest.mark.parametrize(("samples", "scan"), [(-1, 10), (1, 0)])
def test_odd_numbers_are_refused(module, samples, scan):
    with pytest.raises(UserError, match="expected at least 0 and 1"):
        preview_of(module, chat("?", "!"), samples=samples, scan=scan)
