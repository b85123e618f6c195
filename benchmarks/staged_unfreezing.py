"""Memory of one training step, by what trains: what StagedUnfreezing saves while parts are frozen.

    python benchmarks/staged_unfreezing.py [--layers 8] [--hidden 512] [--batch 16] [--device cuda]

One run of a LLaVA that begins with everything and then freezes more and more: first half the layers of the
vision tower, then all of it, then the language model too. Per stage: what autograd keeps for the backward
(found with saved-tensor hooks, each storage once, weights not counted), gradients, the optimizer's state, and
their sum; on a GPU also the peak of the allocator, which holds the weights as well. Ratios are to the stage
in which everything trains.
"""

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lightning_vlm import VLMDataModule, VLMModule  # before lightning, on a machine with a CPU-only torch

# isort: split
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_vlm_callbacks import StagedUnfreezing
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from lightning_vlm.data.drawn import Drawn
from lightning_vlm.models.shipped import SHIPPED

STEPS, PARTS = 4, ("vision", "projector", "language", "head")
TRAINED = {
    "everything": PARTS,
    "half the tower's layers, and all else": ("vision.layers[50%:]", *PARTS[1:]),
    "all but the tower": PARTS[1:],
    "the projector": ("projector",),
}


def make_model(folder: Path, layers: int, hidden: int) -> None:
    """The shipped architecture with another size and random weights; tower and language model alike."""
    base = SHIPPED["drawn-vlm"]
    config = AutoConfig.from_pretrained(base)
    for part in (config.text_config, config.vision_config):
        part.hidden_size, part.num_hidden_layers = hidden, layers
        part.intermediate_size, part.num_attention_heads = 3 * hidden, 8
    config.text_config.num_key_value_heads, config.text_config.head_dim = 8, hidden // 8
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(base).save_pretrained(folder)


class Measure(Callback):
    """The most bytes of a step, by stage."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.bytes: defaultdict[int, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.stage = trainer.global_step // STEPS
        self.kept: dict[int, int] = {}
        weights = {one.untyped_storage().data_ptr() for one in pl_module.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                self.kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        self.hooks = saved_tensors_hooks(pack, lambda tensor: tensor)
        self.hooks.__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.hooks.__exit__(None, None, None)
        self.most("activations", sum(self.kept.values()))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.most("gradients", _size(one.grad for one in pl_module.parameters() if one.grad is not None))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.cuda:
            self.most("peak", torch.cuda.max_memory_allocated())
        state = trainer.optimizers[0].state.values()
        self.most(
            "optimizer", _size(value for one in state for value in one.values() if torch.is_tensor(value))
        )

    def most(self, name: str, size: int) -> None:
        held = self.bytes[self.stage]
        held[name] = max(held[name], size)


def _size(tensors: Any) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    stages = [
        {"at": i * STEPS, "train": dict.fromkeys(parts, 1.0)} for i, parts in enumerate(TRAINED.values())
    ]
    measure = Measure(given.device)
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), given.layers, given.hidden)
        # The tower's last norm isn't read by LLaVA.
        module = VLMModule(
            folder, adapt=dict.fromkeys(PARTS, "full"), no_gradient_needed=["vision.post_layernorm"]
        )
        size = STEPS * len(TRAINED) * given.batch
        trainer = Trainer(
            accelerator="gpu" if given.device == "cuda" else "cpu",
            devices=1,
            max_steps=STEPS * len(TRAINED),
            callbacks=[StagedUnfreezing(stages, "step"), measure],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, VLMDataModule(train=Drawn("train", size=size), batch_size=given.batch))
    columns = ["activations", "gradients", "optimizer", *(["peak"] if given.device == "cuda" else [])]
    table = Table("trains", "parameters", *(f"{name}, MiB" for name in columns), "sum, MiB", "× all")
    first = _sum(measure.bytes[0])
    for stage, name in enumerate(TRAINED):
        held = measure.bytes[stage]
        table.add_row(
            name,
            f"{held['gradients'] // 4:,}",
            *(f"{held[column] / 2**20:,.0f}" for column in columns),
            f"{_sum(held) / 2**20:,.0f}",
            f"{_sum(held) / first:.3f}",
        )
    Console(width=140).print(table)
    weights = _size(module.parameters()) / 2**20
    Console().print(f"The weights are {weights:,.0f} MiB in every stage, and not in the sum.")


def _sum(held: dict[str, int]) -> int:
    return held["activations"] + held["gradients"] + held["optimizer"]


if __name__ == "__main__":
    main()
