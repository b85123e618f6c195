"""What the assistant thinks before it answers, and where a template puts it."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from lightning_vlm.data.conversation import Message, Text


class ReasoningMarks(NamedTuple):
    """What a chat template writes before and behind reasoning.

    >>> ReasoningMarks("<think>", "</think>").divide("<think>\\nRed?\\n</think>\\n\\nRed.")
    ('Red?', 'Red.')
    >>> ReasoningMarks("<think>", "</think>").divide("Red.")
    (None, 'Red.')
    """

    begin: str
    end: str
    prompted: bool = False
    """Whether the generation prompt has begun to reason, so that the model doesn't write the first mark."""

    @classmethod
    def of(cls, before: str, behind: str, prompt: str) -> "ReasoningMarks | None":
        """The marks in what a template writes before reasoning, and between reasoning and answer.

        Args:
            before: What it writes before reasoning.
            behind: What it writes between reasoning and answer.
            prompt: The text with its generation prompt.
        """
        end = behind.strip()
        last_line = before.rstrip().rpartition("\n")[2]
        last_tag = re.search(r"<[^<>\s]*>$", last_line)
        begin = last_tag[0] if last_tag else last_line
        return cls(begin, end, prompt.rstrip().endswith(begin)) if begin and end else None

    def divide(self, text: str) -> tuple[str | None, str]:
        """The reasoning in what a model wrote, None where there is none, and the answer behind it.

        Where it was cut off within its reasoning, there is no answer.
        """
        reasoning, mark, answer = text.rpartition(self.end)
        if not mark:
            if not self.prompted and not text.lstrip().startswith(self.begin):
                return None, text
            reasoning, answer = text, ""
        return reasoning.strip().removeprefix(self.begin).strip(), answer.strip()


def with_reasoning(messages: Sequence[Message], marks: ReasoningMarks | None) -> tuple[Message, ...]:
    """Messages whose reasoning is apart where it is written into the text, in the marks of their template.

    It is what templates do themselves with such a text. Where a template knows no reasoning, or other marks,
    the text stays as it is. Reasoning that is blank is none.
    """
    return tuple(_with_reasoning(message, marks) for message in messages)


def _with_reasoning(message: Message, marks: ReasoningMarks | None) -> Message:
    if message.reasoning is not None and not message.reasoning.strip():
        message = replace(message, reasoning=None)
    first = message.parts[0] if message.parts else None
    is_candidate = message.role == "assistant" and isinstance(first, Text) and not first.entity
    if marks is None or message.reasoning is not None or not is_candidate:
        return message
    assert isinstance(first, Text)
    before, mark, answer = first.text.partition(marks.end)
    begins = before.count(marks.begin)
    begins_within = not begins or (begins == 1 and before.lstrip().startswith(marks.begin))
    if not mark or marks.end in answer or not begins_within:
        return message
    reasoning = before.rstrip("\n").partition(marks.begin)[2] if begins else before.rstrip("\n")
    answer = answer.lstrip("\n")
    words = (Text(answer),) if answer or len(message.parts) > 1 else ()
    return replace(
        message,
        reasoning=reasoning.lstrip("\n") if reasoning.strip() else None,
        parts=words + message.parts[1:],
    )
