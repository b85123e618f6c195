"""Baselines that don't use the pictures, to compare a model's scores with."""

from collections import Counter, defaultdict
from collections.abc import Sequence

from lightning_vlm.data.conversation import Box, Conversation, Text
from lightning_vlm.errors import UserError


def blind_baselines(train: Sequence[Conversation], test: Sequence[Conversation]) -> dict[str, float]:
    """Exact match on `test` of two predictors that never see a picture.

    Args:
        train: Conversations of one question and one answer, to learn the most frequent answers from.
        test: Conversations of one question and one answer, to score on.
    Returns:
        Shares of right answers, 0..1: `most frequent answer` always says the training data's commonest
        answer; `most frequent answer per question` says the commonest one to the same question, word for
        word (and the overall one to a question it has not met).

    Raises:
        UserError: No conversations, or one with more than one round.

    >>> from lightning_vlm.data.read.easy_vqa import EasyVQA
    >>> scores = blind_baselines(EasyVQA("train"), EasyVQA("test"))
    >>> {name: round(score, 2) for name, score in scores.items()}
    {'most frequent answer': 0.37, 'most frequent answer per question': 0.67}
    """
    overall: Counter[str] = Counter()
    per_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in _pairs(train):
        overall[answer] += 1
        per_question[question][answer] += 1
    always = overall.most_common(1)[0][0]
    best = {question: answers.most_common(1)[0][0] for question, answers in per_question.items()}
    pairs = _pairs(test)
    right = sum(answer == always for _, answer in pairs)
    right_per_question = sum(answer == best.get(question, always) for question, answer in pairs)
    return {
        "most frequent answer": right / len(pairs),
        "most frequent answer per question": right_per_question / len(pairs),
    }


def _pairs(source: Sequence[Conversation]) -> list[tuple[str, str]]:
    pairs = []
    for conversation in (source[index] for index in range(len(source))):
        words = {
            message.role: _words(message.parts)
            for message in conversation.messages
            if message.role != "system"
        }
        rounds = sum(message.role == "user" for message in conversation.messages)
        if rounds != 1 or "assistant" not in words:
            raise UserError(
                f"{conversation.source}: found {rounds} questions; blind baselines need one, with its answer"
            )
        pairs.append((words["user"], words["assistant"]))
    if not pairs:
        raise UserError("blind baselines need at least one conversation in each of train and test")
    return pairs


def _words(parts: Sequence[object]) -> str:
    return "".join(
        part.text if isinstance(part, Text) else str(part) for part in parts if isinstance(part, Text | Box)
    )
