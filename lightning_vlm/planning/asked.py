"""What a config asks of the Trainer, for a plan: no Trainer of its own is made for it."""

from typing import Any, NamedTuple

import torch

from lightning_vlm.errors import UserError
from lightning_vlm.host_memory import available_memory
from lightning_vlm.planning.sizes import read_memory
from lightning_vlm.training.memory.meter import MARGIN

CONTEXT = 2**29
"""What CUDA and its libraries take of a GPU for themselves, about."""
_PRECISIONS = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true", "None": "32-true"}


class Asked(NamedTuple):
    """What matters of a Trainer.

    Args:
        precision: As Lightning calls it in the end.
        accumulate: Micro-batches of an optimizer step.
        devices: Over all nodes.
        accelerator: As written.
        max_epochs: As written.
        max_steps: As written.
    """

    precision: str = "32-true"
    accumulate: int = 1
    devices: int = 1
    accelerator: str = "auto"
    max_epochs: int | None = None
    max_steps: int = -1

    @classmethod
    def of(cls, trainer: Any) -> "Asked":
        """From the trainer section of a config."""
        precision = str(trainer.get("precision"))
        devices = trainer.get("devices", "auto")
        if isinstance(devices, str):
            devices = int(devices) if devices.isdecimal() else max(1, torch.cuda.device_count())
        elif isinstance(devices, list):
            devices = len(devices)
        return cls(
            precision=_PRECISIONS.get(precision, precision),
            accumulate=trainer.get("accumulate_grad_batches") or 1,
            devices=max(1, devices) * (trainer.get("num_nodes") or 1),
            accelerator=str(trainer.get("accelerator") or "auto"),
            max_epochs=trainer.get("max_epochs"),
            max_steps=trainer.get("max_steps") or -1,
        )


class Room(NamedTuple):
    """How much memory there is.

    Args:
        words: Which device is meant.
        whole: Its bytes.
        room: Those that training may take.
        on_gpu: Whether it is a GPU.
    """

    words: str
    whole: int
    room: int
    on_gpu: bool


def room_of(memory: str | int | None, accelerator: str = "auto", processes: int = 1) -> Room:
    """The memory of a device that is described, or of the one that training would run on here.

    Args:
        memory: Such as `24GiB`, or bytes, of a GPU; None is this machine's device.
        accelerator: As of a Trainer.
        processes: How many share the memory of a CPU.

    Raises:
        UserError: As from `read_memory`; or there is less than CUDA takes for itself.
    """
    if memory is not None:
        whole = read_memory(memory) if isinstance(memory, str) else memory
        is_cpu = accelerator == "cpu"
        return _room(f"{'a CPU' if is_cpu else 'a GPU'} with so much", whole, not is_cpu)
    if torch.cuda.is_available() and accelerator in ("auto", "cuda", "gpu"):
        return _room(torch.cuda.get_device_name(), int(torch.cuda.mem_get_info()[1]), True)
    return _room("the CPU of this machine", available_memory() // processes, False)


def _room(words: str, whole: int, on_gpu: bool) -> Room:
    room = int(whole * (1 - MARGIN)) - (CONTEXT if on_gpu else 0)
    if room <= 0:
        raise UserError(
            f"memory: found {whole / 2**30:.2f} GiB; CUDA alone takes about {CONTEXT / 2**30:.1f} of a GPU"
        )
    return Room(words, whole, room, on_gpu)
