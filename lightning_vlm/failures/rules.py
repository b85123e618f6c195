"""Exceptions of other packages that the user can fix, and the message for each.

`RULES` is read from the top; the first pattern that fits `module.Type: message` of any exception in the chain
wins. A rule's text may use the groups of its pattern, or be a function that gets the match and the exception.
`PLACES` are files whose exceptions are about the user's settings and whose words serve as they are.
"""

import re
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning_vlm.failures.texts import (
    LOGIN,
    PEER,
    PORT,
    checkpointing_off,
    disk_full,
    in_rank,
    in_worker,
    no_accelerator,
    no_gpu,
    no_metric,
    no_module,
    no_package,
    no_strategy,
    no_tensorboard,
    no_tpu,
    one_name_twice,
    out_of_memory,
    refused_by_system,
    wandb_setting,
)
from lightning_vlm.nearest import one_line
from lightning_vlm.outputs.wandb_words import ELSEWHERE, NO_LOGIN

Text = str | Callable[[re.Match[str], BaseException], str]


def known_failure(causes: Sequence[BaseException]) -> str | None:
    """The message for the first rule that one of some exceptions fits, or None.

    Args:
        causes: An exception, and those that it came from.

    >>> known_failure([ModuleNotFoundError("Requirement 'mlflow>=1.0.0' not met. HINT: Try running `pip`")])
    "this needs the package mlflow, which isn't installed; pip install 'lightning-vlm[mlflow]'"
    """
    prefix = _class_of(causes)
    for pattern, text in RULES:
        for cause in causes:
            found = re.search(pattern, f"{_name(cause)}: {cause}", re.DOTALL)
            if found:
                message = found.expand(text) if isinstance(text, str) else text(found, cause)
                return f"{prefix}{message}"
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno is not None:
            return refused_by_system(cause)
    for cause in reversed(causes):
        place = _place(cause) if isinstance(cause, Exception) else None
        if place is not None:
            return f"{prefix or place}{_words(cause)}"
    if prefix:  # its constructor refuses what the config gives it
        return f"{prefix}{_words(causes[-1])}"
    return None


