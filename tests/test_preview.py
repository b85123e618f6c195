"""A preview is held against the processor's own `apply_chat_template`, against tokens counted by hand, and
its page is read back by Python's HTML parser."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from PIL import ImageChops
from rich.console import Console
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.callbacks.token_weight_schedule import TokenWeightSchedule
from lightning_vlm.cli import main
from lightning_vlm.data.conversation import Box, Conversation, Conversations, Image, Message, Text
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.inspect import terminal
from lightning_vlm.inspect.look import choose, look
from lightning_vlm.inspect.page import page
from lightning_vlm.inspect.tokens import Piece, pieces
from lightning_vlm.kinds import Kind
from lightning_vlm.losses.weights import KindWeights
from lightning_vlm.models.loading.load import SHIPPED

END = "<|im_end|>"
NASTY = (
    "<script>alert('x')</script> [bold]&amp;\u202e \x1b[31m\u00a0 <image> <|im_start|> http://x.example/a.png"
)
WORLD = "这是一个红色的正方形。👩‍👩‍👧‍👦🙂 مربع أحمر שלום é"


class Given(Conversations):
    """A list as a source."""

    def __init__(self, *conversations):
        self.all = conversations

    def __len__(self):
        return len(self.all)

    def __getitem__(self, index):
        return self.all[index]


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return Image(data=file.getvalue())


def talk(*turns, **fields):
    """Turns of the user and the assistant by turns, each a text or a tuple of parts."""
    roles = ["user", "assistant"] * len(turns)
    messages = []
    for role, turn in zip(roles, turns, strict=False):
        parts = turn if isinstance(turn, tuple) else (turn,)
        messages.append(Message(role, tuple(Text(one) if isinstance(one, str) else one for one in parts)))
    return Conversation(tuple(messages), **{"source": "talk:1", **fields})


@pytest.fixture(scope="module")
def module():
    """The shipped model's module; its weights are never loaded."""
    made = VLMModule("drawn-vlm")
    yield made
    assert made.model is None


def seen(module, *conversations, scan=1000, samples=8, **options):
    source = conversations[0] if isinstance(conversations[0], Conversations) else Given(*conversations)
    return look(module, VLMDataModule(train=source, **options), samples, scan)


def learned(sample):
    """The text of each unbroken stretch of tokens with weight."""
    stretches, before = [], False
    for piece in sample.pieces:
        if piece.weight:
            stretches.append(stretches.pop() + piece.text if before else piece.text)
        before = bool(piece.weight)
    return stretches


def whole_text(module, conversation):
    """A conversation of texts alone as the processor's own template writes it."""
    turns = [
        {"role": one.role, "content": [{"type": "text", "text": part.text} for part in one.parts]}
        for one in conversation.messages
    ]
    return module.processor.apply_chat_template(turns)


def count(module, text):
    return len(module.processor.tokenizer(text, add_special_tokens=False)["input_ids"])


