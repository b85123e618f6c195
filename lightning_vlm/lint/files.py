"""What `lint` writes: its findings as JSON, cleaned copies, and a list of rows to leave out."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from lightning_vlm_callbacks.whole_files import refusal, write_whole, written_whole

from lightning_vlm.counted import counted
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.read.readers import DataFile
from lightning_vlm.data.read.source import Source
from lightning_vlm.data.skip_list import ListedFile, is_skip_list, write_skip_list
from lightning_vlm.errors import UserError
from lightning_vlm.lint.finding import Report
from lightning_vlm.lint.kinds import SEVERITIES

How = Literal["clean", "skip"]
"""How rows are left out: by a copy without them, or by a list of them."""


def write_json(report: Report, path: str) -> None:
    """Write all findings as one JSON document, each on a line of its own.

    Raises:
        UserError: It can't be written there.
    """
    head = {
        "model": report.name,
        "max_length": report.max_length,
        "samples": dict(report.samples),
        "pictures": report.pictures,
        "counts": {severity: report.count(severity) for severity in SEVERITIES},
        "kinds": {kind: len(findings) for kind, findings in report.by_kind().items()},
        "tasks": [task._asdict() for task in report.tasks],
        "effective_tasks": report.effective_tasks,
    }
    findings = ",\n".join(json.dumps(finding.as_json()) for finding in report.findings)
    text = f'{json.dumps(head)[:-1]}, "findings": [\n{findings}\n]}}\n'
    try:
        write_whole(Path(path), text)
    except OSError as error:
        raise UserError(f"json: {refusal(error)}") from error


def fix(report: Report, data: VLMDataModule, how: How, skip_list: str) -> list[str]:
    """Leave out the rows that findings are about, in copies of files of JSON lines or by a list.

    Args:
        report: What was found.
        data: The data that was read.
        how: `clean` copies files of JSON lines without these rows, and lists those of other files.
        skip_list: Where the list goes.

    Returns:
        What was written, a line each.

    Raises:
        UserError: A file is there already, or nothing would be left.
    """
    why: defaultdict[str, set[str]] = defaultdict(set)
    for finding in report.findings:
        for row in finding.drops:
            why[row].add(finding.kind)
    lines: list[str] = []
    listed: list[ListedFile] = []
    for split, file in _files(data).values():
        rows = _rows_of(file, why)
        if not rows:
            continue
        if how == "clean" and isinstance(file, DataFile) and file.rows_are_lines:
            copy, kept = _copy(file, rows)
            without = f"without {len(rows):,} of {file.name} (data.{split})"
            lines.append(f"{copy}: {counted(kept, 'row')}, {without}")
        else:
            listed.append(ListedFile(file.name, split, file.fingerprint(), frozenset(rows)))
    if listed:
        path = Path(skip_list)
        if path.exists() and not is_skip_list(path):
            raise UserError(f"skip_list is '{path}', which is another file; expected a new name")
        write_skip_list(path, listed, why)
        count = sum(len(file.rows) for file in listed)
        lines.append(f"{path}: {counted(count, 'row')} to leave out; --data.skip {path} does")
    kept_kinds = sorted({finding.kind for finding in report.findings if not finding.drops})
    if kept_kinds:
        lines.append(f"no row is left out for {', '.join(kept_kinds)}")
    return lines or ["nothing to leave out"]


def _files(data: VLMDataModule) -> dict[str, tuple[str, Source]]:
    """The files that were opened, each with the first split that it is read for."""
    files: dict[str, tuple[str, Source]] = {}
    for split, source in data.sources.items():
        for file in source.files():
            if isinstance(file, Source):
                files.setdefault(file.name, (split, file))
    return dict(sorted(files.items(), key=lambda item: list(data.given).index(item[1][0])))


def _rows_of(file: Source, why: Mapping[str, object]) -> set[str]:
    """What stands behind a file's name in the names of its rows, as `:7`."""
    start = f"{file.name}:"
    return {row[len(file.name) :] for row in why if row.startswith(start)}


def _copy(file: DataFile, rows: set[str]) -> tuple[Path, int]:
    """Copy a file without some of its lines, beside it, so that paths of pictures stay right."""
    path = Path(file.name)
    copy = path.with_name(f"{path.stem}.clean{path.suffix}")
    if copy.exists():
        raise UserError(f"fix: found {copy}, which lint would write; move it away, or delete it")
    kept = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip() and f":{number}" not in rows:
                kept.append(line)
    if not kept:
        raise UserError(f"fix: no row of {file.name} would be left; expected some without a fault")
    try:
        with written_whole(copy) as unfinished:
            unfinished.write_bytes(b"".join(kept))
    except OSError as error:
        raise UserError(f"fix: {refusal(error)}; try --fix skip") from error
    return copy, len(kept)
