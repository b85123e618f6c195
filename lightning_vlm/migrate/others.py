"""What isn't read, and is known all the same: other tools, other training, and files beside a config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_vlm.errors import UserError

COMMANDS = {
    "axolotl": "Axolotl",
    "automodel": "NeMo AutoModel",
    "megatron": "Megatron-SWIFT",
    "oumi": "Oumi",
    "tune": "torchtune",
    "xtuner": "XTuner",
}
"""Commands of tools whose configs aren't read."""
_TOOLS: dict[str, tuple[set[str], int, str]] = {
    "Axolotl": (
        {"base_model", "sequence_len", "micro_batch_size", "num_epochs", "val_set_size"},
        2,
        "base_model",
    ),
    "NeMo AutoModel": (
        {"step_scheduler", "dist_env", "recipe", "recipe_args", "distributed", "loss_fn", "packed_sequence"},
        1,
        "",
    ),
    "Megatron-SWIFT": (
        {"train_iters", "lr", "micro_batch_size", "global_batch_size", "lr_warmup_fraction"},
        2,
        "model",
    ),
    "LLaMA-Factory's v1": (
        {"train_dataset", "dist_config", "sample_backend", "init_config", "peft_config"},
        1,
        "model",
    ),
    "torchtune": ({"tokenizer", "checkpointer", "metric_logger"}, 2, ""),
}
"""Tool -> keys of its configs, how many of them say that it is one, and its key for the model."""
_FILES = {
    "Accelerate, which says on which devices a command runs": {"compute_environment", "distributed_type"},
    "DeepSpeed": {"zero_optimization", "train_micro_batch_size_per_gpu"},
    "a model, as transformers saves it": {"architectures", "transformers_version"},
    "adapters, as PEFT saves it": {"peft_type", "base_model_name_or_path"},
}
"""What a file is of -> keys that say so."""
_PREFERENCES = {
    *(
        "beta",
        "reward_funcs",
        "reward_model",
        "num_generations",
        "max_prompt_length",
        "max_completion_length",
    ),
    *("rlhf_type", "desirable_weight", "undesirable_weight", "precompute_ref_log_probs", "kl_coef"),
}
"""Keys of TRL and ms-swift that only preferences and rewards have."""
_NO_TRAINING = {
    "export": {"export_dir"},
    "chat": {"infer_backend", "stream", "load_data_args"},
    "predict": {"sampler_type", "sampler_engine", "orm_model"},
}
"""Our command -> keys of configs that do such a thing, and don't train."""


def refuse_command(name: str) -> None:
    """Refuse a command of a tool that is known, and whose configs aren't read.

    Raises:
        UserError: It is one.

    >>> refuse_command("axolotl")
    Traceback (most recent call last):
    lightning_vlm.errors.UserError: migrate: found a command of Axolotl, whose configs aren't read; ...
    """
    if name in COMMANDS:
        raise UserError(
            f"migrate: found a command of {COMMANDS[name]}, whose configs aren't read; {_instead('')}"
        )


def refuse_others(given: Mapping[str, Any], path: Path, is_training: bool) -> None:
    """Refuse a file that is known, and isn't a config of supervised fine-tuning that can be read.

    Args:
        given: Its keys.
        path: Its path.
        is_training: Whether it stands behind a command of a tool, which says itself what it does.

    Raises:
        UserError: It is one. The message says what to do in its place.
    """
    keys = {*given}
    for what, marks in _FILES.items():
        if keys & marks and "learning_rate" not in keys:
            raise UserError(f"{path}: found a file of {what}; expected the config or the command that trains")
    tool = _tool(given)
    if tool is not None:
        model = given.get(_TOOLS[tool][2]) if tool in _TOOLS else _model_of_sections(given)
        name = model if isinstance(model, str) else ""
        raise UserError(f"{path}: found a config of {tool}, which isn't read; {_instead(name)}")
    if (found := keys & _PREFERENCES) and not is_training:
        raise UserError(
            f"{path}: found {min(found)}, which trains by preferences or rewards; expected supervised "
            "fine-tuning: answers are learned here"
        )
    for command, marks in _NO_TRAINING.items():
        if keys & marks and not is_training and not keys & {"learning_rate", "stage", "finetuning_type"}:
            raise UserError(
                f"{path}: found {min(keys & marks)} and nothing that trains; expected a config of training: "
                f"`lightning-vlm {command}` does this here"
            )


def _tool(given: Mapping[str, Any]) -> str | None:
    sections = [value for value in given.values() if isinstance(value, Mapping)]
    if any("_component_" in section for section in sections):
        return "torchtune"
    if any("_target_" in section for section in sections):
        return "NeMo AutoModel"
    model = given.get("model")
    if isinstance(model, Mapping) and "model_name" in model and "training" in given:
        return "Oumi"
    for tool, (marks, number, _) in _TOOLS.items():
        if len(marks & given.keys()) >= number and not {"finetuning_type", "tuner_type"} & given.keys():
            return tool
    return None


def _model_of_sections(given: Mapping[str, Any]) -> Any:
    model = given.get("model")
    return model.get("model_name") if isinstance(model, Mapping) else None


def _instead(model: str) -> str:
    """What to do instead."""
    return (
        f"`lightning-vlm init DATA --model {model or 'NAME'}` writes a config for your data, and "
        "docs/migrate/index.md has their usual keys"
    )
