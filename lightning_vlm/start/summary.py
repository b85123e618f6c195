"""What `init` found, and what to type next."""

import shlex
from collections.abc import Iterator

from lightning_vlm.counted import counted
from lightning_vlm.nearest import one_line
from lightning_vlm.start.config_text import sizes
from lightning_vlm.start.findings import Findings
from lightning_vlm.start.lines import amount
from lightning_vlm.terminal import print_line, print_lines, print_text

_MOST_TASKS = 6


def show(found: Findings, was_there: bool) -> None:
    """Print the summary.

    Args:
        found: What was found.
        was_there: Whether the config was there already, with the same text.
    """
    for name, lines in _blocks(found):
        print_lines(name, lines)
    print_line("config", f"{found.out}{' (it was there already, just like this)' if was_there else ''}")
    print_line("", "")
    for command in _next(found):
        print_text(command)


def _blocks(found: Findings) -> Iterator[tuple[str, list[str]]]:
    seen = found.survey
    train = found.splits["train"].files
    name = train[0].path if len(train) == 1 else f"{len(train)} files"
    bad = f", and {len(found.faults):,} that can't be read: lint names all" if found.faults else ""
    yield "data", [f"{name}: {counted(seen.size, 'sample')}{bad}", f"format: {found.form}"]
    if found.columns:
        named = ", ".join(f"{theirs} is {ours}" for ours, theirs in found.columns.items())
        yield "columns", [named, "(a guess by names and contents: look at preview)"]
    if found.left_out:
        shown = ", ".join(found.left_out[:3])
        yield "left out", [f"{shown}{', ...' if len(found.left_out) > 3 else ''}"]
    yield "tasks", [_tasks(found)]
    yield "pictures", _pictures(found)
    if found.unit is not None or found.box_format is not None or seen.has_boxes:
        yield "boxes", _boxes(found)
    yield "lengths", _lengths(found)
    yield "validation", _evaluation(found)
    yield "model", _model(found)


def _tasks(found: Findings) -> str:
    tasks = found.survey.tasks
    shown = ", ".join(f"{name} {count:,}" for name, count in list(tasks.items())[:_MOST_TASKS])
    more = f", and {len(tasks) - _MOST_TASKS} more" if len(tasks) > _MOST_TASKS else ""
    rounds = found.survey.rounds
    several = max(rounds, default=0)
    return f"{shown}{more}" + (f"; up to {several} answers a sample" if several > 1 else "")


def _pictures(found: Findings) -> list[str]:
    seen = found.survey
    if not any(seen.pictures) and not seen.videos:
        return ["none: texts alone"]
    most = max(seen.pictures)
    lines = []
    if any(seen.pictures):
        without = sum(not count for count in seen.pictures)
        each = "one a sample" if most == min(seen.pictures) == 1 else f"up to {most} a sample"
        lines.append(each + (f", none in {without:,} of {len(seen.pictures):,}" if without else ""))
    if seen.videos:
        lines.append(f"videos in {seen.videos:,} of {len(seen.pictures):,} samples")
    if found.asks_for_addresses:
        lines.append("fetched from addresses in the data (allow_urls)")
    roots = {root.folder for opened in found.splits.values() for root in opened.roots if root is not None}
    for root in sorted(roots):
        lines.append(f"below {root}/")
    missing = [path for root in found.splits["train"].roots if root is not None for path in root.missing]
    if missing:
        lines.append(f"{len(missing):,} missing, such as {one_line(missing[0], 50)}")
    return lines


def _boxes(found: Findings) -> list[str]:
    if found.must_choose:
        assert found.unit is not None
        again = shlex.quote((found.unit.fits or ("pixels",))[0])
        return [
            f"CHOOSE their unit: {found.unit.why};",
            f"give it to init, as --box_format {again}, or as data.box_format in the config",
        ]
    if found.box_format is None:
        return ["the data says their unit"]
    return [f"{found.box_format}" + (f": {found.unit.why}" if found.unit is not None else "")]


def _lengths(found: Findings) -> list[str]:
    measured = found.tokens
    if measured is None:
        return ["unknown: the model can't be reached from here"]
    lengths, answers = sorted(measured.lengths), measured.answers
    middle = lengths[len(lengths) // 2]
    lines = [
        f"{lengths[0]:,} to {lengths[-1]:,} tokens, {middle:,} in the middle; answers up to {max(answers):,}"
    ]
    if measured.context is not None and lengths[-1] > measured.context:
        over = sum(length > measured.context for length in lengths)
        lines.append(
            f"{over:,} of {len(lengths):,} are longer than the model's context of {measured.context:,}"
        )
    if measured.errors:
        lines.append(
            f"{len(measured.errors):,} can't be rendered for it: {one_line(str(measured.errors[0]), 160)}"
        )
    return lines


def _evaluation(found: Findings) -> list[str]:
    held = sizes(found)
    lines = []
    for split in ("val", "test"):
        if split in found.splits:
            files = found.splits[split].files
            lines.append(f"{split} {files[0].path if len(files) == 1 else f'{len(files)} files'}")
        elif split in held:
            lines.append(f"{split} {held[split]} of the samples: whole pictures, held out")
    return lines or ["none: too few samples to hold some out"]


def _model(found: Findings) -> list[str]:
    choice = found.choice
    if choice is None:
        return [
            f"{found.model}, which can't be reached from here: no plan, and lengths are guesses",
            "(--model drawn-vlm tries all of this without a download)",
        ]
    method = choice.adapt if isinstance(choice.adapt, str) else "a plan"
    lines = [
        f"{found.model}, {method}, {choice.precision}, "
        f"{choice.batch_size} × {choice.accumulate} samples a step",
    ]
    size = f" of {found.memory}" if found.memory else ""
    lines.append(f"about {amount(choice.gib)}{size} at the peak")
    if not choice.fits:
        lines.append("which does NOT fit: choose a smaller model, or shorter samples")
    return lines


def _next(found: Findings) -> Iterator[str]:
    config = f"--config {shlex.quote(found.out)}"
    memory = f" --memory {found.memory}" if found.memory else ""
    yield f"lightning-vlm lint {config}"
    yield f"lightning-vlm preview {config}"
    yield f"lightning-vlm plan {config}{memory}"
    yield f"lightning-vlm fit {config}"
