"""Texts that a chat template writes without the white space around them."""

from collections.abc import Sequence

from lightning_vlm.data.render.turns import TextSpan


def match_stripped(written: str, pieces: Sequence[str], spans: Sequence[TextSpan]) -> list[TextSpan] | None:
    """Each text as it stands in what a template wrote: as it is, or stripped. None where it is changed.

    A regular expression would find the same, but takes seconds to compile for long texts.

    Args:
        written: The whole text.
        pieces: What the template itself writes before, between and behind the texts.
        spans: The texts, one fewer.
    """
    forms = [_forms(span) for span in spans]
    if not written.startswith(pieces[0]):
        return None
    failed: set[tuple[int, int]] = set()
    chosen: list[TextSpan] = []
    places = [len(pieces[0])]  # where each text begins
    waiting = [iter(forms[0].values())] if forms else []
    while waiting:
        number = len(waiting) - 1
        start = places[number]
        for span in waiting[-1]:
            behind = start + len(span.text)
            after = behind + len(pieces[number + 1])
            if not (written.startswith(span.text, start) and written.startswith(pieces[number + 1], behind)):
                continue
            if number + 1 == len(forms):
                if after == len(written):
                    return [*chosen, span]
            elif (number + 1, after) not in failed:
                chosen.append(span)
                places.append(after)
                waiting.append(iter(forms[number + 1].values()))
                break
        else:
            failed.add((number, start))
            waiting.pop()
            places.pop()
            if chosen:
                chosen.pop()
    return None


def _forms(span: TextSpan) -> dict[str, TextSpan]:
    """A text as it is, and with white space stripped in the ways that templates do."""
    forms = {span.text: span}
    for space in (None, "\n"):
        start = len(span.text) - len(span.text.lstrip(space))
        stop = len(span.text.rstrip(space))
        for one in (slice(start, stop), slice(start, None), slice(stop)):
            forms.setdefault(span.text[one], span.part(one))
    return forms