class Reader(HTMLParser):
    """What a browser would take from the page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.texts, self.titles, self.boxes = [], [], [], [], []
        self._pre, self._mark = False, False
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "pre":
            self._pre = True
            self.texts.append("")
            self.titles.append([])
        self._mark = given.get("class") == "mark"
        if self._pre and tag == "span":
            self.titles[-1].append((given["title"], given["class"]))
        if tag == "rect" and given.get("class") in ("answer", "question"):
            self.boxes.append((given["class"], *(float(given[key]) for key in ("x", "y", "width", "height"))))

    def handle_endtag(self, tag):
        self._mark = False
        if tag == "pre":
            self._pre = False

    def handle_data(self, data):
        if self._pre and not self._mark:
            self.texts[-1] += data

    @property
    def pictures(self):
        sources = [value for key, value in self.attributes if key == "src"]
        return [PIL.Image.open(io.BytesIO(base64.b64decode(one.split(",", 1)[1]))) for one in sources]


def printed(preview, width=100):
    console = Console(width=width, file=io.StringIO())
    terminal.show(preview, console)
    return console.file.getvalue()


# What is learned


def test_tokens_with_weight_are_the_answers_and_their_ends(module):
    conversation = talk("Hello?", "Good day.", "And  now?\n", " Still\n\tgood. ")
    (sample,) = seen(module, conversation).samples
    assert learned(sample) == [f"Good day.{END}", f" Still\n\tgood. {END}"]
    assert "".join(one.text for one in sample.pieces) == whole_text(module, conversation)


def test_weights_of_kinds_and_sample(module):
    answer = ("A ", Text("cat", entity=True), " at ", Box((0.1, 0.2, 0.3, 0.4)), " .")
    picture = png(PIL.Image.new("RGB", (64, 64)))
    (sample,) = seen(module, talk((picture, "Where?"), answer, weight=0.5)).samples
    shown = {
        weight: "".join(one.text for one in sample.pieces if one.weight == weight)
        for weight in (0.5, 0.75, 1.0)
    }
    assert shown == {0.5: f"A at .{END}", 0.75: " cat", 1.0: " [100, 200, 300, 400]"}
    image = [one for one in sample.pieces if one.kind == Kind.IMAGE]
    assert [(one.text, one.ids, one.weight) for one in image] == [("image ×16", [3] * 16, 0.0)]


def test_weights_of_turns_and_what_was_done_to_them_are_shown_at_80_columns(module, processor_of):
    ask, more = Message("user", (Text("What?"),)), Message("user", (Text("Sure?"),))
    wrong = Message("assistant", (Text("Blue."),), weight=0.0)
    right = Message("assistant", (Text("Red."),), weight=2.0)
    apart = Conversation((ask, wrong, more, right, ask), source="t:1")
    found = seen(module, apart)
    (sample,) = found.samples
    assert learned(sample) == [f"Red.{END}"]
    assert {piece.weight for piece in sample.pieces} == {0.0, 2.0}
    for shown in (printed(found, 80), page(found)):
        assert "weights of its answers 0, 2, turns after the last answer dropped" in shown
        assert "in 1 of 1 samples read turns come after the last answer; they are dropped" in shown
    lines = printed(found, 80).splitlines()
    assert "  Blue.<|im_end|>↵" in lines
    assert f"  ⟦Red.{END}⟧×2↵" in lines

    data = VLMDataModule(
        train=Given(Conversation((wrong, ask, more, right), source="t:2")), processor=processor_of("gemma3")
    )
    found = look(module, data)
    shown = printed(found, 80)
    assert "  ⟦Red.<end_of_turn>⟧×2↵" in shown
    assert "turns of one role merged" in shown
    assert "empty user turn added" in shown
    assert "  What?↵\n  Sure?<end_of_turn>↵" in shown


def test_a_text_that_is_too_long_to_be_counted_does_not_stop_it(module):
    long = talk("What?", "A red square. " * 100_000, source="t:9")
    found = seen(module, talk("What?", "Red."), long, max_length=100)
    assert [one.error.source for one in found.left_out] == ["t:9"]
    assert found.left_out[0].length == 262_144
    assert "too long (1)" in printed(found)


def test_both_views_write_the_weights(module):
    answer = ("A ", Text("cat", entity=True), " sat.")
    found = seen(module, talk("What?", answer))
    assert f"⟦A⟧⟦·cat⟧×1.5⟦·sat.{END}⟧↵" in printed(found)
    assert re.findall(r"t</span><sup class=mark>×([\d.]+)</sup><span", page(found)) == ["1.5"]
    assert page(found).count("<sup") == 1


def test_weights_at_any_progress(module):
    schedule = TokenWeightSchedule(
        [{"at": 0, "instruction": 1.0}, {"at": 0.5, "instruction": 0.25}, {"at": 1, "instruction": 0.0}]
    )
    data, own = VLMDataModule(train=Given(talk("Hello?", "Hi."))), module.token_weights
    for progress, weight in ((0, 1), (0.49, 1), (0.5, 0.25), (0.99, 0.25), (1, 0)):
        found = look(module, data, schedule=schedule, progress=progress)
        (sample,) = found.samples
        assert learned(sample) == (["Hello?"] if weight else []) + [f"Hi.{END}"]
        assert {one.weight for one in sample.pieces if one.kind == Kind.INSTRUCTION} == {weight}
        assert found.kind_weight(Kind.INSTRUCTION) == weight
        assert found.by_kind()[Kind.INSTRUCTION].learned == (count(module, "Hello?") if weight else 0)
        note = f"weights are those at {progress:.0%} of training; instruction goes by steps: 1 at 0%, 0.25 at"
        assert note in printed(found)
        assert note in page(found)
        assert module.token_weights is own
    assert "no TokenWeightSchedule" in printed(look(module, data, progress=0.5))
    assert "TokenWeightSchedule" not in printed(look(module, data))
    with pytest.raises(UserError, match="progress: found 50; expected a fraction"):
        look(module, data, schedule=schedule, progress=50)


def test_what_nothing_predicts_has_no_weight():
    module = VLMModule("drawn-vlm", token_weights=KindWeights(special=1.0, instruction=1.0))
    (sample,) = seen(module, talk("Hello?", "Hi.")).samples
    assert [one.weight for one in sample.pieces] == [0.0] + [1.0] * (len(sample.pieces) - 1)


@pytest.mark.parametrize("name", ["shipped", "llava", "qwen2_5_vl"])
@pytest.mark.filterwarnings("ignore:the chat template of")
def test_characters_of_several_tokens_stay_whole(name, processor_of):
    processor = processor_of(name)
    example = Renderer(processor).example(talk(WORLD, WORLD))
    shown = pieces(processor.tokenizer, example.input_ids, example.kinds, torch.zeros(len(example.kinds)))
    assert "".join(one.text for one in shown) == processor.tokenizer.decode(
        example.input_ids, clean_up_tokenization_spaces=False
    )
    assert not any("\ufffd" in one.text for one in shown)
    assert [token for one in shown for token in one.ids] == example.input_ids.tolist()


def test_a_space_that_a_tokenizer_drops_in_front_is_kept_between_words():
    tokenizer = Tokenizer(models.WordLevel({"▁Good": 0, "▁day": 1}, unk_token="▁day"))
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    kinds = torch.tensor([Kind.INSTRUCTION, Kind.RESPONSE, Kind.RESPONSE])
    shown = pieces(fast, torch.tensor([0, 1, 1]), kinds, kinds.eq(Kind.RESPONSE).float())
    assert fast.decode([1]) == "day"  # by itself it would lose its space
    assert [one.text for one in shown] == ["Good", " day", " day"]


# Figures


def test_counts_are_those_of_the_source(module):
    source = Drawn(size=40, tasks=["vqa", "ocr"])
    found = seen(module, source)
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
                answers[conversation.task] += count(module, text + END)
        text = module.processor.apply_chat_template(turns)
        tokens[conversation.task] += len(module.processor(text=[text], images=pictures)["input_ids"][0])
    rows = {row.name: row for row in found.by_task()}
    assert {name: row.tokens for name, row in rows.items()} == tokens
    assert {name: row.learned for name, row in rows.items()} == answers
    assert found.total.weight == found.total.learned == sum(answers.values())
    kinds = found.by_kind()
    assert kinds[Kind.IMAGE].tokens == 40 * 16
    assert [kinds[kind].learned for kind in Kind] == [0, 0, 0, 0, sum(answers.values()), 0, 0]
    shown = printed(found)
    both = sum(answers.values()), sum(tokens.values())
    share = f"{100 * both[0] / both[1]:.1f}% of the tokens are learned: {both[0]:,} of {both[1]:,}, in all 40"
    assert share in shown
    assert share in page(found)
    for task in tokens:
        shares = f"{100 * answers[task] / tokens[task]:.1f}%", f"{100 * answers[task] / both[0]:.1f}%"
        assert re.search(rf"^ *{task} .* {shares[0]} +{shares[1]} *$", shown, re.MULTILINE)
        assert re.search(rf"<td>{task}</td>[^\n]*?<td>{shares[0]}</td><td>{shares[1]}</td></tr>", page(found))


def test_what_is_read_lies_spread_and_hides_no_rhythm(module):
    source = Given(*(talk("?", "!", task="even" if place % 2 == 0 else "odd") for place in range(200)))
    found = seen(module, source, scan=20)
    assert [fact.place // 10 for fact in found.facts] == list(range(20))
    assert {row.name for row in found.by_task()} == {"even", "odd"}  # every tenth would be even
    assert (found.read, found.size, len(found.samples)) == (20, 200, 8)


def test_every_sort_is_shown(module):
    picture = png(PIL.Image.new("RGB", (8, 8)))
    common = [talk("?", "!", task="a") for _ in range(30)]
    found = seen(module, *common, talk((picture, "?"), "!", task="a"), talk("?", "!", task="b"), samples=4)
    assert [(one.fact.task, one.fact.pictures) for one in found.samples] == [("a", 0)] * 2 + [
        ("a", 1),
        ("b", 0),
    ]
    assert len({one.fact.place for one in found.samples}) == 4
    assert choose(found.facts, 0) == []
    assert len(choose(found.facts, 99)) == 32


def test_what_does_not_fit_is_cut_or_left_out_and_told(module):
    short, more = (
        talk("Hello?", "Hi.", source="t:1"),
        talk("Hello?", "Hi.", "And?", "more " * 30, source="t:2"),
    )
    never = talk("Hello?", "much " * 60, source="t:3")
    lengths = [count(module, whole_text(module, one)) for one in (short, more, never)]
    limit = lengths[0] + 3
    found = seen(module, short, more, never, max_length=limit)
    assert sorted(found.lengths()) == sorted(zip(lengths, ("kept", "cut", "left_out"), strict=True))
    assert found.total.tokens == 2 * lengths[0]
    assert sum(sum(one[2:]) for one in found.bins()) == 3
    for one in found.bins():
        inside = [one.start <= length < one.stop for length in lengths]
        assert [one.kept, one.cut, one.left_out] == list(map(int, inside))
    for shown in (printed(found, 160), page(found)):
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
    good, bad = talk("?", "!"), talk((Image(data=b"none"), "?"), "!", source="bad:7")
    with pytest.raises(DataError, match="bad:7"):
        seen(module, good, bad)
    found = seen(module, good, bad, on_bad_sample="skip")
    assert found.reasons() == {"bad messages[*].content[*]": 1}
    for shown in (printed(found, 200), page(found)):
        assert "bad:7" in shown
        assert "not a picture" in shown
    # One that the source leaves out before anything is read.
    lines = [
        json.dumps({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]})
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([*lines * 2, '{"mesages": []}']))
    found = look(module, VLMDataModule(train=str(path), on_bad_sample="skip"))
    assert (found.size, len(found.opened)) == (2, 1)
    assert "Left out when the data was opened: 1 of all" in printed(found)
    assert "data.jsonl:3" in page(found)


def test_what_teaches_nothing_is_noted(module):
    found = seen(module, talk("?", "!", weight=0.0), talk("?", "!"))
    (note,) = found.notes
    assert "1 of the samples that were read teach nothing" in note
    assert "teach nothing" in printed(found)
    assert "teach nothing" in page(found)


def test_nothing_is_left(module):
    found = seen(module, talk("Hello?", "Hi."), max_length=3)
    assert (found.total.tokens, found.samples) == (0, [])
    assert "Left out: 1 of 1" in printed(found)
    assert "Left out: 1 of 1" in page(found)


@pytest.mark.parametrize(("samples", "scan"), [(-1, 10), (1, 0)])
def test_odd_numbers_are_refused(module, samples, scan):
    with pytest.raises(UserError, match="expected at least 0 and 1"):
        seen(module, talk("?", "!"), samples=samples, scan=scan)


# The page


def test_the_page_says_what_the_tokens_are(module):
    conversation = talk(f"{NASTY}\n  tail ", f"{WORLD}\n\tcode {NASTY}")
    found = seen(module, conversation)
    read = Reader(page(found))
    hidden = dict.fromkeys(map(ord, "\x1b\u202e\u00a0"))  # shown by their marks alone
    assert read.texts == [whole_text(module, conversation).translate(hidden)]
    ids = [token for piece in found.samples[0].pieces for token in piece.ids]
    titles = [re.fullmatch(r"id ([\d, ]+) · (\w+) · weight (\S+)", title) for title, _ in read.titles[0]]
    assert [int(one) for title in titles for one in title[1].split(", ")] == ids
    for title, (_, classes) in zip(titles, read.titles[0], strict=True):
        assert title[2] in classes.split()
        assert (float(title[3]) > 0) == ("on" in classes.split())


def test_the_page_runs_nothing_and_needs_nothing(module):
    picture = png(PIL.Image.new("RGB", (20, 10), "red"))
    odd = {"task": '"><img src=x onerror=alert(1)>', "source": "<b>:1"}
    html = page(
        seen(
            module,
            talk((picture, NASTY), NASTY, **odd),
            talk((Image(data=NASTY.encode()), "?"), "!"),
            on_bad_sample="skip",
        )
    )
    read = Reader(html)
    assert not {"script", "link", "iframe", "object", "base"} & set(read.tags)
    assert "<script>alert('x')</script>" in read.texts[0]  # escaped, or it were a tag
    assert not [key for key, _ in read.attributes if key.startswith("on") or key == "href"]
    assert all(value.startswith("data:image/") for key, value in read.attributes if key == "src")
    assert read.tags.count("img") == 1
    for outside in ("url(", "@import", "xmlns"):
        assert outside not in html
    assert "http" not in html.replace("http-equiv", "").replace("http://x.example/a.png", "")


def test_a_token_that_spells_a_whole_tag_is_text(module):
    found = seen(module, talk("?", "!"))
    spelled = "<script>alert(1)</script><b>&amp;"
    found.samples[0] = found.samples[0]._replace(pieces=[Piece([5], spelled, Kind.RESPONSE, 1.0)])
    read = Reader(page(found))
    assert read.texts == [spelled]
    assert "script" not in read.tags


def test_pictures_are_embedded_with_boxes_at_the_right_pixels(module):
    image = PIL.Image.new("RGB", (100, 80), "white")
    image.paste("red", (10, 20, 30, 60))
    image.paste("blue", (50, 8, 95, 40))
    other = PIL.Image.new("RGB", (40, 60), "green")
    conversation = talk(
        (png(image), "Where is red? Is blue at ", Box((0.5, 0.1, 0.95, 0.5)), "?"),
        Box((0.1, 0.25, 0.3, 0.75)),
        (png(other), "All?"),
        Box((0.0, 0.0, 1.0, 1.0)),
    )
    read = Reader(page(seen(module, conversation)))
    assert [one.convert("RGB").tobytes() for one in read.pictures] == [image.tobytes(), other.tobytes()]
    question, answer, last = read.boxes
    assert (question[0], answer[0], last) == ("question", "answer", ("answer", 0, 0, 40, 60))
    for (_, x, y, wide, high), colour in ((answer, (255, 0, 0)), (question, (0, 0, 255))):
        other_colours = ImageChops.difference(image, PIL.Image.new("RGB", image.size, colour)).convert("L")
        of_colour = other_colours.point(lambda value: 255 * (value == 0))
        assert of_colour.getbbox() == (x, y, x + wide, y + high)
    assert [value for key, value in read.attributes if key == "viewbox"][-2:] == ["0 0 100 80", "0 0 40 60"]


def test_large_pictures_are_embedded_smaller(module):
    large = png(PIL.Image.new("RGB", (3000, 1500), "red"))
    read = Reader(page(seen(module, talk((large, "Where?"), Box((0.5, 0.0, 1.0, 1.0))))))
    assert read.pictures[0].size == (768, 384)
    assert read.boxes == [("answer", 1500, 0, 1500, 1500)]  # over a view of the whole picture's pixels
    assert ("viewbox", "0 0 3000 1500") in read.attributes


# The terminal


def test_the_terminal_shows_without_colours_what_is_learned(module):
    answer = ("It is ", Text("red", entity=True), ".")
    shown = printed(seen(module, talk((png(PIL.Image.new("RGB", (8, 8))), "What is  it?\n"), answer), scan=1))
    assert "image ×16 What·is··it?↵\n  <|im_end|>↵" in shown
    assert f"⟦It·is⟧⟦·red⟧×1.5⟦.{END}⟧↵" in shown


@pytest.mark.parametrize("width", [40, 100])
def test_lines_fit_and_long_samples_lose_their_middle(module, width):
    words = [f"{number}" for number in range(3000)]
    shown = printed(seen(module, talk(WORLD, " ".join(words)), samples=1), width)
    lines = shown.split("By task")[0].splitlines()
    body = [line for line in lines if re.match(r"  [⟦\d]", line)]
    assert len(body) < 60
    from rich.cells import cell_len

    assert max(map(cell_len, body)) <= width
    assert all(line.endswith("·") for line in body[1:20])  # broken between words
    assert "lines more" in shown
    assert "2999" in shown


def test_the_terminal_is_not_moved_by_data(module):
    shown = printed(seen(module, talk(NASTY, NASTY)))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "⟨U+001B⟩" in shown
    assert "[bold]" in shown


# The command


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a data file and a model that has no weights at all."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SHIPPED["drawn-vlm"], "model", ignore=shutil.ignore_patterns("*.safetensors"))
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]
    Path("data.jsonl").write_text("\n".join([json.dumps({"messages": turns})] * 3))
    config = {
        "model": {"name_or_path": "model", "token_weights": {"response": 3.0}},
        "data": {"train": "data.jsonl", "max_length": 64},
        "trainer": {
            # Nothing of this is here, and a preview asks for none of it.
            "accelerator": "gpu",
            "devices": 8,
            "strategy": "fsdp",
            "logger": {"class_path": "WandbLogger", "init_args": {"project": "x"}},
        },
        "ckpt_path": None,  # as in the saved config of a run
        "weights_only": None,
        "report": True,
    }
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def command(*words):
    return main(["preview", "--config", "config.yaml", *words])


def test_the_command_needs_no_weights_no_gpu_and_no_logger(project, capsys):
    assert command("--samples", "2", "--scan", "2", "--out", "pages/one.html") == 0
    shown = capsys.readouterr()
    assert f"⟦That.{END}⟧×3" in shown.out
    assert "2 of 3 samples" in shown.out
    assert "pages/one.html" in shown.out
    assert "Traceback" not in shown.err
    read = Reader(Path("pages/one.html").read_text("utf-8"))
    assert len(read.texts) == 2
    assert sorted(path.name for path in Path().iterdir()) == ["config.yaml", "data.jsonl", "model", "pages"]


@pytest.mark.parametrize("progress", ["0", "0.5", "1"])
@pytest.mark.parametrize("several", [True, False])
def test_the_command_shows_weights_at_any_progress(project, capsys, progress, several):
    """Of all callbacks only the schedule is made: the other one could not be."""
    schedule = {"class_path": "TokenWeightSchedule", "init_args": {"between": "linear"}}
    schedule["init_args"]["points"] = [{"at": 0, "instruction": 1.0}, {"at": 1, "instruction": 0.0}]
    other = {"class_path": "ModelCheckpoint", "init_args": {"mode": "no such mode"}}
    config = yaml.safe_load(Path("config.yaml").read_text())
    config["trainer"]["callbacks"] = [other, schedule] if several else schedule
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert command("--progress", progress) == 0
    shown = capsys.readouterr().out
    assert f"⟦That.{END}⟧×3" in shown
    assert re.findall(r"⟦What\?⟧(×[\d.]+)?", shown) == {"0": [""], "0.5": ["×0.5"], "1": []}[progress] * 3
    assert "instruction goes linearly: 1 at 0%, 0 at 100%" in shown


def test_the_quickstart_can_be_previewed(project, capsys):
    config = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
    assert main(["preview", "--config", str(config), "--scan", "10", "--model.name_or_path", "model"]) == 0
    assert "10 of 37,575 samples" in capsys.readouterr().out
    assert len(Reader(Path("preview.html").read_text("utf-8")).pictures) == 8


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--data.train", "nothing.jsonl"], "nothing.jsonl"),
        (["--data.train", "null"], "data.train is not set"),
        (["--model.name_or_path", "no/such-model"], "no/such-model"),
        (["--samples", "-1"], "samples -1"),
        (["--progress", "50"], "progress: found 50"),
        (["--out", "data.jsonl/page.html"], "data.jsonl/page.html"),
        (["--model.generatoin", "{}"], "generatoin"),
        (["--sampels", "3"], "sampels"),
    ],
)
def test_mistakes_are_told_in_one_line(project, capsys, words, told):
    try:
        code = command(*words)
    except SystemExit as stop:  # the parser's own errors
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2
    assert told in err
    assert "Traceback" not in err


def test_a_bad_line_is_named_or_counted(project, capsys):
    with Path("data.jsonl").open("a") as file:
        file.write('\n{"mesages": []}')
    assert command() == 2
    assert "data.jsonl:4" in capsys.readouterr().err
    assert command("--data.on_bad_sample", "skip") == 0
    assert "Left out when the data was opened: 1 of all" in capsys.readouterr().out
