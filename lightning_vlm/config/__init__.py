"""The commands; and reading a config: strict YAML, and the nearest key, class and type for each mistake."""

from typing import NamedTuple


class Command(NamedTuple):
    """A command of `lightning-vlm`."""

    summary: str
    """What it does, in a line of `lightning-vlm --help`."""
    module: str | None = None
    """The module whose `run(words)` is the command; None for a command of `VLMTrainer`, by LightningCLI."""


COMMANDS = {
    "init": Command(
        "look at data, and write a commented config that trains on it", "lightning_vlm.start.command"
    ),
    "migrate": Command(
        "turn a config of TRL, LLaMA-Factory, ms-swift or Trainer into one of ours",
        "lightning_vlm.migrate.command",
    ),
    "lint": Command("find all that is wrong with data: files, boxes, duplicates, leaks; no model"),
    "preview": Command("show what will be learned: tokens, weights, shares, lengths; no training"),
    "plan": Command("say what a config needs and what fits into memory, and write one that does"),
    "fit": Command("fine-tune a model; validates on the way"),
    "validate": Command("score a model or checkpoint on the validation data"),
    "test": Command("score a model or checkpoint on the test data"),
    "predict": Command("answer questions: of a file, about pictures, or from a pipe"),
    "export": Command(
        "write a trained model as a folder that transformers or PEFT load, and prove it",
        "lightning_vlm.export.command",
    ),
    "chat": Command("ask a model about pictures, in the terminal or on a page", "lightning_vlm.chat.command"),
    "compare": Command(
        "score models, checkpoints or answers side by side, with what chance could have done",
        "lightning_vlm.compare.command",
    ),
    "families": Command(
        "list the model families that are proved, and checkpoints to try", "lightning_vlm.families"
    ),
    "recipes": Command("list the configs that come with it, or print one of them", "lightning_vlm.recipes"),
}
"""The commands, in the order of `lightning-vlm --help`."""

MEANT = {
    "train": "fit",
    "finetune": "fit",
    "sft": "fit",
    "eval": "test",
    "evaluate": "test",
    "infer": "predict",
    "inference": "predict",
    "generate": "predict",
    "answer": "predict",
    "merge": "export",
    "push": "export",
    "serve": "chat",
    "check": "lint",
    "convert": "migrate",
    "models": "families",
    "configs": "recipes",
}
"""What other trainers call a command, and ours."""
