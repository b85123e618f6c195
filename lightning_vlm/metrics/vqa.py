"""VQA accuracy, with the official normalisation of answers."""

import re
from collections.abc import Sequence

FEWEST = 4
"""With fewer right answers, no answer could be fully right: three others must agree with it."""
_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_SHORT_FORMS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's
who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've
you'll you're you've
"""


def _misspellings() -> dict[str, str]:
    """How short forms are written with one of their apostrophes left out."""
    found = {"somebody'd": "somebodyd"}  # in the official table the wrong way round
    for form in _SHORT_FORMS.split():
        for at, letter in enumerate(form):
            if letter == "'":
                found[form[:at] + form[at + 1 :]] = form
    return found


_CORRECT = _misspellings()


def normalized(answer: str) -> str:
    """An answer as the evaluation of VQA v2 compares it (https://visualqa.org/evaluation.html).

    Small letters; no articles, and no periods but decimal points; numbers up to ten as digits; apostrophes
    put into short forms. Other punctuation is left out where it stands beside a space, or where a number of
    the answer has a comma in it, and else becomes a space.

    >>> normalized("The Two dogs."), normalized("dont"), normalized("1,000"), normalized("red/blue")
    ('2 dogs', "don't", '1000', 'red blue')
    """
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    has_comma = _COMMA_IN_NUMBER.search(text) is not None
    without = text
    for mark in _PUNCTUATION:
        is_loose = f"{mark} " in text or f" {mark}" in text
        without = without.replace(mark, "" if is_loose or has_comma else " ")
    words = []
    for word in _PERIOD.sub("", without).lower().split():
        word = _NUMBERS.get(word, word)
        if word not in _ARTICLES:
            words.append(_CORRECT.get(word, word))
    return " ".join(words)


def vqa_accuracy(prediction: str, references: Sequence[str]) -> float | None:
    """How many people gave this answer, three being enough (Antol et al. 2015,
    https://arxiv.org/abs/1505.00468).

    It is min(others who say so / 3, 1), in the mean over all ways to leave one person out. Answers of people
    are normalised as the model's is; the official code does so only where they differ.

    Args:
        prediction: What the model wrote.
        references: What people answered, ten of them in VQA v2, TextVQA and VizWiz.

    Returns:
        0..1; None for fewer than four references.

    >>> answers = ["red", "red", "red", "Dark red.", "maroon", "pink", "red!", "brown", "brown", "pink"]
    >>> [round(vqa_accuracy(answer, answers), 2) for answer in ("Red", "brown", "blue")]
    [1.0, 0.6, 0.0]
    """
    if len(references) < FEWEST:
        return None
    answer = normalized(prediction)
    agree = [normalized(reference) == answer for reference in references]
    total = sum(agree)
    return sum(min((total - one) / 3, 1.0) for one in agree) / len(agree)
