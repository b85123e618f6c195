"""A disk that is full while something is written to it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.reliability.fault_runs import (
    Case,
    Said,
    Verdict,
    fill,
    is_short,
    judge,
    run,
    same,
    small_disk,
    strike,
    weights,
    write_config,
)

PLAIN = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1, "save_top_k": -1}}
UNSAVED: dict[str, Any] = {"enable_checkpointing": False}
QUESTION = '{"question": "Which colour is it?"}\n'
WRONG = '{"question": "Which colour is it?", "answer": "red", "image": "none.png"}\n'


def names_disk(said: Said, place: Path) -> bool:
    """Whether an error names the disk that is full, and no file that nobody knows."""
    return is_short(said.error) and f"disk is full: {place}" in said.error and "/tmp/tmp" not in said.error


def checkpoint(folder: Path, whole: Path) -> Verdict:
    """EarlyStopCheckpoint: the run ends, the checkpoint before is whole, and the run goes on from it."""
    with small_disk(folder / "disk") as disk:
        write_config(disk, callbacks=[strike(3, "fill", disk, 600_000)])
        said = run(disk, "fit", "--config", "run.yaml")
        left = sorted(path.name for path in (disk / "kept").iterdir())
        (disk / "filler").unlink()
        write_config(disk)
        again = run(disk, "fit", "--config", "run.yaml", "--ckpt_path", "last")
        return judge(
            said.error,
            it_names_the_disk=names_disk(said, disk),
            it_ends=said.code == 2,
            nothing_half_written_is_left=left
            == ["latest.ckpt", *(f"step-0000000{n}.ckpt" for n in (1, 2, 3))],
            it_goes_on=again.code == 0 and same(weights(disk), weights(whole)),
        )


def plain_checkpoint(folder: Path, whole: Path) -> Verdict:
    """Lightning's ModelCheckpoint likewise."""
    keeper = {**PLAIN, "init_args": {**PLAIN["init_args"], "dirpath": "kept"}}  # type: ignore[dict-item]
    with small_disk(folder / "disk") as disk:
        write_config(disk, trainer={"callbacks": [keeper, strike(3, "fill", disk, 600_000)]})
        said = run(disk, "fit", "--config", "run.yaml")
        left = sorted(path.name for path in (disk / "kept").iterdir())
        (disk / "filler").unlink()
        write_config(disk, trainer={"callbacks": [keeper]})
        again = run(disk, "fit", "--config", "run.yaml", "--ckpt_path", f"kept/{left[-1]}")
        end = weights(disk, "kept/epoch=0-step=6.ckpt") if again.code == 0 else {}
        return judge(
            said.error,
            it_names_the_disk=names_disk(said, disk),
            nothing_half_written_is_left=left == [f"epoch=0-step={n}.ckpt" for n in (1, 2, 3)],
            it_goes_on=same(end, weights(whole)),
        )


def temporary(folder: Path, whole: Path) -> Verdict:
    """A small disk for temporary files doesn't matter."""
    with small_disk(folder / "disk") as disk:
        write_config(folder / "run", callbacks=[strike(2, "fill", disk)])
        said = run(folder / "run", "fit", "--config", "run.yaml", TMPDIR=str(disk))
        return judge(
            said.error or "nothing; the run is whole",
            the_run_is_whole=said.code == 0 and same(weights(folder / "run"), weights(whole)),
        )


def tracker(logger: Any, name: str, steps: int = 60) -> Case:
    """A run goes on without its report and its tracker, and says so once."""

    def case(folder: Path, whole: Path) -> Verdict:
        with small_disk(folder / "disk") as disk:
            write_config(
                disk,
                trainer={**UNSAVED, "logger": logger, "callbacks": [strike(2, "fill", disk)]},
                steps=steps,
            )
            said = run(disk, "fit", "--config", "run.yaml")
            lines = said.warnings(f"^warning: {name}: the disk is full: {disk}.*goes on")
            return judge(
                lines[0] if lines else said.error,
                the_run_goes_on=said.code == 0 and f"{steps} steps" in said.text,
                it_is_said_once=len(lines) == 1,
                no_page_is_half_written=not list(disk.rglob("report.html")) and not list(disk.rglob(".unf*")),
            )

    return case


