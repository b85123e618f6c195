"""What `TrainingArguments` of transformers say, which all these tools have: steps, rates, precision."""

import math
import re
from typing import Any

from lightning_vlm.errors import UserError
from lightning_vlm.migrate.ours import Ours
from lightning_vlm.migrate.records import convert_records
from lightning_vlm.migrate.theirs import Theirs, listed

OPTIMIZERS = {
    "adamw_torch": "torch.optim.AdamW",
    "adamw_torch_fused": "torch.optim.AdamW",
    "adamw_hf": "torch.optim.AdamW",
    "adamw_bnb_8bit": "bitsandbytes.optim.AdamW8bit",
    "adamw_8bit": "bitsandbytes.optim.AdamW8bit",
    "paged_adamw_32bit": "bitsandbytes.optim.PagedAdamW32bit",
    "paged_adamw_8bit": "bitsandbytes.optim.PagedAdamW8bit",
    "lion_32bit": "bitsandbytes.optim.Lion",
    "lion_8bit": "bitsandbytes.optim.Lion8bit",
    "paged_lion_32bit": "bitsandbytes.optim.PagedLion",
    "paged_lion_8bit": "bitsandbytes.optim.PagedLion8bit",
    "sgd": "torch.optim.SGD",
    "adagrad": "torch.optim.Adagrad",
    "rmsprop": "torch.optim.RMSprop",
}
"""`optim` -> the class that Trainer makes of it."""
_LESS = re.compile(r"lora|freeze|tune_|peft|bits|quant")
"""Keys of scripts with which not all of a model trains."""
_FOLLOWS_A_SCORE = ("reduce_lr_on_plateau", "greedy")


def convert(theirs: Theirs, ours: Ours) -> None:
    """A config with TrainingArguments alone."""
    name = theirs["model_name_or_path"] or theirs["model_id"]
    if name is None:
        ours.choose("model.name_or_path", "TrainingArguments don't name a model: it stands in the script")
    else:
        source = theirs.said("model_name_or_path", "model_id")
        ours.put(
            "model.name_or_path", str(name), source, "here the whole model, with its tower and projector"
        )
    _what_trains(theirs, ours)
    weigh_alike(ours)
    data = theirs["data_path"]
    if data is None:
        ours.choose("data.train", "TrainingArguments don't name data: it stands in the script")
    else:
        ours.put("data.train", str(data), theirs.said("data_path"))
    if theirs["image_folder"]:
        ours.put("data.image_root", str(theirs["image_folder"]), theirs.said("image_folder"))
    has_val = theirs["eval_strategy"] != "no"
    if has_val:
        ours.choose("data.val", "validation was on (eval_strategy), and its data stands in the script")
    convert_training(theirs, ours, adapters=False)
    if theirs["gradient_checkpointing"]:
        ours.put("model.gradient_checkpointing", True, theirs.said("gradient_checkpointing"))
    convert_records(theirs, ours, has_val=has_val)
    ours.notes.append(
        "labels were made by the script's collator; here the loss is on answers alone, each with its end"
    )


def _what_trains(theirs: Theirs, ours: Ours) -> None:
    """All of the model, unless a key of the script sounds as if it trains less."""
    keys = [key for key in [*theirs.unknown, *theirs.unsaid] if _LESS.search(key)]
    if keys:
        ours.choose(
            "model.adapt", f"{', '.join(keys)} of the script say what trains: see docs/what-trains.md"
        )
        return
    ours.put(
        "model.adapt",
        "full",
        "Trainer itself freezes nothing",
        "what the script froze, or gave LoRA, isn't in these arguments: write it here",
    )


def weigh_alike(ours: Ours, **kinds: tuple[float, str]) -> None:
    """Give marked boxes and entities the weight of other words, as these tools do; and other kinds theirs.

    Args:
        ours: Our config.
        kinds: Kind -> its weight, and which key of theirs says so.
    """
    for kind, (weight, source) in kinds.items():
        ours.put(f"model.token_weights.{kind}", weight, source)
    alike = "all words of an answer weigh alike there; without these lines a marked box would weigh 2.0"
    ours.put("model.token_weights.box", 1.0, alike)
    ours.put("model.token_weights.entity", 1.0, "likewise")


def convert_training(theirs: Theirs, ours: Ours, *, adapters: bool, rate: float | None = None) -> None:
    """The settings of `TrainingArguments`, apart from where it is logged, saved and validated.

    Args:
        theirs: Their settings.
        ours: Our config.
        adapters: Whether LoRA trains.
        rate: The learning rate, where it isn't that of the key.
    """
    rate = theirs["learning_rate"] if rate is None else rate
    _optimizer(theirs, ours, rate, adapters)
    _schedule(theirs, ours, rate)
    clip = theirs["max_grad_norm"]
    ours.put("model.clip", clip or None, theirs.said("max_grad_norm"))
    _batches(theirs, ours)
    _length(theirs, ours)
    _precision(theirs, ours)
    _speed(theirs, ours)
    _seeds(theirs, ours)


