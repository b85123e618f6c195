"""What `--ckpt_path best` and `last` mean."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning_vlm_callbacks import EarlyStopCheckpoint

from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.checkpoint import load_file


def find_named(trainer: Trainer, name: str | None) -> None:
    """Find the best checkpoint of earlier processes, or say that the clock chooses the last one wrongly.

    Args:
        trainer: Whose callbacks know where to look.
        name: `best` or `last`; others need nothing.

    Raises:
        UserError: There is no best one.
    """
    if name == "best":
        _find_best(trainer)
    elif name == "last":
        _doubt_last(trainer)


def _find_best(trainer: Trainer) -> None:
    keepers = [keeper for keeper in trainer.checkpoint_callbacks if isinstance(keeper, EarlyStopCheckpoint)]
    if not any(keeper.find_best(trainer) for keeper in keepers):
        what = "best checkpoint of an earlier run" if keepers else "EarlyStopCheckpoint in the config"
        raise UserError(f"--ckpt_path best: found no {what}; give the path of a checkpoint")


def _doubt_last(trainer: Trainer) -> None:
    """Say if the clock, which may have been set back, and the steps disagree on which is the last.

    Of several `last.ckpt`, `last-v1.ckpt`, ... of a ModelCheckpoint Lightning takes the newest by the clock.
    """
    found: list[Path] = []
    for keeper in trainer.checkpoint_callbacks:
        if isinstance(keeper, ModelCheckpoint) and not isinstance(keeper, EarlyStopCheckpoint):
            found += [Path(path) for path in keeper._find_last_checkpoints(trainer) if Path(path).is_file()]
    if len(found) < 2:
        return
    steps = {file: _step(file) for file in found}
    newest = max(found, key=lambda file: file.stat().st_mtime)
    furthest = max(found, key=lambda file: steps[file])
    if steps[furthest] > steps[newest]:
        rank_zero_warn(
            f"ckpt_path last: takes {newest} (step {steps[newest]:,}), the newest by the clock, but "
            f"{furthest} has step {steps[furthest]:,}; if that one is newer, give --ckpt_path {furthest}"
        )


def _step(file: Path) -> int:
    try:
        return int(load_file(file, values=False)["global_step"])
    except Exception:  # a broken file is reported if it is the one that is loaded
        return -1
