"""Where a run writes: folders, room on the disk, Weights & Biases."""

import netrc
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from lightning_vlm.errors import UserError
from lightning_vlm.outputs.wandb_words import ELSEWHERE, NO_LOGIN
from lightning_vlm.terminal import short_path
from lightning_vlm.training.start_checks.found import Found

CHECKPOINTS = 3
"""So many are at a disk at once: the best, the last, and one that is being written."""
OFFLINE = ("offline", "disabled", "dryrun")
RENAMED = {"api.forge.coreweave.com": "api.wandb.ai"}
"""The host of Weights & Biases, and its former name, whose logins are still valid."""
PATIENCE = 5
"""Seconds until a server counts as out of reach."""


def folders_of(trainer: Trainer) -> list[Path]:
    """The folders on this machine that a run will write into, each once."""
    given: list[str | Path | None] = [logger.save_dir for logger in trainer.loggers if logger.save_dir]
    given += [getattr(keeper, "dirpath", None) for keeper in trainer.checkpoint_callbacks]
    if not trainer.loggers:
        given.append(trainer.default_root_dir)
    folders = [
        Path(folder).expanduser().absolute() for folder in given if folder and "://" not in str(folder)
    ]
    return list(dict.fromkeys(folders))


def check_folders(trainer: Trainer, checkpoint: int | None) -> Iterator[Found]:
    """Whether folders can be written, and have room for checkpoints.

    Args:
        trainer: Whose run it is.
        checkpoint: The bytes of a checkpoint; None where they aren't known, or none is written.

    Raises:
        UserError: A folder can't be written, or has no room for one checkpoint.
    """
    folders = folders_of(trainer)
    least: tuple[int, Path] | None = None
    for folder in folders:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            why = "permission denied" if there.is_dir() else "found a file where a folder is needed"
            if there.is_dir() and os.statvfs(there).f_flag & os.ST_RDONLY:
                why = "the disk is read-only"
            raise UserError(
                f"trainer: {why} at {_name(there)}, for this run's files; change the logger's save_dir, "
                "the checkpoint's dirpath or trainer.default_root_dir"
            )
        free = shutil.disk_usage(there).free
        least = min(least or (free, folder), (free, folder))
    if not folders or least is None:
        return
    yield Found("folder", f"{', '.join(map(_name, folders))} can be written")
    if checkpoint is None:
        return
    free, folder = least
    room = f"{size(free)} are free in {_name(folder)}, a checkpoint has about {size(checkpoint)}"
    if free < checkpoint:
        raise UserError(
            f"trainer: {room}; free some space, or change the logger's save_dir or trainer.default_root_dir"
        )
    yield Found("disk", room, is_fine=free >= CHECKPOINTS * checkpoint)


def _name(folder: Path) -> str:
    return "the current folder" if folder == Path.cwd() else short_path(folder)


def size(count: float) -> str:
    """Bytes for people.

    >>> size(2_500_000), size(36.2e9)
    ('2.5 MB', '36.2 GB')
    """
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def check_servers(trainer: Trainer) -> Iterator[Found]:
    """Whether Weights & Biases and servers of MLflow can be reached, and whether wandb has a login.

    Args:
        trainer: Whose loggers are checked.

    Raises:
        UserError: One can't be reached, for which the run would wait for minutes; or there is no login, for
            which wandb stops the run or, in a terminal, asks.
    """
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and logger._experiment is None:
            yield _check_wandb(logger)
        elif isinstance(logger, MLFlowLogger) and logger._tracking_uri.startswith(("http://", "https://")):
            yield check_mlflow(logger._tracking_uri)


def check_mlflow(server: str) -> Found:
    """Whether a server of MLflow can be reached; if not, a UserError."""
    host = urlparse(server).hostname or server
    if not _is_reached(server, host):
        raise UserError(
            f"trainer.logger: the MLflow server {server} can't be reached; check the logger's tracking_uri "
            "and the network,\nor log into a database on this machine, as --config track/mlflow does"
        )
    return Found("MLflow", f"{host} is reached")


def _check_wandb(logger: WandbLogger) -> Found:
    from wandb.sdk import wandb_setup  # takes a second, which runs without it needn't wait

    name = "W&B"
    # Of the environment, `wandb login` and `wandb offline`. The public `wandb.setup()` starts a process.
    settings = wandb_setup.singleton().settings
    if logger._offline or settings.mode in OFFLINE:
        return Found(name, "offline" if logger._offline else f"{settings.mode} (WANDB_MODE)")
    host = urlparse(settings.base_url).hostname or settings.base_url
    if not (settings.api_key or settings.identity_token_file or _is_in_netrc(host)):
        raise UserError(NO_LOGIN)
    if not _is_reached(settings.base_url, host):
        raise UserError(f"Weights & Biases: {host} can't be reached\n{ELSEWHERE}")
    return Found(name, f"{host} is reached, with a login")


def _is_in_netrc(host: str) -> bool:
    files = [Path(os.environ["NETRC"])] if "NETRC" in os.environ else [Path("~/.netrc"), Path("~/_netrc")]
    for file in files:
        try:
            known = netrc.netrc(file.expanduser())
        except (OSError, RuntimeError, netrc.NetrcParseError):
            continue
        # A login of before the cloud was renamed holds there too.
        if known.authenticators(host) or (host in RENAMED and known.authenticators(RENAMED[host])):
            return True
    return False


def _is_reached(server: str, host: str) -> bool:
    if any(name.lower() in ("https_proxy", "http_proxy", "all_proxy") for name in os.environ):
        return True  # that is the proxy's business
    address = urlparse(server)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        with socket.create_connection((host, port), timeout=PATIENCE):
            return True
    except OSError:
        return False
