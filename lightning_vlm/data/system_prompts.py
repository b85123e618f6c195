"""System prompts per task: what the model reads before conversations that bring no system turn."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image

from lightning_vlm.data.conversation import Conversation, Conversations, Image, Message, TaskTable, Text
from lightning_vlm.data.render.example import TooLong
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.nearest import did_you_mean

FILE = "system_prompts.json"
"""The file of an exported folder that has them."""
DEFAULT = "default"
"""The key of the prompt of all tasks that have none of their own."""
KEY = "data.system_prompts"
"""The key in a config; a checkpoint says the prompts of its run under it, each behind a dot."""


def check_prompts(prompts: Mapping[str, str] | None) -> dict[str, str]:
    """The option itself, checked.

    Raises:
        UserError: A prompt that isn't a text, or an empty one.
    """
    if prompts is not None and not isinstance(prompts, Mapping):
        raise UserError(f"{KEY}: found {prompts!r}; expected a text for each task, or {{default: TEXT}}")
    for task, prompt in (prompts or {}).items():
        if not isinstance(prompt, str) or not prompt.strip():
            raise UserError(f"{KEY}.{task}: found {prompt!r}; expected a text, or leave the task out")
    return dict(prompts or {})


def check_tasks(prompts: Mapping[str, str] | None, tasks: Iterable[str]) -> None:
    """Check that each prompt is of a task of the training data.

    Raises:
        UserError: There is no such task.
    """
    known = [*tasks, DEFAULT]
    for task in prompts or {}:
        if task not in known:
            near = did_you_mean(task, known)
            raise UserError(f"{KEY}: found {task}; expected a task of data.train: {', '.join(known)}{near}")


def check_template(prompts: Mapping[str, str] | None, renderer: Renderer) -> None:
    """Check that a model's chat template writes system turns.

    Raises:
        UserError: It refuses them, or leaves their words out; with pictures, some do.
    """
    for prompt in list((prompts or {}).values())[:1]:
        question = Message("user", (_blank_picture(), Text("?")))
        messages = Message("system", (Text(prompt),)), question, Message("assistant", (Text("!"),))
        try:
            renderer.example(Conversation(messages, source="a system turn before a picture"))
        except TooLong:
            return  # it is for the length of samples to say that
        except DataError as error:
            raise UserError(
                f"{KEY}: found a prompt, but this model's chat template doesn't take it ({error}); write it "
                "into the questions, or choose another model.chat_template"
            ) from None


def _blank_picture() -> Image:
    file = io.BytesIO()
    PIL.Image.new("RGB", (64, 64)).save(file, "PNG")
    return Image(data=file.getvalue())


def system_prompts_of(run: Mapping[str, Any]) -> dict[str, str]:
    """The system prompts that a run was trained with.

    Args:
        run: What a checkpoint says of it.

    >>> system_prompts_of({"data.system_prompts.ocr": "Read the text.", "data.seed": 0})
    {'ocr': 'Read the text.'}
    """
    start = f"{KEY}."
    return {key.removeprefix(start): str(run[key]) for key in run if key.startswith(start) and run[key]}


def write_prompts(prompts: Mapping[str, str], folder: Path) -> str:
    """Write the system prompts of a run into an exported folder.

    Args:
        prompts: By task.
        folder: The folder.

    Returns:
        What to print about it.
    """
    text = json.dumps(dict(prompts), ensure_ascii=False, indent=2)
    (folder / FILE).write_text(f"{text}\n", "utf-8")
    return f"of {', '.join(prompts)}, in {FILE}: put them before questions, as in training"


def read_prompts(folder: Path) -> dict[str, str]:
    """The system prompts in an exported folder; none where it has no such file."""
    file = folder / FILE
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


class WithSystemPrompts(Conversations):
    """The conversations of a source, with a system turn before those that have none.

    Its words are read, like those of any system turn, and not learned: they weigh as `instruction` does,
    which is 0 unless a config says otherwise.

    Args:
        of: The source.
        prompts: Task -> what the model reads first; `default` is for all other tasks.

    >>> from lightning_vlm.data.drawn import Drawn
    >>> source = WithSystemPrompts(Drawn(size=2), {"default": "Answer in one word."})
    >>> source[1].messages[0].role, source[1].messages[0].parts[0].text
    ('system', 'Answer in one word.')
    """

    def __init__(self, of: Conversations, prompts: Mapping[str, str]) -> None:
        self._of = of
        self._prompts = {task: (Message("system", (Text(text),)),) for task, text in prompts.items()}
        self.skipped = of.skipped
        self.only_words = of.only_words
        self.times = of.times
        self.windows = of.windows

    def __len__(self) -> int:
        return len(self._of)

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]  # a source has no slices
        conversation = self._of[index]
        first = self._prompts.get(conversation.task, self._prompts.get(DEFAULT, ()))
        if any(message.role == "system" for message in conversation.messages):
            return conversation
        return conversation.with_messages((*first, *conversation.messages))

    def task_table(self) -> TaskTable:
        """As of the source."""
        return self._of.task_table()

    def files(self) -> Sequence[Conversations]:
        """As of the source."""
        return self._of.files()

    def names(self) -> Sequence[str] | None:
        """As of the source."""
        return self._of.names()
