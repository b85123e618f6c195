"""Texts that a chat template writes without the white space around them."""

from collections.abc import Iterator, Sequence

from lightning_vlm.data.render.turns import TextSpan


def match_stripped(written: str, around: Sequence[str], spans: Sequence[TextSpan]) -> list[TextSpan] | None:
    """Each text as it stands in what a template wrote: as it is, or stripped. None where it is changed.

    A regular expression would find the same, but takes seconds to compile for long texts.

    Args:
        written: The whole text.
        around: What the template itself writes before, between and behind the texts.
        spans: The texts, one fewer.
    """
    if not written.startswith(around[0]):
        return None
    # Forward: where each text may begin, the forms of it that fit there, and where the next text then begins.
    fits: list[dict[int, list[tuple[TextSpan, int]]]] = []
    starts = {len(around[0])}
    for span, behind in zip(spans, around[1:], strict=True):
        forms = _forms(span)
        fits.append({start: list(_fitting(written, start, forms, behind)) for start in starts})
        starts = {after for fitting in fits[-1].values() for _, after in fitting}
    # Backward: only what leads to the end of the whole text.
    starts &= {len(written)}
    for fits_of_text in reversed(fits):
        for start, fitting in fits_of_text.items():
            fits_of_text[start] = [(form, after) for form, after in fitting if after in starts]
        starts = {start for start, fitting in fits_of_text.items() if fitting}
    if not starts:
        return None
    chosen = []
    start = len(around[0])
    for fits_of_text in fits:
        form, start = fits_of_text[start][0]
        chosen.append(form)
    return chosen


def _fitting(
    written: str, start: int, forms: Sequence[TextSpan], behind: str
) -> Iterator[tuple[TextSpan, int]]:
    """The forms that stand at a place with the template's own text behind them, and where that text ends."""
    for form in forms:
        stop = start + len(form.text)
        if written.startswith(form.text, start) and written.startswith(behind, stop):
            yield form, stop + len(behind)


def _forms(span: TextSpan) -> list[TextSpan]:
    """A text as it is, and with white space stripped in the ways that templates do."""
    forms = {span.text: span}
    for space in (None, "\n"):
        start = len(span.text) - len(span.text.lstrip(space))
        stop = len(span.text.rstrip(space))
        for stretch in (slice(start, stop), slice(start, None), slice(stop)):
            forms.setdefault(span.text[stretch], span.part(stretch))
    return list(forms.values())