def _name(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"


def _class_of(causes: Sequence[BaseException]) -> str:
    """`Name: ` of the class that a config names, if its construction failed; or nothing."""
    for cause in causes:
        found = re.search(r"Problem with given class_path '(?:[\w.]+\.)?(\w+)'", str(cause))
        if found:
            return f"{found[1]}: "
    return ""


def _words(error: BaseException) -> str:
    words = one_line(str(error), 400) or type(error).__name__
    return f"{words}\n--debug shows the whole traceback"


def _place(error: BaseException) -> str | None:
    """The beginning of a message for an exception of one of `PLACES`; None for other places."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return None
    frame = frames[-1]
    where = f"{Path(frame.filename).as_posix()}:{frame.name}"
    return next((start for pattern, start in PLACES if re.search(pattern, where)), None)


RULES: tuple[tuple[str, Text], ...] = (
    (r"No space left on device|Disk quota exceeded|\(os error 28\)", disk_full),
    # Memory
    (
        r"OutOfMemoryError|builtins\.MemoryError|can't allocate memory|out of memory|not enough memory"
        r"|CUBLAS_STATUS_ALLOC_FAILED|Cannot allocate memory",
        out_of_memory,
    ),
    (
        r"DataLoader worker \(pid(?:\(s\))? [^)]*\) is killed by signal: (?:Bus error|Killed)",
        "a data worker was killed: shared memory (/dev/shm) or memory ran out\n"
        "lower data.num_workers or data.batch_size, or give the container more with --shm-size",
    ),
    (
        r"DataLoader worker \(pid(?:\(s\))? [^)]*\) (?:is killed by signal: ([^.]+)|exited unexpectedly)",
        "a data worker ended without an error message, often because memory ran out\n"
        "lower data.num_workers, or set it to 0 to see the error itself",
    ),
    (r"Caught (\w+) in (?:DataLoader worker|pin memory thread)", in_worker),
    (r"-- Process (\d+) terminated with the following error", in_rank),
    (
        r"ProcessExitedException: process (\d+) terminated with (?:signal|exit code) (\S+)",
        r"process \1 was ended from outside (\2), often because memory ran out; lower data.batch_size",
    ),
    # Settings of the trainer
    (r"more than one stateful callback of type `(\w+)`", one_name_twice),
    (r"`enable_checkpointing=False` but found", checkpointing_off),
    (
        r"conditioned on metric `(?P<metric>[^`]+)` which is not available\. Pass in or modify your "
        r"`(?P<callback>\w+)` callback(?P<known>.*)",
        no_metric,
    ),
    (
        r"`(?P<callback>\w+)\(monitor='(?P<metric>[^']+)'\)` could not find the monitored key in the "
        r"returned metrics: (?P<known>\[[^\]]*\])",
        no_metric,
    ),
    (
        r"`(max_steps|max_epochs)` must be a non-negative integer or -1 .*passed in (\S+?)\.?$",
        r"trainer.\1: found \2; expected a whole number, or -1 for no end",
    ),
    (
        r"`(num_nodes)` must be a positive integer, but got (\S+?)\.?$",
        r"trainer.\1: found \2; expected a whole number, at least 1",
    ),
    # Devices, strategies, precision
    (r"torch_xla", no_tpu),
    (r"invalid strategy name: `strategy='([^']*)'`", no_strategy),
    (r"invalid accelerator name: `accelerator='([^']*)'`\. Available names are: ([^.]+)", no_accelerator),
    (r"No supported gpu backend found|`(?:CUDA|MPS)Accelerator` can not run on your system", no_gpu),
    (
        r"`devices` selected with|`Trainer\(devices=.*value is not a valid input",
        r"trainer.devices: expected a number of at least 1, or auto",
    ),
    (
        r"You requested gpu: (\[[^\]]*\]).*only has: (\[[^\]]*\])",
        r"trainer.devices: asked for the GPUs \1, but the machine has \2",
    ),
    (
        r"sizes `data_parallel_size=(\d+)` and `tensor_parallel_size=1` multiplied .* world size \((\d+)\)",
        r"trainer.strategy.init_args.data_parallel_size: found \1; expected \2, the number of processes "
        r"(on one device --trainer.strategy auto needs none)",
    ),
    (
        r"The strategy `(\w+)` requires a GPU",
        r"trainer.strategy: \1 needs GPUs, and isn't one that a VLMModule runs with; expected auto or ddp",
    ),
    (r"XLAStrategy\.__init__\(\) missing", no_tpu),
    (
        r"not implemented for '(Half|BFloat16)'",
        r"the device can't compute in \1; choose another trainer.precision, such as 32-true",
    ),
    (
        r"CUDA driver version is insufficient|no kernel image is available|driver on your system is too old",
        "the GPU or its driver doesn't fit this torch; update the driver, or install a torch built for it",
    ),
    (r"Torch not compiled with CUDA enabled", no_gpu),
    (
        r"torch\._(?:dynamo|inductor)\.exc\.\w+: (?:backend=.+ raised:\n)?(.+?)(?:\n|$)",
        r"model.compile: torch.compile can't compile this model here (\1); leave model.compile out",
    ),
    (
        r"CUDA error: (device-side assert triggered|an illegal memory access was encountered)",
        r"the GPU stopped with a CUDA error: \1; of which line says the same command with "
        "CUDA_LAUNCH_BLOCKING=1 and --debug in front\n"
        "the usual cause is an index out of range, such as a token for which the model has no embedding",
    ),
    (r"EADDRINUSE|[Aa]ddress already in use", PORT),
    (
        r"(?:Timed out|timed out|timeout).*(?:ranks|clients|store|barrier|collective)",
        "the processes of the run lost one another; further up is the error of the one that ended first",
    ),
    (
        r"Connection (?:closed|reset) by peer|gloo/transport.*(?:Broken pipe|[Ee]rror)|ncclRemoteError"
        r"|NCCL communicator was aborted|remote process exited",
        PEER,
    ),
    (
        r"PicklingError|[Cc]an't pickle|cannot pickle",
        "something in this run can't be sent to another process; use trainer.strategy: ddp instead of "
        "ddp_spawn, and data.num_workers: 0 with a data set of your own",
    ),
    # Packages
    (
        r"Neither `tensorboard` nor `tensorboardX` is available",
        no_tensorboard,
    ),
    (r"Requirement '([^']+)' not met", no_package),
    (
        r"To use the `DeepSpeedStrategy`",
        "trainer.strategy: a VLMModule doesn't run with deepspeed; expected auto or ddp",
    ),
    (r"Install (\w+) to access", r"this path needs the package \1, which isn't installed; pip install \1"),
    (r"ModuleNotFoundError: No module named '(?!lightning_vlm)([\w.]+)'", no_module),
    (
        r"requires the ([\w-]+) library but",
        r"this needs the package \1, which isn't installed; pip install \1",
    ),
    # Weights & Biases, the hub
    (
        r"ValidationError: .*for Settings\n(\w+)\n\s*(?:Value error, )?(.+?) \[type=.*?input_value='([^']*)'",
        wandb_setting,
    ),
    (r"wandb\.errors.*(?:WANDB_API_KEY invalid|Unauthenticated|invalid API key|API key must)", LOGIN),
    (r"wandb\.errors.*(?:API key|api_key|not logged in|wandb login)", NO_LOGIN),
    (r"wandb\.errors\.\S*?(\w+): (.+?)(?:\n|$)", rf"Weights & Biases: \2\n{ELSEWHERE}"),
    # MLflow, Trackio
    (
        r"filesystem tracking backend",
        "trainer.logger: MLflow no longer writes into a folder of files; set the logger's tracking_uri, such "
        "as sqlite:///runs/mlflow.db, or take --config track/mlflow",
    ),
    (
        r"GatedRepoError|gated repo",
        "the repository is gated; ask for access on its page, then run hf auth login",
    ),
    (
        r"ConnectionError|ConnectError|ConnectTimeout|MaxRetryError|OfflineModeIsEnabled|service not known",
        "the network can't be reached; check the connection, or use a folder on this machine",
    ),
    # Checkpoints
    (
        r'\(ckpt_path="best"\)` (?:is set but|with `fast_dev_run)',
        "ckpt_path: best is known only to the run that chose it; give the file itself, "
        "such as --ckpt_path runs/best.ckpt",
    ),
    (
        r'\(ckpt_path="hpc"\)` is set but',
        "ckpt_path: hpc is a checkpoint that SLURM made this run save, and there is none; give a file",
    ),
    (
        r"there is no last checkpoint available",
        "ckpt_path: found no last checkpoint in the folders of the callbacks that save; give the file itself",
    ),
    (r"Checkpoint file not found: (\S+)", r"ckpt_path: found no such checkpoint \1"),
    (
        r"Trying to restore (?:optimizer|training) state but checkpoint contains only the model",
        "ckpt_path: the checkpoint holds weights alone, from which no run can be resumed; "
        "give one that was saved without save_weights_only",
    ),
    (
        r"UnpicklingError|PytorchStreamReader|EOFError: Ran out of input",
        "a checkpoint can't be read; it may be cut short, or hold pickled code, which isn't run",
    ),
    (r"SafetensorError: (.+?)(?:\n|$)", r"a safetensors file can't be read (\1); copy or download it again"),
    # Settings
    (
        r"The following `model_kwargs` are not used by the model: \['(\w+)'",
        r"model.generation: there is no key \1",
    ),
    (r"builtins\.BrokenPipeError", "nothing reads the output any more"),
)

PLACES: tuple[tuple[str, str], ...] = (
    (r"lightning/(pytorch|fabric)/(trainer/(connectors|setup|configuration)|accelerators|strategies)", ""),
    (r"lightning/(pytorch|fabric)/(callbacks|loggers|profilers|plugins|tuner)/", ""),
    (r"lightning/pytorch/loops/fit_loop\.py:setup_data", ""),
    (r"lightning/fabric/utilities/(seed|device_parser|cloud_io|registry)\.py", ""),
    (r"lightning/fabric/utilities/seed\.py", "seed_everything: "),
    (r"torch/utils/data/dataloader\.py:__init__", "data: "),
    (r"(torch|bitsandbytes)/optim/\w+\.py:__init__", "model.optimizer: "),
    (r"torch/optim/lr_scheduler\.py:__init__", "model.schedule: "),
    (r"transformers/generation/\w+\.py", "model.generation: "),
    (r"/wandb/", "Weights & Biases: "),
)
"""Where an exception is raised (file and function), and how the message about it begins."""
