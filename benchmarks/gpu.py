"""Fine-tuning steps of a 3B Qwen2.5-VL shape on one GPU: tokens per second, MFU, memory.

    python benchmarks/gpu.py [--steps 6] [--only full|lora] [--small]

Random weights in bfloat16, 8 samples of two 448×448 pictures and an answer of some 190 tokens a step, fused
AdamW. `full` trains everything with gradient checkpointing; `lora` trains rank 16 on the language model.
- "bare loop": forward, our loss, backward, clipping and step on a batch that is on the device already. With
  the same attention nothing can be faster.
- "ours": Lightning's Trainer with VLMModule and VLMDataModule, from pictures on a disk on.
- "Trainer": transformers' Trainer at its defaults on batches that we collated.

MFU counts matrix multiplications of real tokens and patches once (no recomputation) against 989 TFLOP/s, the
dense bfloat16 peak of an H100 or H200: 6 operations a weight and token where it trains, 4 where only inputs
need a gradient, 2 for a frozen tower. `--small` runs the same on a small model, to try the script on a CPU.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.conversation import Conversation, Conversations, Image, Message, Text
from lightning_vlm.kinds import Kind
from tests.support.tiny import FAMILIES
from tests.support.tiny.family import make_tokenizer

# isort: split
from lightning.pytorch import Callback, Trainer  # after ours, which mends a CPU-only torch

PEAK = 989e12
SIDE, PICTURES, WORDS, BATCH = 448, 2, 37, 8
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Pictures(Conversations):
    """Questions about pictures of noise."""

    def __init__(self, folder: Path, size: int, side: int) -> None:
        import numpy
        import PIL.Image

        self.size, self.paths = size, [folder / f"{number}.jpg" for number in range(8)]
        for number, path in enumerate(self.paths):
            noise = numpy.random.default_rng(number).integers(0, 255, (side, side, 3), "uint8")
            PIL.Image.fromarray(noise).save(path)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Conversation:  # type: ignore[override]
        paths = [self.paths[(index + offset) % 8] for offset in range(PICTURES)]
        images = [Image(path, root=path.parent) for path in paths]
        answer = " ".join(["There are two green triangles."] * WORDS)
        turns = (Message("user", (*images, Text("What is it?"))), Message("assistant", (Text(answer),)))
        return Conversation(turns, source=f"pictures:{index}")


def save_model(folder: Path, small: bool) -> None:
    """A model of random weights and the processor of the tiny family, for pictures of full size."""
    from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2VLImageProcessor

    row = FAMILIES["qwen2_5_vl"]
    tokenizer = make_tokenizer(row)
    tokenizer.model_max_length = 32768
    processor = row.processor(tokenizer, row.template)
    processor.image_processor = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=1280 * 28 * 28)
    processor.save_pretrained(folder)
    ids = tokenizer.get_vocab()
    text = {
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "intermediate_size": 11008,
        "vocab_size": 151936,
        "max_position_embeddings": 128000,
        "pad_token_id": ids[row.pad],
        "eos_token_id": ids[row.eos],
        "bos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": 3420,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    if small:
        text |= {"hidden_size": 256, "num_hidden_layers": 2, "intermediate_size": 512, "vocab_size": 1000}
        text["rope_parameters"]["mrope_section"] = [2, 3, 3]
        vision |= {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "out_hidden_size": 256}
        vision["fullatt_block_indexes"] = [1]
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    with torch.device(DEVICE):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def operations(module: VLMModule, batch: Any, full: bool) -> float:
    """Floating-point operations of a step, as the head of this file counts them."""
    assert module.model is not None
    text, vision = module.model.config.get_text_config(), module.model.config.vision_config
    lengths = batch.inputs["attention_mask"].sum(1).tolist()
    patches = batch.inputs["image_grid_thw"].prod(1).tolist()
    learned = int((batch.kinds >= Kind.RESPONSE).sum())
    width, key_width = (
        text.hidden_size,
        text.hidden_size // text.num_attention_heads * text.num_key_value_heads,
    )
    layer = 2 * width**2 + 2 * width * key_width + 3 * width * text.intermediate_size
    tokens = 2 * text.num_hidden_layers * layer * sum(lengths)
    scores = text.num_hidden_layers * sum(2 * length**2 * width for length in lengths)
    side, whole = vision.hidden_size, len(vision.fullatt_block_indexes)
    merger = ((4 * side) ** 2 + 4 * side * vision.out_hidden_size) // 4
    block = 4 * side**2 + 3 * side * vision.intermediate_size
    tower = 2 * (vision.depth * block + merger) * sum(patches)
    window = (vision.window_size // vision.patch_size) ** 2
    tower += whole * sum(4 * count**2 * side for count in patches)
    tower += (vision.depth - whole) * sum(4 * count * window * side for count in patches)
    head = 2 * text.vocab_size * width * learned
    return 3 * (tokens + scores + tower + head) if full else 2 * tokens + 3 * scores + tower + 2 * head


class Clock(Callback):
    """The moments at which steps ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        tick(self.times)


