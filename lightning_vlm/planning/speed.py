"""How long an epoch takes: from real steps, or from the operations of a step."""

import time
from contextlib import nullcontext

import torch
from lightning.pytorch.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_vlm_callbacks.throughput_monitor.peaks import peak_of

from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.losses import batch_loss
from lightning_vlm.losses.tasks import make_task_weights
from lightning_vlm.models.recompute import use_gradient_checkpointing
from lightning_vlm.models.source import ModelSource
from lightning_vlm.module import VLMModule
from lightning_vlm.planning.asked import Room
from lightning_vlm.planning.choice import Choice
from lightning_vlm.planning.planned import Epoch
from lightning_vlm.planning.step import MIXED

STEPS = 3
"""So many real steps are measured, after one that isn't."""
USED = 0.35
"""The share of a device's peak that training of such models uses, roughly."""
SOME_GPU = 312e12
"""Operations a second where a GPU is planned for that isn't here: the bfloat16 peak of an A100."""


def estimate_epoch(operations: float, room: Room, precision: str, batches: int, steps: int) -> Epoch:
    """From the operations of a micro-batch.

    Args:
        operations: Of a micro-batch.
        room: Says which device.
        precision: As of a Trainer.
        batches: Micro-batches of an epoch on a device.
        steps: Optimizer steps of an epoch.
    """
    peak, whose = _peak(room, precision)
    seconds = operations / (peak * USED) * batches
    used = f"{USED:.0%} of {whose}"
    return Epoch(seconds, steps, f"{operations / 1e12:.3g} TFLOP a micro-batch, at {used}", measured=False)


def _peak(room: Room, precision: str) -> tuple[float, str]:
    if not room.on_gpu:
        speed = _speed_of_cpu(MIXED.get(precision, torch.float32))
        return speed, f"the {speed / 1e9:.0f} GFLOP/s that this CPU multiplies matrices at"
    if torch.cuda.is_available():
        peak, _ = peak_of(torch.device("cuda"))
        if peak:
            return peak, f"the {peak / 1e12:.0f} TFLOP/s of {torch.cuda.get_device_name()}"
    return SOME_GPU, f"the {SOME_GPU / 1e12:.0f} TFLOP/s of an A100"


def _speed_of_cpu(dtype: torch.dtype, side: int = 768) -> float:
    one = torch.ones(side, side, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        begin = time.perf_counter()
        one @ one
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


def measure_epoch(
    module: VLMModule,
    source: ModelSource,
    batch: Batch,
    choice: Choice,
    room: Room,
    batches: int,
    steps: int,
    times: float,
) -> Epoch:
    """From real steps of the chosen method on this machine; nothing of them is kept.

    Args:
        module: For its optimizer and processor.
        source: Makes the model.
        batch: A typical one.
        choice: What was chosen.
        room: Says which device.
        batches: Micro-batches of an epoch on a device.
        steps: Optimizer steps of an epoch.
        times: How much larger than the batch a micro-batch is.
    """
    device = torch.device("cuda" if room.on_gpu and torch.cuda.is_available() else "cpu")
    autocast = MIXED.get(choice.precision)
    with isolate_rng():
        model = source.model(module.processor if source.new_tokens else None, autocast).model
        model = model.to(device).train()  # type: ignore[arg-type]
        use_gradient_checkpointing(model, choice.recompute)
        optimizer = module.optimizer([weight for weight in model.parameters() if weight.requires_grad])
        moved = move_data_to_device(batch, device)
        assert batch.targets is not None
        seconds = []
        for _ in range(STEPS + 1):
            begin = time.perf_counter()
            tasks = make_task_weights(None, sorted(set(batch.tasks))).to(device)
            with torch.autocast(device.type, autocast) if autocast else nullcontext():
                loss = batch_loss.task_sums(model, moved, moved.targets, tasks).loss_sum
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - begin)
    each = sorted(seconds[1:])[STEPS // 2] * times
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    return Epoch(each * batches, steps, f"{each:.2f} s a micro-batch, measured on {where}", measured=True)
