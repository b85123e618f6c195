"""Checkpoints that were damaged, folders that can't be written or have gone, clocks that were set."""

import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tools.reliability.fault_runs import (
    Case,
    Said,
    Verdict,
    is_short,
    judge,
    run,
    same,
    set_read_only,
    small_disk,
    strike,
    weights,
    write_config,
)
from tools.reliability.full_disks import CSV, EXPORT, LINT, QUESTION, WRONG

FIT = ("fit", "--config", "{folder}/run.yaml", "--ckpt_path", "{file}")
EXPORTED = ("export", "--ckpt_path", "{file}", "--out", "{folder}/model")
PREDICT = ("predict", "--config", "{folder}/run.yaml", "--ckpt_path", "{file}", "--data.predict")
FLIPS = 6


def damages(content: bytes) -> Iterator[tuple[str, bytes]]:
    """A checkpoint's bytes as they may be found."""
    for length in (0, 1, 100, len(content) // 2, len(content) - 100, len(content) - 1):
        yield f"cut to {length:,} bytes", content[:length]
    chance = random.Random(0)
    for _ in range(FLIPS):
        place = chance.randrange(len(content) // 10, len(content) * 9 // 10)
        yield (
            f"bit at {place:,}",
            content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :],
        )


def damaged(words: Sequence[str]) -> Case:
    """A command refuses each of them by name, and names the checkpoint before it."""

    def case(folder: Path, whole: Path) -> Verdict:
        write_config(folder)
        (folder / "questions.jsonl").write_text(QUESTION)
        shutil.copytree(whole / "kept", folder / "kept", symlinks=True)
        file, before = (folder / f"kept/step-0000000{step}.ckpt" for step in (6, 5))
        given = [word.format(folder=folder, file=file) for word in words]
        read, wrong = "", []
        for name, content in damages(file.read_bytes()):
            file.write_bytes(content)
            said = run(folder, *given)
            read = said.error
            if not _refused(said, file, before):
                wrong.append(f"{name}: {said.code} {said.error}")
        file.unlink()
        (folder / "kept/link.ckpt").symlink_to(file.name)
        said = run(folder, *(word.replace(file.name, "link.ckpt") for word in given))
        if not _refused(said, folder / "kept/link.ckpt", before):
            wrong.append(f"a link to nothing: {said.code} {said.error}")
        return Verdict(read, tuple(wrong))

    return case


def _refused(said: Said, file: Path, before: Path) -> bool:
    names_both = str(file) in said.error and f"{before} is whole" in said.error
    return said.code == 2 and is_short(said.error) and names_both


def damaged_last(folder: Path, whole: Path) -> Verdict:
    """`--ckpt_path last` refuses a damaged newest checkpoint too, and a link to nothing."""
    write_config(folder)
    shutil.copytree(whole / "kept", folder / "kept", symlinks=True)
    file = folder / "kept/step-00000006.ckpt"
    words = ("fit", "--config", "run.yaml", "--ckpt_path", "last")
    file.write_bytes(file.read_bytes()[:-200_000])
    cut = run(folder, *words)
    file.unlink()
    gone = run(folder, *words)
    before = folder / "kept/step-00000005.ckpt"
    return judge(
        cut.error,
        it_names_a_whole_one=_refused(cut, file, before),
        a_link_to_nothing_is_refused=_refused(gone, folder / "kept/latest.ckpt", before),
    )


def read_only(words: Sequence[str], *, loads: str = "trainable", where: str = "") -> Case:
    """A disk that nothing can be written to is named before any work.

    Args:
        words: The command; the disk is `{folder}/disk`.
        loads: What the command says once it has begun to work.
        where: The folder that the command runs in, below that of the case.
    """

    def case(folder: Path, whole: Path) -> Verdict:
        (folder / "wrong.jsonl").write_text(WRONG * 20)
        (folder / "questions.jsonl").write_text(QUESTION * 9)
        write_config(folder)
        with small_disk(folder / "disk") as disk:
            write_config(disk)
            set_read_only(disk)
            given = [
                word.format(folder=folder, whole=whole, file=whole / "kept/latest.ckpt") for word in words
            ]
            said = run(folder / where, *given)
            return judge(
                said.error,
                it_is_one_line=said.code == 2 and len(said.error.splitlines()) == 1,
                it_names_the_disk=bool(re.search(r"read-only.*(disk/|at disk|current folder)", said.error)),
                it_comes_before_any_work=loads not in said.text,
            )

    return case


def deleted(what: str) -> Case:
    """A folder that has gone while the run lasts: the run ends with one line, or goes on and says so."""

    def case(folder: Path, whole: Path) -> Verdict:
        inside = folder / "inside"
        write_config(inside, callbacks=[strike(3, "delete", inside / what)])
        said = run(inside, "fit", "--config", "run.yaml")
        lines = said.warnings("gone") or [said.error]
        if said.code == 0:
            return judge(
                lines[0],
                it_says_so_once=len(said.warnings("gone")) == 1,
                later_checkpoints_are_whole=same(weights(inside), weights(whole)),
            )
        return judge(lines[0], it_is_one_line=is_short(said.error) and str(inside) in said.error)

    return case


def clock(folder: Path, whole: Path) -> Verdict:
    """Of two runs the later one goes on, though the clock has been set back in between."""
    for steps in (2, 4):
        write_config(folder, trainer={"logger": CSV}, steps=steps)
        config = (folder / "run.yaml").read_text().replace("dirpath: kept\n", "dirpath: null\n")
        (folder / "run.yaml").write_text(config)
        run(folder, "fit", "--config", "run.yaml")
    first, second = (folder / f"lightning_logs/version_{number}/checkpoints" for number in (0, 1))
    for file in first.iterdir():
        os.utime(file, (4e9, 4e9), follow_symlinks=False)
    said = run(folder, "fit", "--config", "run.yaml", "--ckpt_path", "last", "--trainer.max_steps", "6")
    chosen = [line for line in said.text.splitlines() if "ckpt_path last is" in line]
    third = folder / "lightning_logs/version_2/checkpoints"
    return judge(
        chosen[0] if chosen else said.error,
        the_later_run_goes_on=bool(chosen) and str(second) in chosen[0],
        it_ends_as_one_run=said.code == 0 and same(weights(third, "latest.ckpt"), weights(whole)),
    )


OUT = "{folder}/disk/written"
DAMAGED: dict[str, Callable[[Path, Path], Verdict]] = {
    "damaged checkpoint: fit": damaged(FIT),
    "damaged checkpoint: export": damaged(EXPORTED),
    "damaged checkpoint: predict": damaged((*PREDICT, "{folder}/questions.jsonl")),
    "damaged checkpoint: fit from last": damaged_last,
    "read-only: fit": read_only(("fit", "--config", "run.yaml"), where="disk"),
    "read-only: checkpoints": read_only(
        ("fit", "--config", "run.yaml", "--trainer.callbacks.init_args.dirpath", OUT)
    ),
    "read-only: predict": read_only((*PREDICT, "{folder}/questions.jsonl", "--out", OUT), loads="Restoring"),
    "read-only: export": read_only((*EXPORT, "--out", OUT), loads="proved"),
    "read-only: lint": read_only((*LINT, "--json", OUT), loads="missing_file"),
    "read-only: page of lint": read_only((*LINT, "--out", OUT), loads="missing_file"),
    "read-only: list of lint": read_only((*LINT, "--fix", "skip", "--skip_list", OUT), loads="missing_file"),
    "read-only: preview": read_only(("preview", "--config", "run.yaml", "--out", OUT), loads="learned"),
    "read-only: init": read_only(("init", "{folder}/questions.jsonl", "--out", OUT), loads="samples"),
    "deleted: the folder of checkpoints": deleted("kept"),
    "deleted: the folder of the run": deleted(""),
    "clock: which run is last": clock,
}
