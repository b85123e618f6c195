"""What happens to a run of two processes, under DDP and FSDP2, when the machine or a person's code fails."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_vlm_callbacks.sharded_checkpoints import read_whole

from tests.support.ranks import free_port
from tools.reliability.fault_runs import (
    Case,
    Said,
    Verdict,
    is_short,
    judge,
    run,
    same,
    set_writable,
    small_disk,
    strike,
    write_config,
)
from tools.reliability.forked_runs import LIMIT, Process, ranks_of_torchrun, wait_for_end
from tools.reliability.full_disks import QUESTION

FSDP2 = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "process_group_backend": "gloo"},
}
STRATEGIES: dict[str, Any] = {"DDP": "ddp", "FSDP2": FSDP2}
AT, SAVED = 3, 3
"""Optimizer steps before the fault, each of which was saved."""


class Ended(NamedTuple):
    """How a run of two processes ended.

    Args:
        ranks: What each of them said, in order.
        seconds: From the fault to the end of the last one.
    """

    ranks: list[Said]
    seconds: float

    @property
    def error(self) -> str:
        """The message that a person reads first."""
        return next((said.error for said in self.ranks if said.error), "")

    @property
    def all_end(self) -> bool:
        """Whether all of them ended within the limit, with an error."""
        return self.seconds < LIMIT and all(said.code not in (0, None) for said in self.ranks)

    @property
    def all_are_right(self) -> bool:
        """Whether all of them ended as they should."""
        return all(said.code == 0 for said in self.ranks)


def run_both(folder: Path, *words: str | Path) -> Ended:
    """Run a command on two processes, as torchrun starts them, to the end of both."""
    number = len(list(folder.parent.glob(f"{folder.name}.said-*")))
    names = [f"../{folder.name}.said-{number + rank}" for rank in range(2)]
    given = zip(ranks_of_torchrun(free_port()), names, strict=True)
    (folder / "struck").unlink(missing_ok=True)
    processes = [Process([str(word) for word in words], folder, one, name) for one, name in given]
    outcome = wait_for_end(processes, folder)
    texts = [process.output.read_text(errors="replace") for process in processes]
    ranks = [Said(code, text) for code, text in zip(outcome.codes, texts, strict=True)]  # type: ignore[arg-type]
    return Ended(ranks, outcome.seconds)


def write_shared(
    folder: Path, kept: Path, strategy: str, *callbacks: Any, asynchronous: bool = False, **data: Any
) -> None:
    """Write `run.yaml`: six steps on two processes, each of which is saved in `kept`."""
    trainer = {"devices": 2, "strategy": STRATEGIES[strategy]}
    write_config(folder, trainer=trainer, callbacks=callbacks, **data)
    config = (folder / "run.yaml").read_text()
    options = f"dirpath: {kept}\n      asynchronous: {str(asynchronous).lower()}\n"
    (folder / "run.yaml").write_text(config.replace("dirpath: kept\n", options))


def undisturbed(whole: Path, strategy: str) -> Path:
    """The checkpoints of such a run that was never disturbed, which is made once."""
    folder = whole.parent / f"whole-{strategy}"
    if not folder.exists():
        write_shared(folder, folder / "kept", strategy)
        ended = run_both(folder, "fit", "--config", "run.yaml")
        assert ended.all_are_right, ended.ranks
    return folder / "kept"


def end_of(kept: Path) -> dict[str, torch.Tensor]:
    """The weights of the newest checkpoint, whole."""
    newest = (kept / "latest.ckpt").resolve()
    if newest.is_dir():
        found: dict[str, torch.Tensor] = read_whole(newest)["state_dict"]
    else:
        found = torch.load(newest, weights_only=True)["state_dict"]
    return found


def struck(
    strategy: str, what: str, names: str, *, rank: int = 0, leave: int = 0, asynchronous: bool = False
) -> Case:
    """The disk of the checkpoints fails in the middle of a run, which ends on all ranks and can go on.

    Args:
        strategy: Of the run.
        what: As of `Strike`.
        names: What the message says.
        rank: The process that it happens to.
        leave: As of `Strike`.
        asynchronous: Whether checkpoints are written while training goes on.
    """

    def case(folder: Path, whole: Path) -> Verdict:
        inside = folder / "run"
        with small_disk(folder / "disk", 64) as disk:
            write_shared(
                inside,
                disk / "kept",
                strategy,
                strike(AT, what, disk, leave, rank),
                asynchronous=asynchronous,
            )
            ended = run_both(inside, "fit", "--config", "run.yaml")
            if what == "read-only":
                set_writable(disk)
            (disk / "filler").unlink(missing_ok=True)
            left = sorted(path.name for path in (disk / "kept").glob(".unf*"))
            write_shared(inside, disk / "kept", strategy, asynchronous=asynchronous)
            again = run_both(inside, "fit", "--config", "run.yaml", "--ckpt_path", "last")
            return judge(
                ended.error,
                all_end_within_a_minute=ended.all_end,
                one_short_message=is_short(ended.error) and names.format(disk=disk) in ended.error,
                no_other_process_has_another_cause=len({said.error for said in ended.ranks}) == 1,
                nothing_half_written_is_left=not left,
                it_goes_on=again.all_are_right
                and same(end_of(disk / "kept"), end_of(undisturbed(whole, strategy))),
            )

    return case


def undisturbed_by(strategy: str, what: str, warning: str, *, leave: int = 0) -> Case:
    """What strikes the second process, and the run goes on.

    Args:
        strategy: Of the run.
        what: As of `Strike`.
        warning: What the first process says, once; empty for nothing.
        leave: As of `Strike`.
    """

    def case(folder: Path, whole: Path) -> Verdict:
        inside, kept = folder / "run", folder / "disk/kept"
        write_shared(inside, kept, strategy, strike(AT, what, kept if what == "delete" else "", leave, 1))
        ended = run_both(inside, "fit", "--config", "run.yaml")
        said = ended.ranks[0].warnings(warning) if warning else []
        return judge(
            said[0] if said else "nothing; the run is whole",
            it_ends_as_if_nothing_had_been=ended.all_are_right
            and same(end_of(kept), end_of(undisturbed(whole, strategy))),
            it_is_said_once=len(said) == bool(warning),
        )

    return case


def damaged_pieces(folder: Path, whole: Path) -> Verdict:
    """Each command refuses a damaged sharded checkpoint by name, on two processes and on one."""
    kept = Path(shutil.copytree(undisturbed(whole, "FSDP2"), folder / "kept", symlinks=True))
    file, before = (kept / f"step-0000000{step}.ckpt" for step in (6, 5))
    inside, alone = folder / "run", folder / "alone"
    write_shared(inside, kept, "FSDP2")
    write_config(alone)
    (folder / "questions.jsonl").write_text(QUESTION)
    asked = ("predict", "--config", "run.yaml", "--data.predict", folder / "questions.jsonl")
    commands: dict[str, Callable[[], Said]] = {
        "fit on one": lambda: run(alone, "fit", "--config", "run.yaml", "--ckpt_path", file),
        "export": lambda: run(folder, "export", "--ckpt_path", file, "--out", folder / "model"),
        "predict": lambda: run(alone, *asked, "--ckpt_path", file),
        "fit on two": lambda: run_both(inside, "fit", "--config", "run.yaml", "--ckpt_path", file).ranks[1],
        "last": lambda: run_both(inside, "fit", "--config", "run.yaml", "--ckpt_path", "last").ranks[0],
    }
    read, wrong = "", []
    for what, damage in damages(file, before).items():
        for name, command in commands.items():
            if name != "export" and what != "a flipped bit":  # all of them look in the same way
                continue
            damage()
            said = command()
            read = read or said.error
            names_both = f"checkpoint {file}" in said.error and f"{before} is whole" in said.error
            if said.code != 2 or not is_short(said.error) or not names_both:
                wrong.append(f"{what}, {name}: {said.code} {said.error}")
            shutil.rmtree(file)
            shutil.copytree(undisturbed(whole, "FSDP2") / file.name, file)
    return Verdict(read, tuple(wrong))


def damages(file: Path, before: Path) -> dict[str, Callable[[], Any]]:
    """What may happen to the folder of a checkpoint; `before` is another one of its run."""
    first, second, rest = file / "__0_0.distcp", file / "__1_0.distcp", file / "meta.pt"
    content = first.read_bytes()
    place = len(content) // 2
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    return {
        "a flipped bit": lambda: first.write_bytes(flipped),
        "a piece cut short": lambda: second.write_bytes(second.read_bytes()[:-1]),
        "a missing piece": second.unlink,
        "a piece of another": lambda: shutil.copy(before / second.name, second),
        "the rest of another": lambda: shutil.copy(before / rest.name, rest),
    }


def raised(strategy: str, rank: int) -> Case:
    """A person's callback raises: all end, it is said what goes on, and it does."""

    def case(folder: Path, whole: Path) -> Verdict:
        inside, kept = folder / "run", folder / "kept"
        write_shared(inside, kept, strategy, strike(AT, "raise", rank=rank))
        ended = run_both(inside, "fit", "--config", "run.yaml")
        newest = kept / f"step-0000000{SAVED}.ckpt"
        named = f"the newest whole checkpoint is {newest}; resume with"
        text = "".join(said.text for said in ended.ranks)
        write_shared(inside, kept, strategy)
        again = run_both(inside, "fit", "--config", "run.yaml", "--ckpt_path", newest)
        return judge(
            next((said.error for said in ended.ranks if "planted" in said.error), ended.error),
            all_end_within_a_minute=ended.all_end,
            the_cause_is_said="planted" in text,
            messages_are_short=all(is_short(said.error) for said in ended.ranks),
            the_newest_is_named_with_what_goes_on=named in text,
            it_goes_on=again.all_are_right and same(end_of(kept), end_of(undisturbed(whole, strategy))),
        )

    return case


SHARED: dict[str, Callable[[Path, Path], Verdict]] = {
    **{
        f"two processes, {strategy}: full disk": struck(
            strategy, "fill", "disk is full: {disk}", leave=20_000
        )
        for strategy in STRATEGIES
    },
    "two processes, FSDP2: full disk, asynchronous": struck(
        "FSDP2", "fill", "disk is full: {disk}", leave=20_000, asynchronous=True
    ),
    "two processes, FSDP2: one can't write": struck("FSDP2", "limit", "too large", rank=1, leave=2048),
    **{
        f"two processes, {strategy}: read-only disk": struck(strategy, "read-only", "read-only: {disk}")
        for strategy in STRATEGIES
    },
    "two processes, DDP: full disk of the other": undisturbed_by("DDP", "limit", "", leave=2048),
    "two processes, FSDP2: damaged pieces": damaged_pieces,
    **{
        f"two processes, {strategy}: an exception on {where}": raised(strategy, rank)
        for strategy in STRATEGIES
        for where, rank in (("the first", 0), ("the other", 1), ("both", -1))
    },
    **{
        f"two processes, {strategy}: deleted folder": undisturbed_by(strategy, "delete", "gone from")
        for strategy in STRATEGIES
    },
}
