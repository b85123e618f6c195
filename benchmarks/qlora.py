"""LoRA on weights in 4 and 8 bits against LoRA on 16 and 32: memory, time, and what is learned.

    python benchmarks/qlora.py [--steps 150] [--seeds 2] [--layers 8] [--hidden 512] [--device cuda]

All in one run, with `VLMModule` and the same data for each. "nf4" and "int8" quantise the language model's
linear layers; all else is in 16 bits there.

Memory: one step of a LLaVA whose language model has the given size, with LoRA of rank 16 on it. What the
model weighs (scales and tables of bitsandbytes included); what is alive behind the forward pass for the
backward (every storage that any operation made, so also what int8 keeps where autograd's hooks don't see it);
gradients and AdamW's states. On a GPU the allocator's peak instead. With and without gradient checkpointing.

Quality: the shipped model learns easy-VQA. The loss on test questions before and after, means over seeds.

On a GPU also: a Qwen2.5-VL of about two billion random weights (`--qwen` does it anywhere, smaller with
`--qwen-hidden` and `--qwen-layers`).
"""

import argparse
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lightning_vlm import VLMDataModule, VLMModule  # before lightning, on a machine with a CPU-only torch

# isort: split
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from lightning_vlm.data.conversation import Conversations, Slice
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.read.easy_vqa import EasyVQA
from lightning_vlm.models.shipped import SHIPPED
from tests.support import tiny

CONTENDERS: dict[str, dict[str, Any]] = {
    "32 bits": {"dtype": "float32", "precision": "32-true"},
    "16 bits": {"dtype": "bfloat16", "precision": "bf16-mixed"},
    "int8": {"dtype": "bfloat16", "precision": "bf16-mixed", "quantization": "int8"},
    "nf4": {"dtype": "bfloat16", "precision": "bf16-mixed", "quantization": "nf4"},
}
MIB = 2**20


