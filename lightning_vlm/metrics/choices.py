"""Questions with lettered choices: which letter an answer means."""

import re
from collections.abc import Mapping

_CHOICE = re.compile(r"^[ \t]*[(\[]?([A-Z])[)\].:][ \t]+(\S.*)$", re.MULTILINE)
_ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
_AFTER_ANSWER = re.compile(
    r"\b(?:answer|option|choice|correct)\b(?:\s+(?:is|would be|should be|option|choice|letter)){0,5}[\s:=*_]*"
    r"(?:[(\[{\"'][(\[{\"'*]*)?(?P<letter>[A-Za-z])(?P<end>[)\]}\"'*.,:;]|\s*$|(?=\s))",
    re.IGNORECASE,
)
_IN_BRACKETS = re.compile(r"[(\[{]([A-Za-z])[)\]}]|\*\*([A-Za-z])[.:)]?\*\*|\\boxed\{([A-Za-z])\}")
_IN_FRONT = re.compile(r"\s*([A-Za-z])\s*[.:)\],](?!\w)")
_SINGLE = re.compile(r"(?<![\w'’.-])([A-Z])(?![\w'’-]|\.\w)")
_NOUN_MAY_FOLLOW = re.compile(r"\s+(?!(?:and|or|is|because|since|as)\b)[a-z\d]")


def choices_of(prompt: str) -> dict[str, str]:
    """The choices of a question, by their letters, where each stands on a line of its own.

    >>> choices_of("What is it?\\nA. a cat\\nB. a dog\\nAnswer with the letter.")
    {'A': 'a cat', 'B': 'a dog'}
    """
    found: dict[str, str] = {}
    for letter, text in _CHOICE.findall(prompt):
        if letter == chr(ord("A") + len(found)):  # in order from A, or else it isn't a list of choices
            found[letter] = text.rstrip(" \t")
    return found if len(found) > 1 else {}


def letter_of(text: str, choices: Mapping[str, str] | None = None) -> str | None:
    """The letter that an answer means. The order is that of MMMU and lmms-eval, the rules are stricter:

    1. the answer is one letter, with or without punctuation: `B`, `(b)`, `b.`;
    2. a letter after words such as "answer is" or "option", the last one;
    3. a letter in brackets, or alone in bold, the last one;
    4. a letter with a period, a colon or a bracket in front of all else;
    5. the words of a choice, alone;
    6. a capital on its own, if there is only one; `A` and `I` only where no word follows;
    7. the words of one choice and no other, somewhere.

    An article is never a letter: "A cat" means none. Letters that aren't among the choices mean none, either.

    Args:
        text: What was written.
        choices: The choices by letter; without, A to Z are possible, and words mean nothing.

    >>> [letter_of(text) for text in ("(B)", "Answer: B", "b.", "The answer is C, I think.", "A red ball")]
    ['B', 'B', 'B', 'C', None]
    """
    choices = choices or {}
    for ask in (_whole, _after_answer, _in_brackets, _in_front):
        letter = ask(text, choices)
        if letter is not None:
            return letter
    return _words_alone(text, choices) or _single(text, choices) or _words_somewhere(text, choices)


def choice_accuracy(prediction: str, reference: str, prompt: str = "") -> float | None:
    """Whether an answer means the right letter.

    Args:
        prediction: What the model wrote.
        reference: What is right: a letter, a letter and its words, or the words of a choice.
        prompt: The question, in which choices may stand.

    Returns:
        0 or 1; None if the right answer means no letter.

    >>> choice_accuracy("It must be (B).", "B"), choice_accuracy("A dog", "B. a dog", "A. a cat\\nB. a dog")
    (1.0, 1.0)
    """
    choices = choices_of(prompt)
    right = letter_of(reference, choices)
    return None if right is None else float(letter_of(prediction, choices) == right)


def _known(letter: str, choices: Mapping[str, str]) -> str | None:
    letter = letter.upper()
    return letter if not choices or letter in choices else None


def _whole(text: str, choices: Mapping[str, str]) -> str | None:
    found = _ALONE.fullmatch(text)
    return _known(found[1], choices) if found else None


def _after_answer(text: str, choices: Mapping[str, str]) -> str | None:
    letters = []
    stop = len(text.rstrip())
    for found in _AFTER_ANSWER.finditer(text):
        is_word = not found["end"].strip() and found.end() < stop
        may_be = found["letter"].isupper() or not is_word
        if may_be and not (is_word and _is_article(text, found.end("letter"), found["letter"])):
            letters.append(_known(found["letter"], choices))
    return _last(letters)


def _in_brackets(text: str, choices: Mapping[str, str]) -> str | None:
    letters = [_known(next(filter(None, groups)), choices) for groups in _IN_BRACKETS.findall(text)]
    return _last(letters)


def _in_front(text: str, choices: Mapping[str, str]) -> str | None:
    found = _IN_FRONT.match(text)
    return _known(found[1], choices) if found else None


def _single(text: str, choices: Mapping[str, str]) -> str | None:
    letters = {
        _known(found[1], choices)
        for found in _SINGLE.finditer(text)
        if not _is_article(text, found.end(), found[1])
    } - {None}
    return letters.pop() if len(letters) == 1 else None


def _is_article(text: str, end: int, letter: str) -> bool:
    """Whether a letter is a word of the sentence, as in "A cat" and "I see"."""
    if letter.upper() == "I":
        return re.match(r"\s+\w", text[end : end + 9]) is not None
    return letter.upper() == "A" and _NOUN_MAY_FOLLOW.match(text, end) is not None


def _words_alone(text: str, choices: Mapping[str, str]) -> str | None:
    plain = _plain(text)
    letters = [letter for letter, words in choices.items() if plain and _plain(words) == plain]
    return letters[0] if len(letters) == 1 else None


def _words_somewhere(text: str, choices: Mapping[str, str]) -> str | None:
    plain = f" {_plain(text)} "
    letters = [letter for letter, words in choices.items() if f" {_plain(words)} " in plain]
    return letters[0] if len(letters) == 1 else None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[\w.%-]+", text.lower())).strip(".")


def _last(letters: list[str | None]) -> str | None:
    known = [letter for letter in letters if letter is not None]
    return known[-1] if known else None
