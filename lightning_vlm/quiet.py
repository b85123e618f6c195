"""Filter messages that don't help a user; everything else is left alone."""

import io
import logging
import sys
import warnings

_NEWS = ("💡 Tip: For seamless cloud", "`weights_only` was not set", "TPU available: False")
"""How what Lightning logs begins or what it holds."""
_LOGGERS = (
    "lightning.pytorch",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.utilities.rank_zero",
)
_WARNINGS = (
    # VLMModule sets modes itself, right after.
    r".*module\(s\) in eval mode at the start of training.*",
    # VLMModule knows that it overrides `optimizer_step`.
    r"When using `Trainer\(accumulate_grad_batches != 1\)` and overriding.*",
    # VLMModule lets it average what trains only.
    r"You're using the WeightAveraging callback with a model that overrides the configure_model.*",
    # CSVLogger is a good default, and one may name another.
    r"Starting from v1\.9\.0, `tensorboardX` has been removed.*",
    # The end of a fit says so where nothing was logged.
    r"The number of training batches \(\d+\) is smaller than the logging interval.*",
    # How many processes render is a matter of the data; on a small machine none is right.
    r"The '\w+' does not have many workers which may be a bottleneck.*",
    # VLMDataModule without validation data gives no loader.
    r"Total length of `list` across ranks is zero.*",
    # It is about megabytes in a table that few read.
    r"Precision .* is not supported by the model summary.*",
    # Packages among themselves.
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r"(?s).*(instantiate_classes|instantiator|skip_none).*deprecated.*",
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
    # It looks for a faster kernel at every import, and says that it has none.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_no_news)


def install_for_command(command: str) -> None:
    """For the command line, before lightning, transformers and peft are imported.

    Args:
        command: What runs.
    """
    install()
    for message in _COMMAND_WARNINGS + (() if command == "fit" else _UNLESS_FIT_WARNINGS):
        warnings.filterwarnings("ignore", message=message)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows few characters must not end a run whose work is done.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if not sys.stderr.isatty():
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()


def _is_no_news(record: logging.LogRecord) -> bool:
    return not any(news in str(record.msg) for news in _NEWS)