def tick(times: list[float]) -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    times.append(time.perf_counter())


def make_module(folder: Path, full: bool, attention: str, compiled: bool) -> VLMModule:
    adapt: Any = "full" if full else {"language": {"lora": {"r": 16}}}
    return VLMModule(
        str(folder),
        adapt=adapt,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-6, fused=True),
        attn_implementation=attention,
        gradient_checkpointing=full,
        compile=compiled,
    )


def ours(folder: Path, source: Conversations, module: VLMModule, full: bool, steps: int) -> list[float]:
    clock = Clock()
    trainer = Trainer(
        max_steps=steps,
        accelerator=DEVICE,
        devices=1,
        precision="32-true" if full else "bf16-mixed",
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    workers = 4 if DEVICE == "cuda" else 0
    trainer.fit(module, VLMDataModule(train=source, batch_size=BATCH, num_workers=workers))
    return clock.times


def bare(folder: Path, batch: Any, module: VLMModule, full: bool, steps: int) -> list[float]:
    model = module.to(DEVICE).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    targets = type(batch.targets)(*(tensor.to(DEVICE) for tensor in batch.targets))
    inputs = {name: value.to(DEVICE) for name, value in batch.inputs.items()}
    batch, times = batch._replace(inputs=inputs, targets=targets), list[float]()
    for _ in range(steps):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=not full):
            loss = module.loss_sums(batch).loss_sum / len(targets.weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tick(times)
    return times


def transformers_trainer(folder: Path, batch: Any, module: VLMModule, full: bool, steps: int) -> list[float]:
    from transformers import Trainer as HFTrainer
    from transformers import TrainerCallback, TrainingArguments

    labels = batch.inputs["input_ids"].masked_fill(batch.kinds < Kind.RESPONSE, -100)
    fed, times = {**batch.inputs, "labels": labels}, list[float]()

    class Times(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            tick(times)

    options = TrainingArguments(
        output_dir=str(folder / "out"),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        bf16=DEVICE == "cuda",
        optim="adamw_torch_fused",
        learning_rate=1e-6,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=DEVICE == "cpu",
    )
    HFTrainer(
        module.model,
        options,
        train_dataset=[0] * BATCH * steps,
        data_collator=lambda _: fed,
        callbacks=[Times()],
    ).train()
    return times


CONTENDERS = {
    "Trainer, sdpa": (transformers_trainer, "sdpa", False),
    "ours, sdpa": (ours, "sdpa", False),
    "ours": (ours, "auto", False),
    "bare loop": (bare, "auto", False),
    "ours, compiled": (ours, "auto", True),
    "bare loop, compiled": (bare, "auto", True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", choices=("full", "lora"))
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    print(f"{device}, torch {torch.__version__}", flush=True)
    shared = Path("/dev/shm")  # a model of 7.5 GB is written and read faster there
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        folder = Path(name)
        save_model(folder, given.small)
        source = Pictures(folder, BATCH * given.steps, 112 if given.small else SIDE)
        for method in ("full", "lora"):
            if given.only in (None, method):
                measure(folder, source, method == "full", given.steps)


def measure(folder: Path, source: Conversations, full: bool, steps: int) -> None:
    """Print a line for each contender."""
    for name, (run, attention, compiled) in CONTENDERS.items():
        if compiled and DEVICE == "cpu":
            continue  # takes minutes, and says nothing of a GPU
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        module = make_module(folder, full, attention, compiled)
        module.configure_model()
        data = VLMDataModule(train=source, batch_size=BATCH, shuffle=False, processor=module.processor)
        batch = next(iter(data.train_dataloader()))
        batch = batch._replace(targets=module.targets(batch))
        title = f"{'full' if full else 'lora'}: {name}"
        try:
            times = run(folder, source if run is ours else batch, module, full, steps)
        except torch.OutOfMemoryError:
            print(f"{title:<28} out of memory", flush=True)
            continue
        seconds = statistics.median(later - sooner for sooner, later in itertools.pairwise(times[2:]))
        share = operations(module, batch, full) / seconds / PEAK
        memory = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else float("nan")
        print(
            f"{title:<28} {1000 * seconds:6.0f} ms  {batch.tokens / seconds:7,.0f} tokens/s  MFU {share:5.1%}"
            f"  {memory:5.1f} GiB",
            flush=True,
        )
        del module, batch, data


if __name__ == "__main__":
    main()
