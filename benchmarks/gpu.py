"""Steps of published shapes on one GPU: tokens per second, MFU, peak memory, padding, and a profile.

    python benchmarks/gpu.py [--shape qwen2_5_vl qwen3_vl] [--lengths even uneven]
                             [--method full lora qlora] [--contender ours "ours, packed" ...]
                             [--steps 6] [--profile] [--small]

Random weights in bfloat16, fused AdamW; `full` trains everything with gradient checkpointing, `lora` and
`qlora` train rank 16 on the language model. Padded batches have 8 samples; packed rows have as many tokens as
8 samples have on average. Each contender builds its own model, and its line is printed at once:
- "bare loop": forward, our loss, backward, clipping and step on packed batches that are on the device
  already. With the same attention and loss nothing can be faster.
- "ours": Lightning's Trainer with VLMModule and VLMDataModule, from pictures on a disk on.
- "Trainer", "TRL": transformers' Trainer on our padded batches, TRL's SFTTrainer with its own, as they are
  installed; "with Liger" is the best of their own settings that runs here (needs liger-kernel).

MFU counts what the model needs for real tokens and patches once, without recomputation, against the card's
dense bfloat16 peak (`lightning_vlm.training.throughput`). `--small` tries the script on a CPU.
"""

import argparse
import gc
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu_models import SHAPES, SIDE, Pictures, save_model
from lightning_vlm_callbacks.throughput_monitor.peaks import peak_of
from sft_step import InOrder, rows_of, with_labels

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.data.conversation import Conversations
from lightning_vlm.training.throughput import VLMBatchCounter

# isort: split
from lightning.pytorch import Callback, Trainer  # after ours, which mends a CPU-only torch

BATCH = 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
METHODS: dict[str, dict[str, Any]] = {
    "full": {"adapt": "full", "gradient_checkpointing": True},
    "lora": {"adapt": {"language": {"lora": {"r": 16}}}},
    "qlora": {"adapt": {"language": {"lora": {"r": 16}}}, "quantization": "nf4"},
}


@dataclass
class Job:
    """What a contender trains on.

    Args:
        folder: Where the model is saved.
        source: The samples.
        method: One of `METHODS`.
        steps: How many steps are made.
    """

    folder: Path
    source: Conversations
    method: str
    steps: int


@dataclass
class Times:
    """When each step ended, and what it trained on.

    Args:
        ends: In seconds.
        batches: The batch of each step; a contender that makes its own has those that are equal to its.
    """

    ends: list[float] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)

    def step(self) -> None:
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def make_module(job: Job, **options: Any) -> VLMModule:
    """The model of a job, as a config would make it."""
    return VLMModule(
        str(job.folder),
        optimizer=partial(torch.optim.AdamW, lr=1e-6, fused=True),
        **{**METHODS[job.method], **options},
    )


