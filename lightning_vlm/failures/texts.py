"""Messages about exceptions that need more than a template; `rules` says when each is used."""

import errno
import os
import re

from lightning_vlm_callbacks.whole_files import refusal

from lightning_vlm.nearest import did_you_mean
from lightning_vlm.outputs.wandb_words import ELSEWHERE


def out_of_memory(found: re.Match[str] | None, error: BaseException) -> str:
    """Memory ran out."""
    text = str(error)
    is_gpu = re.search(r"CUDA|CUBLAS|HIP|GPU", f"{type(error).__name__} {text}")
    device = "the GPU" if is_gpu else "the CPU"
    size = re.search(
        r"allocate memory: (?:you tried to allocate )?(\d+)|Tried to allocate ([\d.]+ \w+)", text
    )
    asked = ""
    if size:
        amount = f"{int(size[1]) / 1e9:,.1f} GB" if size[1] else size[2]
        asked = f" ({amount} more were asked for)"
    for note in getattr(error, "__notes__", ()):  # of training, which knows the batch
        if note.startswith("in training batch"):
            return f"out of memory on {device}{asked} {note}"
    return (
        f"out of memory on {device}{asked}\n"
        "lower data.batch_size (data.max_tokens where it is set) and raise trainer.accumulate_grad_batches "
        "as much, or lower data.max_length;\n"
        "or set model.gradient_checkpointing: true, or model.quantization: nf4 to train on quantised weights"
    )


def no_strategy(found: re.Match[str], error: BaseException) -> str:
    """A strategy that isn't registered."""
    from lightning.pytorch.strategies import StrategyRegistry

    asked = found[1]
    if re.search(r"fsdp|zero|modelparallel", asked, re.IGNORECASE):
        return f"trainer.strategy: there is no strategy {asked}; a model is sharded by --config scale/fsdp"
    near = did_you_mean(asked, ["auto", *StrategyRegistry.available_strategies()])
    return f"trainer.strategy: there is no strategy {asked}; expected auto or ddp{near}"


def no_accelerator(found: re.Match[str], error: BaseException) -> str:
    """An accelerator that isn't registered."""
    names = sorted(found[2].split(", "))
    if re.match(r"(?:cuda|gpu):\d", found[1]):
        number = found[1].partition(":")[2]
        return (
            f"trainer.accelerator: there is no accelerator {found[1]}; expected gpu, and trainer.devices: "
            f"[{number}]"
        )
    near = did_you_mean(found[1], ["gpu", *(name for name in names if name != "tpu")])
    return f"trainer.accelerator: there is no accelerator {found[1]}; expected auto, cpu or gpu{near}"


def no_tpu(found: re.Match[str], error: BaseException) -> str:
    """A TPU was asked for, or the strategy for it."""
    return "trainer.accelerator and trainer.strategy: there is no TPU here that torch can use; expected auto"


def no_gpu(found: re.Match[str], error: BaseException) -> str:
    """A GPU was asked for where torch can use none."""
    import torch

    built = " (this torch is built for the CPU alone)" if torch.version.cuda is None else ""
    return f"trainer.accelerator: found no GPU that torch can use{built}; expected cpu or auto"


def one_name_twice(found: re.Match[str], error: BaseException) -> str:
    """Two callbacks with one name for their states."""
    return f"trainer.callbacks: found {found[1]} twice, whose states would be one; leave one of them out"


def no_metric(found: re.Match[str], error: BaseException) -> str:
    """A callback of Lightning's waits for a metric that there isn't."""
    asked = found["metric"]
    known = re.findall(r"[`']([^`',]+)[`']", found["known"])
    near = did_you_mean(asked, known)
    there = f"there are {', '.join(known)}" if known else "nothing is"
    return f"trainer.callbacks: {found['callback']} waits for {asked}, which isn't logged; {there}{near}"


def checkpointing_off(found: re.Match[str], error: BaseException) -> str:
    """A callback saves checkpoints, which the trainer forbids."""
    return (
        "trainer.enable_checkpointing: found false, but a callback of trainer.callbacks saves checkpoints; "
        "leave one of them out"
    )


def no_package(found: re.Match[str], error: BaseException) -> str:
    """A requirement of Lightning that isn't met."""
    name = re.split(r"[<>=! \[]", found[1])[0]
    return f"this needs the package {name}, which isn't installed; pip install {_to_install(name, found[1])}"


