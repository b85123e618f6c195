import pytest

from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.data.read.easy_vqa import EasyVQA
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.baselines import blind_baselines


def say(*words):
    roles = ("user", "assistant") * len(words)
    return Conversation(
        tuple(Message(role, (Text(word),)) for role, word in zip(roles, words, strict=False)), source="x:1"
    )


def test_a_small_case_by_hand():
    train = [say("a?", "1"), say("a?", "1"), say("a?", "2"), say("b?", "2"), say("b?", "2")]
    test = [say("a?", "1"), say("a?", "2"), say("b?", "2"), say("new?", "2")]
    # commonest: "2" (3 of 5), right 3 of 4; per question: a->1, b->2, new->2, right 3 of 4 (another three)
    assert blind_baselines(train, test) == {
        "most frequent answer": 0.75,
        "most frequent answer per question": 0.75,
    }
    assert blind_baselines(train, test[:1]) == {
        "most frequent answer": 0,
        "most frequent answer per question": 1,
    }


def test_easy_vqa_against_its_own_reader():
    easy_vqa = pytest.importorskip("easy_vqa")
    from collections import Counter

    questions, answers, _ = easy_vqa.get_train_questions()
    test_questions, test_answers, _ = easy_vqa.get_test_questions()
    always = Counter(answers).most_common(1)[0][0]
    table = {q: Counter() for q in questions}
    for question, answer in zip(questions, answers, strict=True):
        table[question][answer] += 1
    right = [table[q].most_common(1)[0][0] == a for q, a in zip(test_questions, test_answers, strict=True)]

    scores = blind_baselines(EasyVQA("train"), EasyVQA("test"))
    assert scores["most frequent answer"] == pytest.approx(test_answers.count(always) / len(test_answers))
    assert scores["most frequent answer per question"] == pytest.approx(sum(right) / len(right))
    assert scores["most frequent answer"] == pytest.approx(0.37, abs=0.005)
    assert scores["most frequent answer per question"] == pytest.approx(0.67, abs=0.005)


@pytest.mark.parametrize(
    "bad", [[], [say("a?", "1", "b?", "2")], [say("a?")]], ids=["empty", "two rounds", "no answer"]
)
def test_what_cannot_be_scored_is_refused(bad):
    with pytest.raises(UserError):
        blind_baselines(bad, [say("a?", "1")])
