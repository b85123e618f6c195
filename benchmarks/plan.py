"""What `lightning-vlm plan` counts without weights, against what a real step takes.

    python benchmarks/plan.py [--hidden 512] [--layers 8] [--samples 4] [--tokens 256]

Three architectures with random weights, in the classes and shapes of the published ones, trained in full
and with LoRA, with activations kept and computed again. Counted: weights, the optimizer's state, and the
most that a step takes beside them, as `lightning_vlm.planning` finds it on the meta device. Measured: a
real second step with weights on the CPU, by the records of PyTorch's allocator (`torch.profiler` with
`profile_memory`), which knows nothing of our counting and also sees what operations allocate inside.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForImageTextToText

from lightning_vlm import VLMModule
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.planning.samples import made_batches
from lightning_vlm.planning.step import CountedStep, Method, skeleton
from tests.support import tiny
from tests.support.real_steps import RealStep

CASES = [
    ("llava", "full", "32-true", False),
    ("llava", "lora", "32-true", True),
    ("qwen2_5_vl", "full", "32-true", True),
    ("qwen2_5_vl", "lora", "bf16-mixed", False),
    ("smolvlm", "full", "bf16-mixed", False),
    ("smolvlm", "lora", "32-true", True),
    ("llava", "qlora", "32-true", False),
]


def build(family: str, folder: Path, hidden: int, layers: int) -> Path:
    """A model of a family with the processor of the tiny one, and a larger language model and vocabulary."""
    tiny.build(family, folder)
    config = AutoConfig.from_pretrained(folder)
    text: Any = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = hidden, hidden * 11 // 4, layers
    text.num_attention_heads, text.num_key_value_heads = hidden // 64, hidden // 128
    text.head_dim, text.vocab_size, text.max_position_embeddings = 64, 16_000, 4096
    text.layer_types = ["full_attention"] * layers if getattr(text, "layer_types", None) else None
    if family == "qwen2_5_vl":
        text.rope_parameters = {**text.rope_parameters, "mrope_section": [8, 12, 12]}
        config.vision_config.out_hidden_size = hidden
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return folder


def main() -> None:
    """Count and measure each case, and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("hidden", 512), ("layers", 8), ("samples", 4), ("tokens", 256)):
        options.add_argument(f"--{name}", type=int, default=default)
    given = options.parse_args()
    table = Table()
    for column in ("model", "trains", "precision", "recomputed", "MiB held", "counted", "measured", "off"):
        table.add_column(
            column, justify="right" if column in ("MiB held", "counted", "measured", "off") else "left"
        )
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            family: build(family, Path(folder) / family, given.hidden, given.layers)
            for family in dict.fromkeys(case[0] for case in CASES)
        }
        for family, plan, precision, recompute in CASES:
            begin = time.perf_counter()
            module = VLMModule(str(paths[family]), adapt=plan)
            module._trainer = type("Trainer", (), {"precision": precision})()
            quantization = Quantization() if plan == "qlora" else None
            model = skeleton(module.source, Method(plan, module.adapt, quantization), precision)
            step = CountedStep(model, precision, module.optimizer, accumulates=False)
            step.recompute(recompute)
            renderer = Renderer(module.processor)
            batch = made_batches(renderer, model, given.tokens, (64, 64), module.targets)(given.samples)
            counted = step(batch)
            seconds = time.perf_counter() - begin
            weights, states, peak = RealStep(module, precision).measure(batch, recompute)
            if quantization is None:
                assert counted.weights == weights, (counted.weights, weights)
            assert counted.states == states
            total = counted.held + peak
            sizes = [f"{size / 2**20:.1f}" for size in (counted.held, counted.peak, total)]
            off = f"{counted.peak / total - 1:+.2%}"
            table.add_row(family, plan, precision, str(recompute).lower(), *sizes, off)
            alone = counted.step / peak - 1
            print(f"{family} {plan}: counted in {seconds:.1f} s; the step alone is off by {alone:+.2%}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
