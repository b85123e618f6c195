"""The conversation in a terminal, or from a pipe."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text as Styled

from lightning_vlm.chat.boxes import lines_of, save
from lightning_vlm.chat.line import paths, pieces
from lightning_vlm.chat.session import SOURCE, Session, Voice, picture
from lightning_vlm.chat.streaming import Answer
from lightning_vlm.data.conversation import Image, Message, Part, Text
from lightning_vlm.data.images import load_image
from lightning_vlm.errors import UserError
from lightning_vlm.failures.describe import INTERRUPTED
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.nearest import did_you_mean
from lightning_vlm.terminal import short_path, visible

_PROMPT = "> "


class _Command(NamedTuple):
    """A command of the conversation."""

    usage: str
    summary: str
    run: Callable[["Terminal", str], None]


class Terminal:
    """Reads lines, and prints answers as they come.

    Args:
        session: Who answers.
        console: Where answers go.
        is_live: Whether a person types; else lines come from a pipe, and the first mistake ends all.
    """

    def __init__(self, session: Session, console: Console, is_live: bool) -> None:
        self.session = session
        self.console = console
        self.is_live = is_live
        # Notes don't mix with answers that another program reads.
        self._notes = console if is_live else Console(stderr=True)
        self._attached: list[Image] = []
        self._shows_boxes = True
        self._last: Prediction | None = None
        self._ended = False

    def run(self) -> None:
        """Talk until Ctrl-D, `/quit` or the end of the pipe."""
        lines = self._lines()
        while not self._ended:
            try:
                line = next(lines, None)
                if line is None:
                    return
                self._take_or_refuse(line)
            except KeyboardInterrupt:  # before an answer begins, or behind it
                if not self.is_live:
                    raise
                self._note("(stopped)")

    def _lines(self) -> Iterator[str]:
        if not self.is_live:
            for line in sys.stdin:
                yield line.rstrip("\n")
            return
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401  # gives `input` a history and the arrow keys
        while True:
            try:
                yield input(_PROMPT)
            except EOFError:
                self.console.print()
                return
            except KeyboardInterrupt:  # ends a line, not the program
                self._note("\n(Ctrl-D ends the conversation)")

    def _take_or_refuse(self, line: str) -> None:
        try:
            self._take(line)
        except UserError as error:
            if not self.is_live:
                raise
            self._say(f"{error}", "red")

    def _take(self, line: str) -> None:
        line = line.strip()
        word, _, rest = line.partition(" ")
        if line.startswith("/") and not Path(word).exists() and "/" not in word[1:]:
            command = COMMANDS.get(word)
            if command is None:
                hint = did_you_mean(word, COMMANDS)
                raise UserError(f"{word}: there is no such command{hint}; /help lists all")
            command.run(self, rest.strip())
            return
        parts = self._parts(line)
        if any(isinstance(part, Text) for part in parts):
            self._ask(self.session.question([*self._attached, *parts]))
        elif parts:
            self._attach([part for part in parts if isinstance(part, Image)])

    def _parts(self, line: str) -> list[Part]:
        """The pictures and words of a line. A path without a file stays a word, with a note."""
        parts: list[Part] = []
        words: list[str] = []
        for piece in pieces(line):
            if piece.path is None:
                words.append(piece.text)
                if piece.is_missing:
                    self._note(f"({piece.text}: there is no such file, so these are words)", "yellow")
                continue
            if words:
                parts.append(Text(" ".join(words)))
                words = []
            parts.append(picture(piece.path))
        if words:
            parts.append(Text(" ".join(words)))
        return parts

    def _ask(self, question: Message) -> None:
        several = len(self.session.voices) > 1
        for voice in self.session.voices:
            if several:
                self._say(voice.name, "bold")
            answer = self._stream(voice, question)
            if voice is self.session.voices[0]:
                self._last = answer.prediction
            if self._shows_boxes:
                for line in lines_of(answer.prediction):
                    self._say(f"  {line}", "magenta")
        self._attached = []

    def _stream(self, voice: Voice, question: Message) -> Answer:
        stop = threading.Event()
        answer = Answer()
        reasoning = text = ""
        with _stopping(stop):
            for answer in self.session.ask(voice, question, stop):
                if self.is_live:
                    reasoning = self._more(reasoning, answer.reasoning or "", "dim")
                    if reasoning and answer.text and not text:
                        self.console.print()
                    text = self._more(text, answer.text, "")
        if self.is_live:
            self.console.print()
        else:
            self.console.print(Styled(visible(answer.text)), soft_wrap=True, highlight=False)
        if not answer.text:
            self._note("(an empty answer)")
        if answer.was_stopped:
            self._note("(stopped)")
        for change in answer.changes:
            self._note(f"({change})")
        return answer

    def _more(self, shown: str, whole: str, style: str) -> str:
        """Print what is new of a text."""
        if whole.startswith(shown):
            new = whole[len(shown) :]
        else:
            self.console.print()
            new = whole
        if new:
            self.console.print(Styled(visible(new), style), end="", soft_wrap=True, highlight=False)
            self.console.file.flush()
        return whole

    def _say(self, text: str, style: str) -> None:
        self.console.print(Styled(visible(text), style), soft_wrap=True, highlight=False)

    def _note(self, text: str, style: str = "dim") -> None:
        self._notes.print(Styled(visible(text), style), soft_wrap=True, highlight=False)

    # Commands

    def _attach(self, images: Sequence[Image]) -> None:
        self._attached += images
        count = len(self._attached)
        self._note(f"({count} picture{'s' * (count > 1)} for the next question)")

    def image(self, rest: str) -> None:
        """`/image`"""
        if not rest:
            raise UserError("/image: found no path; write /image cat.jpg")
        self._attach([picture(path) for path in paths(rest)])

    def new(self, rest: str) -> None:
        """`/new`"""
        self.session.forget()
        self._attached = []
        self._last = None
        self._note("(a new conversation)")

    def system(self, rest: str) -> None:
        """`/system`"""
        self.session.system = rest or None
        self.new("")
        self._note(f"(system prompt: {rest or 'none'})")

    def boxes(self, rest: str) -> None:
        """`/boxes`"""
        self._shows_boxes = not self._shows_boxes
        self._note(f"(boxes of answers are {'shown' if self._shows_boxes else 'not shown'})")

    def save(self, rest: str) -> None:
        """`/save`"""
        if not rest:
            raise UserError("/save: found no file; write /save boxes.png")
        if self._last is None:
            raise UserError("/save: there is no answer yet; ask something about a picture first")
        images = self.session.pictures
        opened = [load_image(image, SOURCE, "image") for image in images]
        try:
            files = save(self._last, opened, Path(rest).expanduser())
        except (OSError, ValueError) as error:
            raise UserError(
                f"/save: found {rest} ({error}); expected a file name that ends in .png"
            ) from None
        if not files:
            raise UserError("/save: the last answer has no boxes")
        self._note(f"(written: {', '.join(map(short_path, files))})")

    def help(self, rest: str) -> None:
        """`/help`"""
        for command in COMMANDS.values():
            self._say(f"  {command.usage:<18}{command.summary}", "")
        self._say("  Paths of pictures may stand in a question too. Ctrl-C stops an answer.", "")

    def quit(self, rest: str) -> None:
        """`/quit`"""
        self._ended = True


COMMANDS = {
    "/image": _Command("/image PATH ...", "attach pictures to the next question", Terminal.image),
    "/new": _Command("/new", "begin a new conversation", Terminal.new),
    "/system": _Command("/system TEXT", "a new conversation with this system prompt", Terminal.system),
    "/boxes": _Command("/boxes", "show the boxes of answers in pixels, or don't", Terminal.boxes),
    "/save": _Command("/save FILE", "write the picture with the boxes of the last answer", Terminal.save),
    "/help": _Command("/help", "show this", Terminal.help),
    "/quit": _Command("/quit", "end; so does Ctrl-D", Terminal.quit),
}
"""What may be typed in place of a question."""


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Let Ctrl-C stop an answer. A second one while it stops ends the program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise SystemExit(INTERRUPTED)
        stop.set()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
