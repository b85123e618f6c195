"""What `lint` finds, in the terminal."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lightning_vlm.lint.finding import Finding, Report, listed
from lightning_vlm.lint.kinds import KINDS, SEVERITIES
from lightning_vlm.terminal import visible

FIRST = 5
"""How many findings of each kind are shown; the page and the JSON file have more."""
STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}
_LONGEST = 300


def show(report: Report, console: Console) -> None:
    """Print the counts by kind, then the first few of each, and last the verdict, which stays in view."""
    console.print(Text(describe(report)))
    if report.findings:
        console.print(_counts(report))
        for kind, findings in report.by_kind().items():
            for line in _of_kind(kind, findings):
                console.print(Padding(line, (0, 0, 0, 0 if line.plain.startswith(kind) else 2), expand=False))
            console.print()
    for said in tasks(report):
        console.print(Text(said))
    console.print(Text(f"lint: {report.verdict()}", f"bold {_style(report)}"))


def describe(report: Report) -> str:
    """What was read, in a sentence."""
    read = ", ".join(f"data.{split} {samples:,}" for split, samples in report.samples.items())
    total = sum(report.samples.values())
    pace = f" ({total / report.seconds:,.0f} a second)" if report.seconds else ""
    said = f"Read as {report.name} reads it: {read or 'no'} samples, {report.pictures:,} pictures, in "
    return f"{said}{report.seconds:.1f} s{pace}"


def tasks(report: Report) -> Iterator[str]:
    """The tasks of each split, a line each."""
    for split, number in report.effective_tasks.items():
        of_split = [task for task in report.tasks if task.split == split]
        said = [f"{visible(task.name)} {task.share:.1%}" for task in of_split]
        more = f"; as varied as {number:.2g} equal ones" if len(of_split) > 1 else ""
        yield f"tasks of data.{split}: {listed(said, 8)}{more}"


def _style(report: Report) -> str:
    severities = [severity for severity in SEVERITIES if report.count(severity)]
    return STYLES[severities[0]] if severities else "green"


def _counts(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("severity")
    table.add_column("kind", no_wrap=True)
    table.add_column("count", justify="right")
    table.add_column("what it is", overflow="fold")
    for kind, findings in report.by_kind().items():
        about = KINDS[kind]
        severity = Text(about.severity, STYLES[about.severity])
        table.add_row(severity, kind, f"{len(findings):,}", about.means)
    return table


def _of_kind(kind: str, findings: list[Finding]) -> Iterator[Text]:
    about = KINDS[kind]
    yield Text.assemble((kind, f"bold {STYLES[about.severity]}"), f": {about.fix}")
    for finding in findings[:FIRST]:
        line = Text(visible(finding.source), "bold")
        line.append(visible(f": {finding.key}" if finding.key else "")[:_LONGEST], "not bold")
        line.append(visible(f": found {finding.found}")[:_LONGEST].replace("\n", " "), "not bold")
        if finding.expected:
            line.append(visible(f"; expected {finding.expected}")[:_LONGEST].replace("\n", " "), "not bold")
        if finding.also and finding.also[0] not in finding.found:
            line.append(f" (also {visible(listed(finding.also))})", "not bold dim")
        yield line
    if len(findings) > FIRST:
        yield Text(f"and {len(findings) - FIRST:,} more", "dim")
