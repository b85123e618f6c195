"""Keep messages that are not the user's to act on off their terminal; everything else is left alone."""

import logging
import sys
import warnings

_NEWS = ("litlogger", "`weights_only` was not set")  # what Lightning logs
_WARNINGS = (
    r".*module\(s\) in eval mode at the start of training.*",  # VLMModule sets modes itself, right after
    r"Checkpoint directory .* exists and is not empty.*",  # a second run in the same folder is meant to work
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r"LightningCLI's args parameter is intended.*",
    r"When using `Trainer\(accumulate_grad_batches != 1\)` and overriding.*",  # VLMModule knows
    # LightningCLI beside a newer jsonargparse
    r"(?s).*(instantiate_classes|instantiator|skip_none).*deprecated.*",
)


def install() -> None:
    """Before lightning, transformers and peft are imported."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # It looks for a faster kernel at every import, and says that it has none.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).addFilter(_is_no_news)
    if not sys.stderr.isatty():
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()


def _is_no_news(record: logging.LogRecord) -> bool:
    return not any(news in str(record.msg) for news in _NEWS)
