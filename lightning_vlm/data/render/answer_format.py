"""How a chat template begins and ends an answer, found by rendering a few short chats."""

import re
import warnings
from collections.abc import Iterable

from lightning_vlm.data.render.chat import CHOOSE_ANOTHER, ChatTemplate
from lightning_vlm.data.render.special_tokens import any_of


class AnswerFormat:
    """How a chat template begins and ends an answer.

    A template that would teach a model something that the user can't want gets a warning.

    Args:
        template: The template.
        end_tokens: The tokens that may end a turn.
        eos_token: The tokenizer's.
        next_turn: The token that begins a question and so ends the answer before it, if there is one.
        strips: The processor takes white space from the end of a text, generation prompts included. So the
            model must write it.

    Raises:
        UserError: The template can't render a question and an answer.
    """

    def __init__(
        self,
        template: ChatTemplate,
        end_tokens: Iterable[str],
        eos_token: str,
        next_turn: str | None = None,
        strips: bool = False,
    ) -> None:
        self._template = template
        self.strips = strips
        """Whether the processor takes white space from the end of a generation prompt."""
        prompt = self._find_generation_prompt()
        self.generation_prompt = prompt.rstrip() if strips else prompt
        """What the template writes to ask for an answer; if nothing, how it ends a question."""
        before_question, before_answer, behind_answer = template.around("user", "assistant")
        _, prompt = template.around("user", generate=True)
        if self._white_space_before(before_answer) is None and not before_answer.startswith(prompt):
            self._warn(
                f"begins an answer with {before_answer!r}, but asks for one with "
                f"{self.generation_prompt!r}, so the prompt of a new answer would differ from training"
            )
        any_end = any_of(end_tokens).pattern
        # Cohere's end an answer, then the turn: up to the tokenizer's end token all are written.
        self._end = re.compile(rf"\s*((?:{any_end})*?{re.escape(eos_token)}|{any_end})")
        self._next_turn = next_turn
        self.end_of_turn = self._find_end_of_turn(before_question, behind_answer, eos_token)
        """What the template writes to end an answer: a special token, and white space before it."""
        ends_last = behind_answer.startswith(self.end_of_turn)
        self.added_end = (
            "" if ends_last or self.end_of_turn not in (next_turn, eos_token) else self.end_of_turn
        )
        """What is added behind the last answer of a chat, because the template writes it only before the next
        question; empty where the template writes an end itself."""

    def end_behind(self, text: str, place: int) -> int:
        """Where an answer ends that goes up to a place, and to the next turn's token if that ends it."""
        end = self._end.match(text, place) if self.added_end else None
        is_answer = end is not None and self.generation_prompt.lstrip().startswith(end[1])
        return place if end is None or is_answer else end.end()

    def white_space_before(self, lead_in: str) -> str:
        """The white space between the generation prompt and an answer, which the model must write itself.

        Args:
            lead_in: What the template wrote before the answer.
        """
        return self._white_space_before(lead_in) or ""

    def _white_space_before(self, lead_in: str) -> str | None:
        """None where the lead-in does not end with the generation prompt and white space."""
        for place in range(len(lead_in), len(lead_in.rstrip()) - 1, -1):
            if lead_in.endswith(self.generation_prompt, 0, place):
                return lead_in[place:]
        return None

    def _find_generation_prompt(self) -> str:
        _, end_of_question = self._template.around("user")
        _, prompt = self._template.around("user", generate=True)
        return prompt.removeprefix(end_of_question) or prompt

    def _find_end_of_turn(self, before_question: str, behind_answer: str, eos_token: str) -> str:
        last = self._end.match(behind_answer)
        roles = ("user", "assistant") * 2
        between_rounds = self._template.around(*roles)[2] if self._template.accepts(roles) else None
        if last:
            if between_rounds is not None and not between_rounds.startswith(last[0]):
                self._warn(
                    f"ends only the last answer of a chat with {last[1]!r}, so after the others the model "
                    "would not learn to stop"
                )
            return last[0]
        inner = self._end.match(between_rounds or "")
        if inner and inner[0] == self._next_turn:
            return inner[0]
        if inner and inner[0] == eos_token:
            self._warn(
                f"ends every answer but the last one of a chat with {inner[0]!r}, which is added there, so "
                "that the model learns to stop"
            )
            return inner[0]
        # A token that also begins the first turn begins the next turn here, and doesn't end this one.
        if inner and (inner[1] == eos_token or inner[1] not in before_question):
            self._warn(
                f"ends every answer but the last one of a chat with {inner[1]!r}, so the model would hardly "
                "learn to stop"
            )
            return inner[0]
        self._warn("writes no end-of-turn token after an answer, so the model would never learn to stop")
        return ""

    def _warn(self, what: str) -> None:
        warnings.warn(f"the chat template of {self._template.name} {what}; {CHOOSE_ANOTHER}", stacklevel=4)