def answers(folder: Path, whole: Path) -> Verdict:
    """`predict` ends, and the same command goes on where it was."""
    questions = folder / "questions.jsonl"
    questions.write_text(QUESTION * 40)
    words = ("predict", "--config", whole / "run.yaml", "--ckpt_path", whole / "kept/latest.ckpt")
    words += ("--data.predict", questions, "--out")  # type: ignore[assignment]
    expected = run(whole, *words, folder / "expected.jsonl")
    with small_disk(folder / "disk") as disk:
        fill(disk, 16_000)
        said = run(whole, *words, disk / "answers.jsonl")
        (disk / "filler").unlink()
        again = run(whole, *words, disk / "answers.jsonl")
        left = sorted(path.name for path in disk.iterdir())
        return judge(
            said.error,
            it_names_the_disk=names_disk(said, disk),
            it_goes_on=again.code == expected.code == 0 and "behind the" in again.text,
            answers_are_those_of_a_whole_run=(disk / "answers.jsonl").read_bytes()
            == (folder / "expected.jsonl").read_bytes(),
            nothing_else_is_left=left in (["answers.html", "answers.jsonl"], ["answers.jsonl"]),
        )


def written(words: Sequence[str | Path], option: str, name: str, free: int) -> Case:
    """A command that writes a file or a folder leaves nothing of it."""

    def case(folder: Path, whole: Path) -> Verdict:
        (folder / "wrong.jsonl").write_text(WRONG * 200)
        (folder / "questions.jsonl").write_text(QUESTION * 9)
        given = [str(word).format(whole=whole, folder=folder) for word in words]
        with small_disk(folder / "disk") as disk:
            fill(disk, free)
            said = run(folder, *given, option, disk / name)
            left = sorted(path.name for path in disk.iterdir())
            return judge(
                said.error,
                it_names_the_disk=names_disk(said, disk / name),
                it_ends=said.code == 2,
                nothing_is_left=left == ["filler"],
            )

    return case


def from_the_start(folder: Path, whole: Path) -> Verdict:
    """A run on a disk without room for a checkpoint is refused before the model is loaded."""
    with small_disk(folder / "disk") as disk:
        write_config(disk)
        fill(disk, 500_000)
        said = run(disk, "fit", "--config", "run.yaml")
        return judge(
            said.error,
            it_says_what_is_free=is_short(said.error) and "are free in" in said.error,
            no_model_was_loaded="trainable" not in said.text,
        )


CSV = {"class_path": "CSVLogger", "init_args": {"save_dir": ".", "flush_logs_every_n_steps": 1}}
WANDB = {"class_path": "WandbLogger", "init_args": {"save_dir": ".", "offline": True, "project": "p"}}
EXPORT = ("export", "--ckpt_path", "{whole}/kept/latest.ckpt")
LINT = ("lint", "--data.train", "{folder}/wrong.jsonl", "--model.name_or_path", "drawn-vlm")
FULL_DISKS: dict[str, Callable[[Path, Path], Verdict]] = {
    "full disk: EarlyStopCheckpoint": checkpoint,
    "full disk: ModelCheckpoint": plain_checkpoint,
    "full disk: temporary files": temporary,
    "full disk: before a run": from_the_start,
    "full disk: report": tracker(False, "RunReport"),
    "full disk: CSVLogger": tracker(CSV, "CSVLogger"),
    "full disk: W&B offline": tracker(WANDB, "RunReport"),
    "full disk: predict": answers,
    "full disk: export": written(EXPORT, "--out", "model", 3_000_000),
    "full disk: export of adapters": written((*EXPORT, "--adapter-only"), "--out", "model", 100_000),
    "full disk: lint": written((*LINT, "--out", "{folder}/x.html"), "--json", "found.json", 5_000),
    "full disk: page of lint": written(LINT, "--out", "page.html", 5_000),
    "full disk: list of lint": written(
        (*LINT, "--fix", "skip", "--out", "{folder}/x.html"), "--skip_list", "skip.jsonl", 5_000
    ),
    "full disk: init": written(("init", "{folder}/questions.jsonl"), "--out", "config.yaml", 0),
    "full disk: preview": written(("preview", "--config", "{whole}/run.yaml"), "--out", "page.html", 5_000),
    "full disk: plan": written(
        ("plan", "--config", "{whole}/run.yaml", "--memory", "8GiB"), "--out", "plan.yaml", 0
    ),
}
