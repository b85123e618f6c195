"""`lightning-vlm chat`: ask a model by its name, in the terminal or on a page."""

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from lightning_vlm.errors import UserError
from lightning_vlm.parser import Parser

_EXAMPLE = """\
examples:
  lightning-vlm chat runs/version_0/checkpoints/best.ckpt --base
  lightning-vlm chat exported --web
  echo "cat.jpg What is this?" | lightning-vlm chat Qwen/Qwen2-VL-2B-Instruct
"""


def run(words: Sequence[str]) -> None:
    """Run the command.

    Args:
        words: What stands after `lightning-vlm chat`.

    Raises:
        UserError: A wrong option, no such model, or what a question from a pipe has wrong.
    """
    given = parser().parse_args(list(words))
    if given.model is None:
        raise UserError("chat: found no MODEL; write lightning-vlm chat CHECKPOINT, or drawn-vlm to try it")
    generation = _generation(given)
    if given.web:
        from lightning_vlm.chat.web import require_gradio

        require_gradio()
    console = Console()
    from lightning_vlm.chat.opened import Where, open_base, open_model
    from lightning_vlm.chat.session import Session, Voice

    base = None if given.base in (None, "") else given.base
    where = Where(given.device, given.trust_remote_code, given.family, base)
    with_base = given.base is not None
    with Console(stderr=True).status("loading the model"):
        opened = open_model(given.model, where, with_base)
        voices = [Voice("tuned" if with_base else opened.title, opened)]
        if with_base:
            other = open_base(opened, where)
            voices.append(Voice("base", other, as_base=other is opened))
    session = Session(voices, generation, _system_prompt(given, opened.system_prompts))
    if given.web:
        from lightning_vlm.chat.web import serve

        serve(session, opened.title, given.host, given.port)
        return
    from lightning_vlm.chat.terminal import Terminal

    is_live = sys.stdin.isatty()
    if is_live:
        console.print(f"{opened.title} on {opened.device}. /help lists commands; Ctrl-D ends.", markup=False)
    Terminal(session, console, is_live).run()


def _generation(given: Any) -> dict[str, Any]:
    if given.max_new_tokens < 1:
        raise UserError(f"max_new_tokens: found {given.max_new_tokens}; expected 1 or more")
    if given.temperature < 0:
        raise UserError(f"temperature: found {given.temperature}; expected 0, or more to draw words")
    generation: dict[str, Any] = {"max_new_tokens": given.max_new_tokens, "do_sample": given.temperature > 0}
    if given.temperature > 0:
        generation["temperature"] = given.temperature
    return generation


def _system_prompt(given: Any, of_tasks: dict[str, str]) -> str | None:
    """The one that is given; or that of the task; or the only one that training had."""
    if given.system is not None:
        return given.system or None
    if given.task is not None:
        if given.task not in of_tasks:
            known = ", ".join(of_tasks) or "no task with a system prompt"
            raise UserError(f"task: found {given.task!r}; the model was trained with {known}")
        return of_tasks[given.task]
    return next(iter(of_tasks.values())) if len(set(of_tasks.values())) == 1 else None


def parser() -> Parser:
    """The command's options."""
    import argparse

    options = Parser(
        prog="lightning-vlm chat",
        description="Ask a model about pictures, in the terminal or on a page.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add(
        "model",
        nargs="?",
        metavar="MODEL",
        help="A checkpoint of fit, an exported folder or adapters, drawn-vlm, or a name on the hub.",
    )
    add("--base", nargs="?", const="", metavar="NAME", help="Ask the base model too; with a name: that one.")
    add("--system", metavar="TEXT", help="A system prompt; by default that of training, if it had one.")
    add("--task", metavar="TASK", help="The system prompt that training had for this task.")
    add("--max_new_tokens", "--max-new-tokens", type=int, default=256, metavar="N", help="Of an answer.")
    add("--temperature", type=float, default=0.0, metavar="T", help="0: the likeliest words; above: drawn.")
    add("--web", action="store_true", help="A page in the browser; pip install 'lightning-vlm[web]'.")
    add("--host", default="127.0.0.1", help="Of the page; 0.0.0.0 lets others in, without a password.")
    add("--port", type=int, default=7860, help="Of the page.")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, mps, ...")
    add("--trust_remote_code", action="store_true", help="Run Python code that comes with the model.")
    add("--family", metavar="CLASS", help="As model.family in the config that it was trained with.")
    return options