def _optimizer(theirs: Theirs, ours: Ours, rate: float, adapters: bool) -> None:
    name = "adafactor" if theirs["adafactor"] else theirs["optim"]
    keys = ["learning_rate", "weight_decay"]
    arguments: dict[str, Any] = {"lr": rate, "weight_decay": float(theirs["weight_decay"])}
    if name not in OPTIMIZERS:
        ours.leave(theirs.name("optim"), name, "this optimizer isn't here; AdamW takes its place, so choose")
        name = "adamw_torch"
    elif theirs.has("optim"):
        keys.append("optim")
    is_adam, is_lion = "Adam" in OPTIMIZERS[name], "Lion" in OPTIMIZERS[name]
    if is_adam or is_lion:
        betas = [theirs["adam_beta1"], theirs["adam_beta2"]]
        if is_lion or betas != [0.9, 0.999]:  # Trainer gives Lion those of Adam, not its own
            arguments["betas"] = betas
            keys += ["adam_beta1", "adam_beta2"]
    if is_adam and theirs["adam_epsilon"] != 1e-8:
        arguments["eps"] = theirs["adam_epsilon"]
        keys.append("adam_epsilon")
    if theirs["optim_args"]:
        ours.leave(
            "optim_args", theirs["optim_args"], "they belong under optimizer.init_args, by torch's names"
        )
    differs = ""
    if arguments["weight_decay"] and adapters:
        differs = "LoRA gets no weight decay here"
    value = {"class_path": OPTIMIZERS[name], "init_args": arguments}
    ours.put("model.optimizer", value, theirs.said(*keys), differs)


def _schedule(theirs: Theirs, ours: Ours, rate: float) -> None:
    kind = str(theirs["lr_scheduler_type"])
    arguments = dict(theirs["lr_scheduler_kwargs"] or {})
    source = theirs.said("lr_scheduler_type", "warmup_steps", "lr_scheduler_kwargs")
    if kind in _FOLLOWS_A_SCORE:
        ours.choose("model.schedule", f"{kind} follows a score, and ours follow the step; such as Cosine")
        return
    if kind == "warmup_stable_decay" and "num_decay_steps" not in arguments:
        ours.choose(
            "model.schedule", "how long it decays follows from the length of the run; such as ThreePhase"
        )
        return
    if "min_lr" in arguments:
        arguments["min_lr_rate"] = arguments.pop("min_lr") / rate
    if kind == "polynomial":
        arguments["lr_end"] = arguments.get("lr_end", 1e-7) / rate
    chosen: dict[str, Any] = {"kind": kind}
    warmup = theirs["warmup_steps"]
    if "warmup_ratio" in theirs.tool.carried and theirs["warmup_ratio"]:
        warmup = theirs["warmup_ratio"]
        source = theirs.said("lr_scheduler_type", "warmup_ratio", "lr_scheduler_kwargs")
    if warmup:
        chosen["warmup"] = warmup
    if arguments:
        chosen["arguments"] = arguments
    ours.put(
        "model.schedule",
        {"class_path": "TrainerSchedule", "init_args": chosen},
        f"{source}: the same rate at each step as there",
    )


def _batches(theirs: Theirs, ours: Ours) -> None:
    said = theirs.said
    size = theirs["per_device_train_batch_size"]
    if size < 1:
        key = theirs.name("per_device_train_batch_size")
        raise UserError(f"{theirs.file}: {key}: found {size}; expected 1 sample or more")
    ours.put("data.batch_size", size, said("per_device_train_batch_size"))
    ours.put("data.eval_batch_size", theirs["per_device_eval_batch_size"], said("per_device_eval_batch_size"))
    accumulate = theirs["gradient_accumulation_steps"]
    source = said("gradient_accumulation_steps")
    if accumulate is None:  # as ms-swift does
        accumulate = max(1, math.ceil(16 / size / (theirs.launch.devices or 1)))
        source = "ms-swift makes steps of 16 samples where gradient_accumulation_steps isn't given"
    differs = ""
    if accumulate > 1 and theirs.tool.name in ("trainer", "llama-factory"):
        differs = (
            "its loss is one mean over all words; there a mean of means for Qwen-VL, Gemma, GLM and others"
        )
    if not theirs["average_tokens_across_devices"]:
        differs = "a step's loss is one mean over the tokens of all devices, not the mean of their means"
    ours.put("trainer.accumulate_grad_batches", accumulate, source, differs)
    by_length = theirs["train_sampling_strategy"] == "group_by_length" or theirs["group_by_length"]
    if by_length:
        key = "train_sampling_strategy" if theirs.has("train_sampling_strategy") else "group_by_length"
        ours.put("data.batching", "length", said(key))
    if theirs["train_sampling_strategy"] == "sequential":
        ours.put("data.shuffle", False, said("train_sampling_strategy"))


