"""Which scores suit the answers of a task: `model.scores`."""

from typing import NamedTuple

from lightning_vlm.start.survey import TaskFacts

_SHORT = 4
"""Up to so many words, an answer is right or wrong as a whole."""
_MOST = 0.8
"""The share of answers of one kind that makes a task one of that kind."""
_READING = ("ocr", "docvqa", "textvqa", "transcri", "htr", "handwriting")


class Chosen(NamedTuple):
    """Scores, and why these."""

    names: tuple[str, ...]
    why: str


def scores_of(task: str, facts: TaskFacts) -> Chosen:
    """The scores of a task.

    Args:
        task: Its name.
        facts: What its answers are.

    >>> from collections import Counter
    >>> scores_of("grounding", TaskFacts([1], Counter(box=1), samples=1)).names
    ('acc@0.5', 'miou', 'parse_failures')
    >>> scores_of("default", TaskFacts([1, 2])).names, scores_of("ocr", TaskFacts([1])).names
    (('exact_match', 'token_f1'), ('anls', 'cer', 'exact_match'))
    """
    several = facts.samples and facts.references >= _MOST * facts.samples
    if facts.share("box", "region") + facts.share("nothing") >= _MOST and facts.share("box", "region"):
        more = ("hallucination", "missed") if facts.share("nothing") else ()
        also = ("map",) if task == "detection" else ()
        names = ("acc@0.5", "miou", *also, "parse_failures", *more)
        return Chosen(names, "answers are boxes: how far they overlap the right ones")
    if facts.share("point") >= _MOST:
        return Chosen(("pck@0.05", "parse_failures", "missed"), "answers are points: how near they are")
    if facts.share("box", "point", "region"):
        names = ("token_f1", "acc@0.5", "miou", "parse_failures")
        return Chosen(names, "some answers have boxes beside words")
    if facts.share("yes_no") >= _MOST:
        return Chosen(("yes_no", "yes_no_f1", "yes_share"), "answers are yes or no")
    if facts.share("letter") >= _MOST:
        return Chosen(("mcq", "exact_match"), "answers are letters of choices")
    if several:
        return Chosen(("vqa_accuracy", "exact_match"), "samples have several right answers")
    if any(word in task.lower() for word in _READING):
        return Chosen(("anls", "cer", "exact_match"), "text is read: how many characters differ")
    if facts.share("number") >= _MOST:
        return Chosen(("exact_match", "relaxed_accuracy"), "answers are numbers")
    if facts.usual_words <= _SHORT:
        return Chosen(("exact_match", "token_f1"), "answers are short")
    return Chosen(("rougeL", "chrf"), "answers are long: words in common, characters in common")