def make_data(job: Job, batching: str, **options: Any) -> VLMDataModule:
    """The batches of a job."""
    budget: dict[str, Any] = {"batch_size": BATCH}
    if batching == "packed":
        budget = {"max_tokens": tokens_of(job) * BATCH // len(job.source)}
    return VLMDataModule(train=job.source, batching=batching, shuffle=False, **budget, **options)


def tokens_of(job: Job) -> int:
    """How many tokens all samples have."""
    return sum(batch.tokens for batch in batches_of(job, make_module(job), "padded"))


def batches_of(job: Job, module: VLMModule, batching: str) -> list[Batch]:
    """All batches, on the CPU."""
    data = make_data(job, batching, processor=module.processor)
    return [batch._replace(targets=module.targets(batch)) for batch in data.train_dataloader()]


def autocast(job: Job) -> torch.autocast:
    """Adapters are float32 and compute in bfloat16; a fully trained model is bfloat16 throughout."""
    return torch.autocast(DEVICE, torch.bfloat16, enabled=job.method != "full")


def ours(job: Job, times: Times, batching: str, **options: Any) -> VLMModule:
    """VLMModule and VLMDataModule."""

    class Tick(Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            times.step()
            times.batches.append(batch)

    module = make_module(job, **options)
    trainer = Trainer(
        max_steps=job.steps,
        max_epochs=-1,
        accelerator=DEVICE,
        devices=1,
        precision="32-true" if job.method == "full" else "bf16-mixed",
        callbacks=[Tick()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=job.folder,
    )
    trainer.fit(module, make_data(job, batching, num_workers=8 if DEVICE == "cuda" else 0))
    return module


def bare(job: Job, times: Times, batching: str, **options: Any) -> VLMModule:
    """A hand-written loop on batches that are on the device already."""
    module = make_module(job, **options)
    module.configure_model()
    model = module.model.to(DEVICE).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    batches = batches_of(job, module, batching)
    device = torch.device(DEVICE)
    ready = [module.transfer_batch_to_device(batch, device, 0) for batch in batches]
    for _, batch in zip(range(job.steps), itertools.cycle(ready), strict=False):
        with autocast(job):
            loss = module.loss_sums(batch).loss_sum / len(batch.targets.weights)  # type: ignore[union-attr]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.step()
        times.batches.append(batch)
    return module


def huggingface(job: Job, times: Times, name: str, liger: bool) -> VLMModule:
    """transformers' Trainer on our padded batches, or TRL's SFTTrainer with its own collator."""
    from transformers import Trainer as HFTrainer
    from transformers import TrainerCallback, TrainingArguments

    module = make_module(job, attn_implementation="sdpa")
    module.configure_model()
    batches = batches_of(job, module, "padded")
    times.batches += itertools.islice(itertools.cycle(batches), job.steps)

    class Tick(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.step()

    options: dict[str, Any] = {
        "output_dir": str(job.folder / "out"),
        "max_steps": job.steps,
        "per_device_train_batch_size": BATCH,
        "bf16": DEVICE == "cuda",
        "optim": "adamw_torch_fused",
        "learning_rate": 1e-6,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": DEVICE == "cpu",
        "use_liger_kernel": liger,
    }
    trainer: Any
    if name == "Trainer":
        fed = iter(times.batches)
        trainer = HFTrainer(
            module.model,
            TrainingArguments(**options),
            train_dataset=[0] * BATCH * job.steps,  # type: ignore[arg-type]
            data_collator=lambda _: with_labels(next(fed)),
            callbacks=[Tick()],
        )
    else:
        from trl import SFTConfig, SFTTrainer

        trainer = SFTTrainer(
            module.model,
            SFTConfig(
                **options,
                dataloader_num_workers=8 if DEVICE == "cuda" else 0,
                max_length=None,
                remove_unused_columns=False,
                gradient_checkpointing=job.method == "full",
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=rows_of(job.source),
            processing_class=module.processor,
            callbacks=[Tick()],
        )
        trainer._get_train_sampler = lambda *_: InOrder(len(job.source))
    trainer.train()
    return module


CONTENDERS: dict[str, Callable[[Job, Times], VLMModule]] = {
    "Trainer": partial(huggingface, name="Trainer", liger=False),
    "Trainer with Liger": partial(huggingface, name="Trainer", liger=True),
    "TRL": partial(huggingface, name="TRL", liger=False),
    "TRL with Liger": partial(huggingface, name="TRL", liger=True),
    "ours": partial(ours, batching="padded"),
    "ours, packed": partial(ours, batching="packed"),
    "bare loop": partial(bare, batching="packed"),
    "ours, packed, compiled": partial(ours, batching="packed", compile=True),
    "bare loop, compiled": partial(bare, batching="packed", compile=True),
}


def lacks(name: str) -> str | None:
    """What a contender needs that isn't installed."""
    if "TRL" in name and not find_spec("trl"):
        return "trl"
    if "Liger" in name and not find_spec("liger_kernel"):
        return "liger-kernel"
    if "compiled" in name and DEVICE == "cpu":
        return "a GPU"  # it takes minutes on a CPU, and says nothing of a GPU
    return None


def measure(job: Job, name: str, title: str, profiled: bool) -> None:
    """Print a line for a contender."""
    missing = lacks(name)
    if missing:
        print(f"{title:<52} not run: needs {missing}", flush=True)
        return
    if DEVICE == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = Times()
    run = partial(CONTENDERS[name], job, times)
    try:
        module = with_profile(run) if profiled else run()
    except torch.OutOfMemoryError:
        print(f"{title:<52} out of memory", flush=True)
        return
    lasted = [later - sooner for sooner, later in itertools.pairwise(times.ends)][1:]
    batches = times.batches[-len(lasted) :]
    counter = VLMBatchCounter(module.model)
    seconds, tokens = sum(lasted), sum(batch.tokens for batch in batches)
    needed = [counter.operations(batch) for batch in batches]
    computed = sum(batch.kinds.numel() for batch in batches)
    peak, _ = peak_of(torch.device(DEVICE))
    mfu = "    ?"
    if peak and all(needed):
        mfu = f"{sum(filter(None, needed)) / seconds / peak:5.1%}"
    memory = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else float("nan")
    print(
        f"{title:<52} {1000 * statistics.median(lasted):6.0f} ms  {tokens / seconds:7,.0f} tokens/s"
        f"  MFU {mfu}  padding {1 - tokens / computed:5.1%}  {memory:5.1f} GiB",
        flush=True,
    )


def with_profile(run: Callable[[], VLMModule]) -> VLMModule:
    """Run a contender under torch's profiler, and print what took the device's time."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if DEVICE == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        module = run()
    by = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60), flush=True)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--lengths", nargs="+", choices=("even", "uneven"), default=("even", "uneven"))
    parser.add_argument("--method", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    parser.add_argument("--contender", nargs="+", choices=tuple(CONTENDERS), default=tuple(CONTENDERS))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if given.steps < 3:
        parser.error("--steps: expected 3 or more, as the first step isn't counted")
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(f"{device}, torch {torch.__version__}", flush=True)
    shared = Path("/dev/shm")  # a model of 8 GB is written and read faster there
    for shape in given.shape:
        with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
            folder = Path(name)
            save_model(folder, shape, given.small, DEVICE)
            for lengths, method, contender in itertools.product(given.lengths, given.method, given.contender):
                side = 112 if given.small else SIDE
                source = Pictures(folder, BATCH * given.steps, lengths == "uneven", side)
                job = Job(folder, source, method, given.steps)
                measure(job, contender, f"{shape}, {lengths}, {method}: {contender}", given.profile)


if __name__ == "__main__":
    main()
