"""The conversation on a page of Gradio, which only this machine sees unless it is asked otherwise."""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from rich.console import Console

from lightning_vlm.chat.boxes import drawn, lines_of
from lightning_vlm.chat.session import SOURCE, Session, Voice, picture
from lightning_vlm.chat.streaming import Answer
from lightning_vlm.data.conversation import Image, Part, Text
from lightning_vlm.data.images import load_image
from lightning_vlm.errors import UserError

_LOCAL = ("127.0.0.1", "localhost", "::1")
_CSS = '[id^="voice-"] .icon-button { display: none !important; }'
"""Hides buttons of Gradio's: one to upload the conversation, and one that empties only what is shown."""
_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}
"""Those of the browser: a theme's own would be fetched from the network."""


def require_gradio() -> None:
    """Refuse `--web` where Gradio is missing, before a model is loaded.

    Raises:
        UserError: It is.
    """
    if find_spec("gradio") is None:
        raise UserError("--web: found no gradio; pip install 'lightning-vlm[web]'")


def serve(session: Session, title: str, host: str, port: int) -> None:
    """Show the page until Ctrl-C.

    Args:
        session: Who answers; each visitor has a conversation of their own.
        title: Of the model.
        host: The address to listen on.
        port: Its port.

    Raises:
        UserError: The port is taken, or there is no such address.
    """
    page = make_page(session, title)
    try:
        _, address, _ = launch(page, host, port)
    except OSError as error:
        raise UserError(f"port: {host}:{port} can't be listened on: {error}; choose another --port") from None
    console = Console()
    console.print(f"page  {address}  (Ctrl-C ends)", highlight=False, markup=False, soft_wrap=True)
    if host not in _LOCAL:
        console.print("      anyone who reaches this port may ask: there is no password", markup=False)
    try:
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    finally:
        page.close(verbose=False)


def launch(page: Any, host: str, port: int) -> Any:
    """Start a page's server, without links to the outside; as `gradio.Blocks.launch`."""
    import gradio

    return page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=True,
        ssr_mode=False,
        pwa=False,
        footer_links=[],
        enable_monitoring=False,
        max_file_size="64mb",
        theme=gradio.themes.Base(**_FONTS),
        css=_CSS,
    )


def make_page(session: Session, title: str) -> Any:
    """The page: a column for each voice, and a box for questions with pictures.

    Args:
        session: Who answers.
        title: Of the model.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    with gradio.Blocks(title=f"chat: {title}", analytics_enabled=False, fill_height=True) as page:
        gradio.Markdown(f"## {title}")
        mine = gradio.State(None)
        with gradio.Row():
            columns = [_column(gradio, voice) for voice in session.voices]
        question = gradio.MultimodalTextbox(
            placeholder="A question, with pictures if you like",
            file_types=["image"],
            file_count="multiple",
            show_label=False,
            elem_id="question",
        )
        with gradio.Row():
            new = gradio.Button("New conversation", elem_id="new")
            stop = gradio.Button("Stop", elem_id="stop")
        with gradio.Accordion("System prompt", open=False):
            system = gradio.Textbox(session.system or "", show_label=False, lines=3)
            gradio.Markdown("Another one counts from the next new conversation on.")

        def ask(given: dict[str, Any], of_visitor: Session | None, *shown: Any) -> Iterator[Any]:
            of_visitor = of_visitor or session.again()
            for columns_now in _answered(of_visitor, given, [list(one or []) for one in shown]):
                yield (None, of_visitor, *columns_now)

        def begin(words: str) -> Any:
            fresh = session.again()
            fresh.system = words.strip() or None
            return (None, fresh, *([] for _ in session.voices))

        outputs = [question, mine, *columns]
        # One answer at a time: the models are shared by all visitors.
        asking = question.submit(ask, [question, mine, *columns], outputs, concurrency_limit=1)
        new.click(begin, [system], outputs, cancels=[asking])
        stop.click(None, cancels=[asking])
    return page


def _column(gradio: Any, voice: Voice) -> Any:
    # Words are shown as they are: a picture of Markdown would let the browser ask another machine.
    name = f"voice-{voice.name}"
    return gradio.Chatbot(label=voice.name, render_markdown=False, height="60vh", elem_id=name, buttons=[])


def _answered(session: Session, given: dict[str, Any], shown: list[list[Any]]) -> Iterator[list[list[Any]]]:
    """What stands in the columns, again and again while the voices answer one after the other."""
    import gradio

    try:
        images: list[Part] = [picture(path) for path in given.get("files") or ()]
    except UserError as error:
        raise gradio.Error(str(error)) from None
    words = (given.get("text") or "").strip()
    if not words:
        raise gradio.Error("Write a question too.")
    question = session.question([*images, Text(words)])
    for column in shown:
        column += [{"role": "user", "content": {"path": path}} for path in given.get("files") or ()]
        column.append({"role": "user", "content": words})
    yield shown
    for place, voice in enumerate(session.voices):
        column = shown[place]
        column.append({"role": "assistant", "content": "..."})
        answer = Answer()
        try:
            for answer in session.ask(voice, question):
                column[-1] = {"role": "assistant", "content": _words(answer)}
                yield shown
        except UserError as error:
            raise gradio.Error(str(error)) from None
        column += _boxes(gradio, session, answer)
        yield shown


def _words(answer: Answer) -> str:
    reasoning = f"[{answer.reasoning}]\n\n" if answer.reasoning else ""
    changes = "".join(f"\n({change})" for change in answer.changes) if answer.prediction else ""
    return f"{reasoning}{answer.text or '...'}{changes}"


def _boxes(gradio: Any, session: Session, answer: Answer) -> Sequence[dict[str, Any]]:
    """The boxes of an answer, in pixels and drawn."""
    lines = lines_of(answer.prediction)
    if answer.prediction is None or not lines:
        return []
    images: list[Image] = session.pictures
    sheets = drawn(answer.prediction, [load_image(image, SOURCE, "image") for image in images])
    shown = [
        gradio.Image(sheet, format="png", buttons=["fullscreen"]) for sheet in sheets if sheet is not None
    ]
    pictures = [{"role": "assistant", "content": one} for one in shown]
    return [{"role": "assistant", "content": "\n".join(lines)}, *pictures]