class Alive(TorchDispatchMode):
    """Bytes of the storages that operations have made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self._known = 0, set[int]()

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        before = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if torch.is_tensor(one)}
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if torch.is_tensor(one) and one.untyped_storage()._cdata not in before | self._known:
                self._add(one.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.bytes += size
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


class Measure(Callback):
    """Bytes and seconds of the last of some steps."""

    def __init__(self, device: str) -> None:
        self.cuda, self.found, self.seconds = device == "cuda", dict[str, float](), list[float]()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        self.began = time.perf_counter()
        self.alive = Alive()
        if not self.cuda and trainer.global_step + 1 == trainer.max_steps:
            self.alive.__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if not self.cuda and trainer.global_step + 1 == trainer.max_steps:
            self.found["activations"] = self.alive.bytes
            self.alive.__exit__(None, None, None)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.found["gradients"] = _size(one.grad for one in pl_module.parameters() if one.grad is not None)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            self.found["peak"] = torch.cuda.max_memory_allocated()
        self.seconds.append(time.perf_counter() - self.began)
        states = [value for one in trainer.optimizers[0].state.values() for value in one.values()]
        self.found["optimizer"] = _size(value for value in states if torch.is_tensor(value))
        held = {one.data_ptr(): one.nbytes for one in pl_module.state_dict().values()}
        self.found["weights"] = sum(held.values())
        self.found["step"] = statistics.median(self.seconds[:-1] or self.seconds)


def _size(tensors: Any) -> int:
    return sum(one.nbytes for one in tensors)


def trainer_of(device: str, **options: Any) -> Trainer:
    return Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )


def make_llava(folder: Path, layers: int, hidden: int) -> str:
    """The shipped architecture around a larger language model of random weights."""
    base = SHIPPED["drawn-vlm"]
    config = AutoConfig.from_pretrained(base)
    text = config.text_config
    text.hidden_size, text.num_hidden_layers, text.intermediate_size = hidden, layers, 11 * hidden // 4
    text.num_attention_heads = text.num_key_value_heads = hidden // 64
    text.head_dim = 64
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(base).save_pretrained(folder)
    return str(folder)


def make_qwen(folder: Path, layers: int, hidden: int) -> str:
    """A Qwen2.5-VL of random weights in bfloat16; by default two billion of them, all but few in the language
    model. The processor and vocabulary are those of the tiny one."""
    tiny.build("qwen2_5_vl", folder)
    config = AutoConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.num_hidden_layers, text.intermediate_size = hidden, layers, 4 * hidden
    text.num_attention_heads, text.num_key_value_heads = hidden // 64, hidden // 128
    section = text.rope_parameters["mrope_section"]
    text.rope_parameters["mrope_section"] = [one * 32 // sum(section) for one in section]
    vision.out_hidden_size = hidden
    AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return str(folder)


def fit(
    path: str, name: str, device: str, data: Conversations, callback: Callback, **options: Any
) -> VLMModule:
    """Train as a contender does; `options` by their names, for module, data and Trainer."""
    seed_everything(options.pop("seed", 0), verbose=False)
    of_data = {key: options.pop(key) for key in ("batch_size", "shuffle") if key in options}
    steps, given = options.pop("max_steps"), dict(CONTENDERS[name])
    trainer = trainer_of(device, max_steps=steps, callbacks=[callback], precision=given.pop("precision"))
    module = VLMModule(path, **given, **options)
    trainer.fit(module, VLMDataModule(train=data, **of_data))
    return module


def memory(path: str, device: str, title: str, data: Conversations, **options: Any) -> Table:
    """One step of each contender, with and without gradient checkpointing."""
    kept = ["weights", "activations", "gradients", "optimizer"]
    columns = [*(["weights", "peak"] if device == "cuda" else kept)]
    table = Table("LoRA on", "checkpointing", title=title)
    for column in (
        *(f"{one}, MiB" for one in columns),
        "all, MiB",
        "weights ×",
        "all ×",
        "step, s",
        "step ×",
    ):
        table.add_column(column, justify="right")
    for checkpointing in (False, True):
        rows: dict[str, dict[str, float]] = {}
        for name in CONTENDERS:
            measure = Measure(device)
            plan = {"language": {"lora": {"r": 16}}}
            fit(
                path,
                name,
                device,
                data,
                measure,
                max_steps=4,
                shuffle=False,
                adapt=plan,
                gradient_checkpointing=checkpointing,
                **options,
            )
            rows[name] = measure.found
            rows[name]["all"] = measure.found.get("peak") or sum(measure.found[one] for one in kept)
        base = rows["16 bits"]
        for name, found in rows.items():
            sizes = (f"{found[one] / MIB:,.1f}" for one in (*columns, "all"))
            ratios = (f"{found[one] / base[one]:.3f}" for one in ("weights", "all"))
            seconds = f"{found['step']:.3f}", f"{found['step'] / base['step']:.2f}"
            table.add_row(name, "yes" if checkpointing else "no", *sizes, *ratios, *seconds)
        table.add_section()
    return table


def loss_of(module: VLMModule, device: str, data: Conversations) -> float:
    """Per token, on data not trained on."""
    data_module = VLMDataModule(val=data, eval_batch_size=100)
    (found,) = trainer_of(device, max_steps=1).validate(module, data_module, verbose=False)
    return found["val/loss"]


def quality(device: str, steps: int, seeds: int) -> Table:
    """The shipped model learns easy-VQA."""
    test = Slice(EasyVQA("test"), stop=1000)
    table = Table("LoRA on", title=f"easy-VQA, {steps} steps of 32, {seeds} seeds")
    for column in ("loss before", "loss after", "seeds differ by", "after ×", "off in before"):
        table.add_column(column, justify="right")
    rows: dict[str, tuple[float, list[float]]] = {}
    for name, options in CONTENDERS.items():
        given = {key: value for key, value in options.items() if key != "precision"}
        before = loss_of(VLMModule("drawn-vlm", **given), device, test)
        after = []
        for seed in range(seeds):
            module = fit(
                "drawn-vlm",
                name,
                device,
                EasyVQA("train"),
                Callback(),
                max_steps=steps,
                batch_size=32,
                seed=seed,
                optimizer=lambda groups: torch.optim.AdamW(groups, lr=2e-3),
            )
            after.append(loss_of(module, device, test))
        rows[name] = before, after
    base_before, base = rows["16 bits"]
    for name, (before, after) in rows.items():
        mean = statistics.mean(after)
        table.add_row(
            name,
            f"{before:.4f}",
            f"{mean:.4f}",
            f"{max(after) - min(after):.4f}",
            f"{mean / statistics.mean(base):.3f}",
            f"{before / base_before - 1:+.2%}",
        )
    return table


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--qwen", action="store_true", help="the Qwen2.5-VL too, which is the default on a GPU"
    )
    parser.add_argument("--qwen-layers", type=int, default=28)
    parser.add_argument("--qwen-hidden", type=int, default=2048)
    given = parser.parse_args()
    console, drawn = Console(width=140), Drawn("train", size=64, tasks=["vqa"])
    with tempfile.TemporaryDirectory() as folder:
        path = make_llava(Path(folder), given.layers, given.hidden)
        title = (
            f"LLaVA, language model of {given.layers} layers, {given.hidden} wide, batch 16, {given.device}"
        )
        console.print(memory(path, given.device, title, drawn, batch_size=16))
    if given.qwen or given.device == "cuda":
        with tempfile.TemporaryDirectory() as folder:
            path = make_qwen(Path(folder), given.qwen_layers, given.qwen_hidden)
            title = (
                f"Qwen2.5-VL, {given.qwen_layers} layers, {given.qwen_hidden} wide, batch 4, {given.device}"
            )
            console.print(memory(path, given.device, title, drawn, batch_size=4))
    else:
        console.print("Qwen2.5-VL of two billion weights: skipped, no GPU here.")
    console.print(quality(given.device, given.steps, given.seeds))


if __name__ == "__main__":
    main()
