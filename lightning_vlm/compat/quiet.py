"""Filter messages that don't help a user; everything else is left alone."""

import io
import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning_vlm_callbacks

_FOLDERS = (Path(__file__).parents[1], Path(lightning_vlm_callbacks.__file__).parent)
"""Where our own code is."""
_UNHELPFUL = (
    "💡 Tip: For seamless cloud",
    "`weights_only` was not set",
    "TPU available: False",
    # What `data.max_length` cuts or skips is reported; most tokenizers state less than their model takes.
    "Token indices sequence length is longer than",
)
"""Parts of what Lightning and transformers log."""
_UNLESS_RUN = ("GPU available", "Seed set to")
"""Parts of what is logged of devices and seeds, which matter only where a model runs."""
LOGGERS = (
    "lightning.fabric.utilities.seed",
    "lightning.pytorch",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.utilities.rank_zero",
    "transformers.tokenization_utils_base",
)
_WARNINGS = (
    # VLMModule sets the modes itself right afterwards.
    r".*module\(s\) in eval mode at the start of training.*",
    # VLMModule overrides `optimizer_step` on purpose.
    r"When using `Trainer\(accumulate_grad_batches != 1\)` and overriding.*",
    # VLMModule averages only the trained weights.
    r"You're using the WeightAveraging callback with a model that overrides the configure_model.*",
    # CSVLogger is a good default, and the user can choose another.
    r"Starting from v1\.9\.0, `tensorboardX` has been removed.*",
    # The end of a fit reports when nothing was logged.
    r"The number of training batches \(\d+\) is smaller than the logging interval.*",
    # The right number of workers depends on the data; on a small machine it may be none.
    r"The '\w+' does not have many workers which may be a bottleneck.*",
    # Recipes have workers for a machine with a GPU; the end of a fit says how long it waited for data.
    r"This DataLoader will create \d+ worker processes in total.*",
    # VLMDataModule without validation data gives no loader.
    r"Total length of `list` across ranks is zero.*",
    # This is about megabytes in a table that few users read.
    r"Precision .* is not supported by the model summary.*",
    # Warnings that packages cause in each other.
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r"(?s).*(instantiate_classes|instantiator|skip_none).*deprecated.*",
    # In a notebook without ipywidgets, bars of tqdm and rich are text.
    r"IProgress not found.*",
    r'install "ipywidgets" for Jupyter support',
)
_UNLESS_FIT_WARNINGS = (
    r"The dirpath has changed from .*",  # ModelCheckpoint doesn't save then.
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint need.*",
)
_COMMAND_WARNINGS = (
    r"Checkpoint directory .* exists and is not empty.*",  # A second run in the same folder is meant to work.
    r"LightningCLI's args parameter is intended.*",
)


def install() -> None:
    """Add the filters when `lightning_vlm` is imported. The user's own filters stay."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # The package looks for a faster kernel at every import, and reports that there is none.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_is_helpful)


def install_for_command(command: str) -> None:
    """For the command line, before lightning, transformers and peft are imported.

    Args:
        command: What runs.
    """
    install()
    if command in ("lint", "plan", "preview"):
        for name in LOGGERS:
            logging.getLogger(name).addFilter(_is_not_about_a_run)
    for message in _COMMAND_WARNINGS + (() if command == "fit" else _UNLESS_FIT_WARNINGS):
        warnings.filterwarnings("ignore", message=message)
    for stream in (sys.stdout, sys.stderr):
        # A terminal with a small character set must not end a finished run with an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers asks it when imported
        if "transformers" in sys.modules:
            from transformers.utils import logging as transformers_logging

            transformers_logging.disable_progress_bar()


def shorten_warnings() -> None:
    """Show our warnings as `warning: MESSAGE`: the line of code before it says nothing to a user.

    It comes after lightning is imported, which sets a form of its own.
    """
    if not isinstance(warnings.formatwarning, partial):
        warnings.formatwarning = partial(_format_warning, warnings.formatwarning)


def _format_warning(
    otherwise: Any, message: Any, category: Any, filename: str, *place: Any, **line: Any
) -> str:
    """The text of a warning; `otherwise` is the form for those of other packages."""
    if any(Path(filename).is_relative_to(folder) for folder in _FOLDERS):
        from lightning_vlm.terminal import visible  # imports rich, which `--help` doesn't need

        return f"warning: {visible(str(message))}\n"
    return otherwise(message, category, filename, *place, **line)


def _is_helpful(record: logging.LogRecord) -> bool:
    return not any(part in str(record.msg) for part in _UNHELPFUL)


def _is_not_about_a_run(record: logging.LogRecord) -> bool:
    return not any(part in str(record.msg) for part in _UNLESS_RUN)