def _length(theirs: Theirs, ours: Ours) -> None:
    if theirs["max_steps"] > 0:
        ours.put("trainer.max_steps", theirs["max_steps"], theirs.said("max_steps"))
        return
    epochs = theirs["num_train_epochs"]
    source = theirs.said("num_train_epochs")
    if "max_epochs" in theirs.tool.carried and theirs["max_epochs"]:
        epochs, source = min(epochs, theirs["max_epochs"]), theirs.said("num_train_epochs", "max_epochs")
    if epochs == int(epochs):
        ours.put("trainer.max_epochs", int(epochs), source)
    elif epochs < 1:
        ours.put("trainer.max_epochs", 1, source)
        ours.put("trainer.limit_train_batches", epochs, source, "the part of an epoch")
    else:
        whole = math.ceil(epochs)
        ours.put(
            "trainer.max_epochs", whole, source, f"{epochs} epochs end inside of one: set max_steps instead"
        )


def _precision(theirs: Theirs, ours: Ours) -> None:
    bf16, fp16 = theirs["bf16"], theirs["fp16"]
    if bf16 is None and fp16 is None and theirs.tool.name == "ms-swift":
        dtype = str(theirs["torch_dtype"])
        bf16 = dtype in ("None", "AUTO", "bfloat16", "bf16", "torch.bfloat16")
        fp16 = not bf16
        source = theirs.said("torch_dtype")
        differs = "" if theirs["torch_dtype"] else "the model's own there, which is bfloat16 for most"
        ours.put("trainer.precision", "bf16-mixed" if bf16 else "16-mixed", source, differs)
        return
    if bf16 is None:
        bf16 = not fp16
    name = "bf16-mixed" if bf16 else "16-mixed" if fp16 else "32-true"
    ours.put("trainer.precision", name, theirs.said("fp16" if fp16 and not theirs.has("bf16") else "bf16"))


def _speed(theirs: Theirs, ours: Ours) -> None:
    if theirs["torch_compile"]:
        ours.put("model.compile", True, theirs.said("torch_compile"))
    if theirs["use_liger_kernel"]:
        ours.put("model.kernels", "liger", theirs.said("use_liger_kernel"))
    if theirs["use_cpu"]:
        ours.put("trainer.accelerator", "cpu", theirs.said("use_cpu"))
    workers = theirs["dataloader_num_workers"]
    if workers is None:  # as ms-swift does
        workers = 1
    ours.put("data.num_workers", workers, theirs.said("dataloader_num_workers"))
    _devices(theirs, ours)


def _devices(theirs: Theirs, ours: Ours) -> None:
    launch = theirs.launch
    name = theirs.tool.name
    visible = listed(launch.environment.get("CUDA_VISIBLE_DEVICES"))
    if launch.devices is not None:
        ours.put("trainer.devices", launch.devices, "as many processes as the command starts")
    elif name == "llama-factory" and visible:
        ours.put("trainer.devices", len(visible), "CUDA_VISIBLE_DEVICES, each with a process")
    elif name == "llama-factory" or launch.launcher == "accelerate" or (name == "trl" and not launch.script):
        ours.put("trainer.devices", "auto", "its command starts a process for each GPU")
    else:
        why = "nothing here says how many processes were started; a step had their samples together"
        ours.put("trainer.devices", 1, why)


def _seeds(theirs: Theirs, ours: Ours) -> None:
    ours.put("seed_everything", theirs["seed"], theirs.said("seed"))
    of_data = theirs["data_seed"]
    key = "seed" if of_data is None else "data_seed"
    differs = "the order of samples is drawn in another way, so it isn't the same one"
    ours.put("data.seed", theirs[key], theirs.said(key), differs)
    if theirs["full_determinism"]:
        ours.put("trainer.deterministic", True, theirs.said("full_determinism"))
    resumed = theirs["resume_from_checkpoint"]
    if resumed:
        ours.leave(
            theirs.name("resume_from_checkpoint"),
            resumed,
            "their checkpoints have no state that we could go on from; take the model in it as name_or_path",
        )
