"""How near a written answer is to the right one."""

from collections import Counter


def exact_match(prediction: str, reference: str) -> float:
    """Whether two answers are the same, but for space around them.

    Args:
        prediction: What the model wrote.
        reference: What is right.
    Returns:
        1.0 if they are equal after stripping, else 0.0. Case, accents, articles, punctuation and inner space
        count.

    >>> exact_match(" red\\n", "red"), exact_match("Red", "red")
    (1.0, 0.0)
    """
    return float(prediction.strip() == reference.strip())


def token_f1(prediction: str, reference: str) -> float:
    """How many words two answers share: harmonic mean of precision and recall over bags of words.

    It is the F1 of SQuAD (Rajpurkar et al., 2016) without its dropping of case, articles and punctuation,
    which in OCR and grounding are the answer itself: SQuAD takes `-5` for `5`, `STOP!` for `stop` and `A`
    for nothing. That is why torchmetrics' SQuAD isn't used.

    Args:
        prediction: What the model wrote.
        reference: What is right.
    Returns:
        0..1. Words are what stands between white space. Two answers without any word agree (1.0).

    >>> token_f1("a red circle", "the red circle"), token_f1("red red", "red"), token_f1("", "red")
    (0.66..., 0.66..., 0.0)
    """
    predicted, right = prediction.split(), reference.split()
    if not predicted or not right:
        return float(predicted == right)
    shared = (Counter(predicted) & Counter(right)).total()
    return 2 * shared / (len(predicted) + len(right))
