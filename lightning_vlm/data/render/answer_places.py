"""Where the answers are in what a chat template wrote: from its generation prompt to what ends the turn."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lightning_vlm.data.conversation import Message, Text
from lightning_vlm.data.render.answer_format import AnswerFormat
from lightning_vlm.data.render.chat import ChatTemplate
from lightning_vlm.data.render.chat_messages import MarkedTurns
from lightning_vlm.data.render.markers import ANSWER, DEFINITION, split_at_markers, text_places, with_edges
from lightning_vlm.data.render.turns import THINKS_NOTHING, UNLEARNED, TextSpan, Turn, has_more_than_words
from lightning_vlm.errors import DataError

Tools = Sequence[Mapping[str, Any]]


class AnswerPlace(NamedTuple):
    """One answer in a marked text: all that the model must write in a turn.

    Args:
        start: Where it begins.
        stop: Where it ends.
        first_weight: The weight of what the template writes before its first words.
        end_weight: Of what it writes behind them.
        has_weights: Whether any of it weighs something else than 1.
    """

    start: int
    stop: int
    first_weight: float
    end_weight: float
    has_weights: bool


class MarkedChat(NamedTuple):
    """A marked text with marks around its answers and around what tells of tools.

    Args:
        text: The text.
        spans: Its texts, by number.
        answers: Its answers, in order.
        changes: What was done to its turns, each in a sentence of `turns`.
    """

    text: str
    spans: list[TextSpan]
    answers: list[AnswerPlace]
    changes: tuple[str, ...] = ()


class AnswerPlaces:
    """Finds the answers in what a template wrote.

    Most templates are regular: an answer is its words, white space before them that the generation prompt
    lacks, and an end-of-turn token. Others write more (reasoning, calls of tools), or write an answer
    otherwise once later turns follow. There an answer is what follows the generation prompt of the turns
    before it, word for word, where the turn is the last one; if it isn't the last, it is learned only if the
    template writes just the same then.

    Args:
        template: The template.
        answers: How it begins and ends plain answers.
    """

    def __init__(self, template: ChatTemplate, answers: AnswerFormat) -> None:
        self._template = template
        self._format = answers
        self.regular = self._is_regular()
        """Whether words, and nothing else, tell answers of words from the rest."""

    def mark(
        self, marked: MarkedTurns, turns: Sequence[Turn], tools: Tools, *, asks: bool, source: str
    ) -> MarkedChat:
        """Mark the answers in what the template wrote.

        Args:
            marked: What it wrote.
            turns: What was written.
            tools: The definitions of tools.
            asks: Whether the generation prompt comes at the end, so that nothing is learned.
            source: Of the sample.

        Raises:
            DataError: The last answer isn't what the model would write after the generation prompt.
        """
        text, spans = marked.text, list(marked.spans)
        if turns[-1].role == "assistant" and not asks:
            text += self._added_end(turns, tools)
        by_words = asks or (self.regular and is_plain(turns, tools))
        places = text_places(text)
        answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
        found: list[AnswerPlace] = []
        changes: list[str] = []
        for index in answers:
            weights = [message.weight for message in turns[index].messages] or [1.0]
            numbers = marked.numbers[index]
            exact = None
            if not by_words:
                is_learned = max(weights) > 0
                refuse = source if is_learned and index == answers[-1] else None
                exact = self._exact(text, turns[: index + 1], tools, refuse)
                if is_learned and exact is None:
                    changes.append(UNLEARNED)
                    weights = [0.0]
                    _unlearn(spans, numbers)
                elif exact is not None and is_learned and self._thinks_nothing(text, places, exact, numbers):
                    changes.append(THINKS_NOTHING)
            if exact is not None:
                _check_texts(exact, places, [(number, spans[number]) for number in numbers], source)
            start, stop = exact or self._by_words(text, places, numbers)
            first = next((spans[number] for number in numbers if spans[number].text), None)
            first_weight = weights[0] if first is None else float(first.weights[0])
            has_weights = any(weight != 1 for weight in weights)
            found.append(AnswerPlace(start, stop, first_weight, weights[-1], has_weights))
        edges = [edge for place in found for edge in zip((place.start, place.stop), ANSWER, strict=True)]
        if tools:
            edges += self._definitions(text, turns, asks, found)
        return MarkedChat(with_edges(text, edges), spans, found, tuple(dict.fromkeys(changes)))

    def learned(self, turns: Sequence[Turn], tools: Tools) -> list[bool]:
        """Of each turn, whether it is an answer that these turns write as the model would."""
        marked = self._template.marked(turns, False, tools)
        return [
            turn.role == "assistant"
            and marked is not None
            and self._exact(marked, turns[: index + 1], tools) is not None
            for index, turn in enumerate(turns)
        ]

    def _is_regular(self) -> bool:
        """Whether both ways find the same in plain chats, or no answer begins with the generation prompt."""
        for rounds in (1, 2):
            roles = ("user", "assistant") * rounds
            if not self._template.accepts(roles):
                continue
            turns = [Turn(role, (Message(role, (Text("?"),)),), place) for place, role in enumerate(roles)]  # type: ignore[arg-type]
            marked = self._template.marked(turns, False)
            assert marked is not None
            places = text_places(marked)
            for index in range(1, len(turns), 2):
                exact = self._exact(marked, turns[: index + 1], ())
                if rounds == 1 and exact is None:
                    return True
                if exact != self._by_words(marked, places, range(index, index + 1)):
                    return False
        return True

    def _exact(
        self, marked: str, turns: Sequence[Turn], tools: Tools, refuse: str | None = None
    ) -> tuple[int, int] | None:
        """Where the last of some turns is in a longer text, if the model would write it so.

        Args:
            marked: The longer text.
            turns: The turns up to it.
            tools: The definitions of tools.
            refuse: The source of the sample, to raise instead of returning None.
        """
        prompt = self._template.marked(turns[:-1], True, tools)
        alone = self._template.marked(turns, False, tools)
        if prompt is not None and self._format.strips:
            prompt = prompt.rstrip()
        if prompt is not None and alone is not None and alone.startswith(prompt):
            stop = max(len(prompt), len(alone.rstrip()))
            if marked.startswith(alone[:stop]):
                return len(prompt), self._format.end_behind(marked, stop)
        if refuse is None:
            return None
        key = f"messages[{turns[-1].first}]"
        if prompt is None or alone is None:
            found = "an answer to turns after which the chat template writes no generation prompt"
        else:
            same = _common(prompt, alone)
            asked, written = prompt[same:][:60], alone[same:][:60]
            found = f"an answer that the chat template begins with {written!r}, but asks for with {asked!r}"
        expected = "the same, by model.template_options or another model.chat_template"
        raise DataError(refuse, key, found, expected)

    def _by_words(
        self, marked: str, places: Mapping[int, tuple[int, int, int]], numbers: range
    ) -> tuple[int, int]:
        """Where a turn of some texts is: its words, white space before them, and what ends it."""
        written = [places[number] for number in numbers if number in places]
        if not written:  # nothing that could be learned
            later = [start for number, (_, start, _) in places.items() if number >= numbers.stop]
            place = min(later, default=len(marked))
            return place, place
        behind, begin, _ = written[0]
        stop = written[-1][2]
        start = begin - len(self._format.white_space_before(marked[behind:begin]))
        if marked.startswith(self._format.end_of_turn, stop):
            stop += len(self._format.end_of_turn)
        return start, stop

    def _added_end(self, turns: Sequence[Turn], tools: Tools) -> str:
        """What ends the last answer, where the template writes it only before the next turn."""
        end = self._format.added_end
        if not end or not any(message.calls for message in turns[-1].messages):
            return end
        result = Turn("tool", (Message("tool", (Text("?"),)),), 0)
        alone = self._template.marked(turns, False, tools)
        longer = self._template.marked([*turns, result], False, tools)
        if alone is None or longer is None or not longer.startswith(alone):
            return end
        return longer[len(alone) : self._format.end_behind(longer, len(alone))]

    def _thinks_nothing(
        self,
        marked: str,
        places: Mapping[int, tuple[int, int, int]],
        answer: tuple[int, int],
        numbers: range,
    ) -> bool:
        """Whether the template writes the marks of reasoning before the first text of an answer."""
        marks = self._template.reasoning
        start, stop = answer
        _, first, _ = places.get(numbers.start, (0, stop, stop)) if numbers else (0, stop, stop)
        return marks is not None and marks.end in marked[start:first]

    def _definitions(
        self, marked: str, turns: Sequence[Turn], asks: bool, answers: Sequence[AnswerPlace]
    ) -> list[tuple[int, str]]:
        """The edges of what the template writes more where there are tools, outside of answers."""
        without = self._template.marked(turns, asks, ())
        if without is None:
            return []
        edges = []
        places = text_places(marked)
        place = 0
        pieces = zip(split_at_markers(marked), split_at_markers(without), strict=False)
        for (before, number, *_), (usual, *_) in pieces:
            same = _common(before, usual)
            behind = min(_common(before[::-1], usual[::-1]), len(before) - same, len(usual) - same)
            start, stop = place + same, place + len(before) - behind
            place = len(marked) if number is None else places[number][2]
            if start < stop and not any(start < answer.stop and answer.start < stop for answer in answers):
                edges += [(start, DEFINITION[0]), (stop, DEFINITION[1])]
        return edges


def is_plain(turns: Sequence[Turn], tools: Tools) -> bool:
    """Whether turns are words, pictures and videos alone."""
    return not tools and not any(turn.role == "tool" or has_more_than_words(turn) for turn in turns)


def _check_texts(
    answer: tuple[int, int],
    places: Mapping[int, tuple[int, int, int]],
    spans: Sequence[tuple[int, TextSpan]],
    source: str,
) -> None:
    """Raise unless each text of an answer is in it: a template may leave reasoning out."""
    for number, span in spans:
        _, start, stop = places.get(number, (0, -1, -1))
        if not answer[0] <= start <= stop <= answer[1]:
            found = "a text that the chat template leaves out of the answer"
            if span.reasoning:
                found = "reasoning, which the chat template leaves out"
            expected = (
                "another template (model.chat_template), or <think>...</think> in the words of the answer"
            )
            raise DataError(source, span.key, found, expected)


def _unlearn(spans: list[TextSpan], numbers: range) -> None:
    """Take the weights from some texts. In place."""
    for number in numbers:
        none = np.zeros_like(spans[number].weights)
        spans[number] = spans[number]._replace(weights=none, end_weight=0.0)


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    count = 0
    for first, second in zip(one, other, strict=False):
        if first != second:
            break
        count += 1
    return count