def no_tensorboard(found: re.Match[str], error: BaseException) -> str:
    """Lightning's TensorBoardLogger names two packages."""
    name = "tensorboard"
    return f"this needs the package {name}, which isn't installed; pip install {_to_install(name, name)}"


def no_module(found: re.Match[str], error: BaseException) -> str:
    """An import that failed."""
    name = found[1].partition(".")[0]
    package = PACKAGE_OF.get(name, name)
    return (
        f"this needs the package {package}, which isn't installed; pip install {_to_install(name, package)}"
    )


def _to_install(name: str, otherwise: str) -> str:
    """What pip installs for a package: the extra that has it, or else a requirement of others.

    >>> _to_install("mlflow", "mlflow>=1.0.0"), _to_install("comet_ml", "comet-ml")
    ("'lightning-vlm[mlflow]'", 'comet-ml')
    """
    extra = EXTRA_OF.get(name, name)
    if extra in EXTRAS:
        return f"'lightning-vlm[{extra}]'"
    return f"'{otherwise}'" if re.search(r"[<>= \[]", otherwise) else otherwise


PACKAGE_OF = {
    "PIL": "pillow",
    "easy_vqa": "easy-vqa",
    "yaml": "pyyaml",
    "cv2": "opencv-python",
    "sklearn": "scikit-learn",
}
"""Modules whose package has another name."""
EXTRA_OF = {"av": "video", "gradio": "web", "liger_kernel": "liger", "num2words": "smolvlm"}
"""Packages whose extra has another name."""
EXTRAS = (
    *("datasets", "liger", "mlflow", "optuna", "ray", "smolvlm", "tensorboard", "timm", "trackio"),
    *("video", "web"),
)
"""Extras, by their names."""


def wandb_setting(found: re.Match[str], error: BaseException) -> str:
    """A setting of wandb that it refuses, which comes from the environment or from one of its files."""
    name, why, value = found.groups()
    near = did_you_mean(value, re.findall(r"'(\w+)'", why))
    return f"Weights & Biases: WANDB_{name.upper()}, or its setting {name}: found {value}; {why}{near}"


def in_worker(found: re.Match[str], error: BaseException) -> str:
    """An exception in a data worker."""
    return f"a data worker failed with {_last_line(error)}\nset data.num_workers: 0 and --debug to see where"


def in_rank(found: re.Match[str], error: BaseException) -> str:
    """An exception in another process of the run."""
    return f"process {found[1]} failed with {_last_line(error)}\n--debug shows the whole traceback"


def _last_line(error: BaseException) -> str:
    """What was raised there: the last line of the quoted traceback that isn't indented."""
    lines = str(error).strip().splitlines()
    return [line for line in lines if line and not line.startswith(" ")][-1]


def disk_full(found: re.Match[str] | None, error: BaseException) -> str:
    """The disk is full, in the words of any library."""
    full = error if isinstance(error, OSError) else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return refused_by_system(full)


def refused_by_system(error: OSError) -> str:
    """The operating system refuses something."""
    path = error.filename or ""
    at = f" at {path}" if path else ""
    elsewhere = "choose another folder with the logger's save_dir or trainer.default_root_dir"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"{refusal(error)}; free some space, or choose another folder"
        case errno.EROFS:
            return f"{refusal(error)}; {elsewhere}"
        case errno.EACCES | errno.EPERM:
            return f"permission denied{at}; change its permissions, or {elsewhere}"
        case errno.ENOENT:
            return f"no such file: {path or error}"
        case errno.EISDIR:
            return f"found a folder{at}; expected a file"
        case errno.ENOTDIR | errno.EEXIST:
            return f"found a file where a folder is needed{at}; {elsewhere}"
        case errno.EMFILE | errno.ENFILE:
            return "too many open files; lower data.num_workers, or raise the limit with ulimit -n 65536"
        case errno.ENOMEM:
            return out_of_memory(None, error)
        case errno.EADDRINUSE:
            return PORT
        case errno.ENAMETOOLONG:
            return f"the name is too long{at}; expected a path"
    return f"{error.strerror or error}{at}"


PORT = (
    "the network port is in use, probably by another run; wait for it, or choose another with the "
    "environment variable MASTER_PORT, such as MASTER_PORT=29511"
)
PEER = (
    "another process of the run ended first; its own message says why, but one that was killed has none, as "
    "where memory ran out\nthe same command with --ckpt_path last goes on from the newest checkpoint"
)
LOGIN = f"Weights & Biases doesn't accept the login of this machine; run wandb login --relogin,\n{ELSEWHERE}"
