"""What the tests of a preview share: conversations to preview, and readers of both views."""

import base64
import io
from html.parser import HTMLParser

import PIL.Image
from rich.console import Console

from lightning_vlm import VLMDataModule
from lightning_vlm.data.conversation import Conversation, Conversations, Image, Message, Text
from lightning_vlm.inspect import terminal
from lightning_vlm.inspect.scan import scan_data

END = "<|im_end|>"
NASTY = (
    "<script>alert('x')</script> [bold]&amp;\u202e \x1b[31m\u00a0 <image> <|im_start|> http://x.example/a.png"
)
WORLD = "这是一个红色的正方形。👩‍👩‍👧‍👦🙂 مربع أحمر שלום é"


class ListSource(Conversations):
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


def chat(*turns, **fields):
    """Turns of the user and the assistant in alternation, each a text or a tuple of parts."""
    roles = ["user", "assistant"] * len(turns)
    messages = []
    for role, turn in zip(roles, turns, strict=False):
        parts = turn if isinstance(turn, tuple) else (turn,)
        parts = tuple(Text(part) if isinstance(part, str) else part for part in parts)
        messages.append(Message(role, parts))
    return Conversation(tuple(messages), **{"source": "talk:1", **fields})


def preview_of(module, *conversations, scan=1000, samples=8, **options):
    first = conversations[0]
    source = first if isinstance(first, Conversations) else ListSource(*conversations)
    return scan_data(module, VLMDataModule(train=source, **options), samples, scan)


def learned_stretches(sample):
    """The text of each unbroken stretch of tokens with weight."""
    stretches, before = [], False
    for piece in sample.pieces:
        if piece.weight:
            stretches.append(stretches.pop() + piece.text if before else piece.text)
        before = bool(piece.weight)
    return stretches


def template_text(module, conversation):
    """A conversation of texts alone as the processor's own template writes it."""
    turns = [
        {
            "role": message.role,
            "content": [{"type": "text", "text": part.text} for part in message.parts],
        }
        for message in conversation.messages
    ]
    return module.processor.apply_chat_template(turns)


def count_tokens(module, text):
    return len(module.processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def printed(preview, width=100):
    console = Console(width=width, file=io.StringIO())
    terminal.show(preview, console)
    return console.file.getvalue()


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
        files = [io.BytesIO(base64.b64decode(source.split(",", 1)[1])) for source in sources]
        return [PIL.Image.open(file) for file in files]
