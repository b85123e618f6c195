"""When it is validated, what is saved and where it is logged, as `TrainingArguments` say it."""

import math
from typing import Any

from lightning_vlm.migrate.ours import Ours
from lightning_vlm.migrate.theirs import Theirs, listed

_LOGGERS = {
    "wandb": "WandbLogger",
    "tensorboard": "TensorBoardLogger",
    "mlflow": "MLFlowLogger",
    "comet_ml": "CometLogger",
    "neptune": "NeptuneLogger",
}
"""Names in `report_to` -> Lightning's loggers."""
_LOSSES = ("loss", "eval_loss")


def convert_records(theirs: Theirs, ours: Ours, *, has_val: bool, patience: int | None = None) -> None:
    """Validation, checkpoints and logs.

    Args:
        theirs: Their settings.
        ours: Our config, with its steps.
        has_val: Whether there is validation data.
        patience: Validations without a better score until it stops; None never stops.
    """
    strategy = (
        str(theirs["eval_strategy"]) if theirs["eval_strategy"] is not None else str(theirs["save_strategy"])
    )
    _validation(theirs, ours, strategy, has_val)
    _checkpoints(theirs, ours, has_val and strategy != "no", patience)
    _logs(theirs, ours)


def _validation(theirs: Theirs, ours: Ours, strategy: str, has_val: bool) -> None:
    if not has_val:
        return
    key = "eval_strategy" if theirs["eval_strategy"] is not None else "save_strategy"
    source = theirs.said(key)
    if strategy == "no":
        ours.put("trainer.limit_val_batches", 0, source, "held out, but never validated on")
    elif strategy == "epoch":
        ours.put("trainer.check_val_every_n_epoch", 1, source)
    else:
        key = next(name for name in ("eval_steps", "save_steps", "logging_steps") if theirs[name])
        if theirs["eval_steps"] is None and theirs.tool.name != "ms-swift":
            key = "logging_steps"
        steps = _steps(theirs, ours, key)
        if steps is None:
            return
        accumulate = ours.value("trainer.accumulate_grad_batches") or 1
        sources = theirs.said(key)
        differs = ""
        if accumulate > 1:
            sources += " × batches of a step"
            differs = "counted in batches here, in optimizer steps there"
        ours.put("trainer.val_check_interval", steps * accumulate, sources, differs)
        ours.put("trainer.check_val_every_n_epoch", None, "so that it counts on over epochs, as there")
    if theirs["eval_delay"]:
        ours.leave("eval_delay", theirs["eval_delay"], "validation begins with its first interval here")


def _steps(theirs: Theirs, ours: Ours, key: str) -> int | None:
    """A number of optimizer steps, which may be a share of all steps there."""
    value = theirs[key]
    if value >= 1:
        return int(value)
    total = theirs["max_steps"]
    if total > 0:
        return max(1, math.ceil(total * value))
    ours.leave(theirs.name(key), value, "a share of all steps, and how many these are follows from the data")
    return None


def _checkpoints(theirs: Theirs, ours: Ours, validates: bool, patience: int | None) -> None:
    strategy = str(theirs["save_strategy"])
    arguments: dict[str, Any] = {}
    keys = ["save_strategy"]
    best = theirs["load_best_model_at_end"] or strategy == "best" or patience is not None
    metric = theirs["metric_for_best_model"]
    if best and validates:
        if metric in (None, *_LOSSES):
            arguments["monitor"] = "val/loss"
        else:
            why = "the best is by val/loss; scores have other names here: see docs/scores.md"
            ours.leave(theirs.name("metric_for_best_model"), metric, why)
            arguments["monitor"] = "val/loss"
        keys.append("load_best_model_at_end")
        if theirs["greater_is_better"]:
            ours.leave(theirs.name("greater_is_better"), True, "of val/loss, less is better")
    if patience is not None and validates:
        arguments["patience"] = patience
    steps = None
    if strategy == "steps":
        steps = _steps(theirs, ours, "save_steps")
        keys.append("save_steps")
    if steps is not None:
        arguments["every_n_steps"] = steps
    arguments["every_n_epochs"] = 1 if strategy == "epoch" else None
    if strategy in ("steps", "epoch"):
        arguments["keep_periodic"] = theirs["save_total_limit"]
        keys.append("save_total_limit")
    differs = ""
    if theirs["load_best_model_at_end"] and validates:
        differs = "the best is best.ckpt, which isn't loaded at the end"
    value = [{"class_path": "EarlyStopCheckpoint", "init_args": arguments}]
    ours.put("trainer.callbacks", value, theirs.said(*keys), differs)


def _logs(theirs: Theirs, ours: Ours) -> None:
    if theirs["logging_strategy"] != "steps":
        why = "a line is logged every trainer.log_every_n_steps here"
        ours.leave(theirs.name("logging_strategy"), theirs["logging_strategy"], why)
    elif (steps := _steps(theirs, ours, "logging_steps")) is not None:
        ours.put("trainer.log_every_n_steps", steps, theirs.said("logging_steps"))
    if theirs["disable_tqdm"]:
        ours.put("trainer.enable_progress_bar", False, theirs.said("disable_tqdm"))
    folder = theirs["output_dir"] or "runs"
    name = theirs["run_name"] or theirs.file.stem
    wished = listed(theirs["report_to"]) if theirs.has("report_to") else []
    loggers: list[dict[str, Any]] = []
    for one in wished:
        if one in _LOGGERS:
            loggers.append({"class_path": _LOGGERS[one], "init_args": _arguments(theirs, one, folder, name)})
        elif one not in ("none", "all"):
            ours.leave(theirs.name("report_to"), one, "Lightning has no such logger; see docs/tracking.md")
    keys = ["output_dir", "report_to"]
    differs = ""
    if not loggers:
        loggers = [{"class_path": "CSVLogger", "init_args": {"save_dir": str(folder), "name": str(name)}}]
        differs = "a file; docs/tracking.md has others"
    value = loggers[0] if len(loggers) == 1 else loggers
    ours.put("trainer.logger", value, theirs.said(*keys), differs)


def _arguments(theirs: Theirs, logger: str, folder: Any, name: Any) -> dict[str, Any]:
    environment = theirs.launch.environment
    if logger == "wandb":
        usual = "ms-swift" if theirs.tool.name == "ms-swift" else str(theirs["project"])
        project = environment.get("WANDB_PROJECT", usual)
        return {"project": project, "name": str(name), "save_dir": str(folder)}
    if logger == "mlflow":
        return {
            "experiment_name": environment.get("MLFLOW_EXPERIMENT_NAME", str(name)),
            "save_dir": str(folder),
        }
    if logger == "tensorboard":
        return {"save_dir": str(folder), "name": str(name)}
    return {"name": str(name)}
