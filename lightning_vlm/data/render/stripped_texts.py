"""Texts that a chat template writes without the white space around them."""

from collections.abc import Sequence
from typing import NamedTuple

from lightning_vlm.data.render.markers import split_at_markers, text_numbers
from lightning_vlm.data.render.turns import TextSpan
from lightning_vlm.errors import DataError


class _Fit(NamedTuple):
    """A form of a text that stands at some place, and where the template's own text behind it ends."""

    form: TextSpan
    end: int


def texts_as_written(marked: str, written: str, spans: list[TextSpan], source: str) -> list[TextSpan]:
    """Each text as it stands in what the template wrote: as it is, or stripped. Reasoning may be left out.

    Args:
        marked: What the template wrote, with a marker in place of each text.
        written: The same with the texts.
        spans: The texts.
        source: Of the sample.

    Raises:
        DataError: The template leaves out, repeats, reorders or changes one.
    """
    numbers = text_numbers(marked)
    lost = [span for number, span in enumerate(spans) if number not in numbers and not span.reasoning]
    if lost or numbers != sorted(set(numbers)):
        flaw = f"leaves out {lost[0].key}" if lost else "repeats or reorders texts"
        expected = "one that writes every text once, in order"
        raise DataError(source, "messages", f"a chat template that {flaw}", expected)
    around = [piece.before for piece in split_at_markers(marked)]
    texts = match_stripped(written, around, [spans[number] for number in numbers])
    if texts is None:
        found = "a text that the chat template changes"
        raise DataError(source, "messages", found, "text that it writes as it is")
    as_written = dict(zip(numbers, texts, strict=True))
    return [as_written.get(number, span) for number, span in enumerate(spans)]


def match_stripped(written: str, around: Sequence[str], spans: Sequence[TextSpan]) -> list[TextSpan] | None:
    """Find each text as it stands in what a template wrote: as it is, or stripped. None where it is changed.

    A regular expression would find the same, but takes seconds to compile for long texts.

    Args:
        written: The whole text.
        around: What the template itself writes before, between and behind the texts.
        spans: The texts; there is one fewer than in `around`.
    """
    if not written.startswith(around[0]):
        return None
    # Forward: each place where a text may begin gets the forms that fit there. The next text begins where
    # one of them ends.
    fits_by_text: list[dict[int, list[_Fit]]] = []
    starts = {len(around[0])}
    for span, behind in zip(spans, around[1:], strict=True):
        forms = _forms(span)
        fits_by_start = {start: _fits(written, start, forms, behind) for start in starts}
        fits_by_text.append(fits_by_start)
        starts = {fit.end for fits in fits_by_start.values() for fit in fits}
    # Backward: only the forms that lead to the end of the whole text are kept.
    starts &= {len(written)}
    for fits_by_start in reversed(fits_by_text):
        for start, fits in fits_by_start.items():
            fits_by_start[start] = [fit for fit in fits if fit.end in starts]
        starts = {start for start, fits in fits_by_start.items() if fits}
    if not starts:
        return None
    chosen = []
    start = len(around[0])
    for fits_by_start in fits_by_text:
        first_fit = fits_by_start[start][0]
        chosen.append(first_fit.form)
        start = first_fit.end
    return chosen


def _fits(written: str, start: int, forms: Sequence[TextSpan], behind: str) -> list[_Fit]:
    """The forms that stand at a place with the template's own text behind them."""
    fits = []
    for form in forms:
        stop = start + len(form.text)
        if written.startswith(form.text, start) and written.startswith(behind, stop):
            fits.append(_Fit(form, stop + len(behind)))
    return fits


def _forms(span: TextSpan) -> list[TextSpan]:
    """A text as it is, and with white space stripped in the ways that templates do."""
    text = span.text
    forms = {text: span}
    for space in (None, "\n"):
        start = len(text) - len(text.lstrip(space))
        stop = len(text.rstrip(space))
        for stretch in (slice(start, stop), slice(start, None), slice(stop)):
            forms.setdefault(text[stretch], span.part(stretch))
    return list(forms.values())
