"""Loss of one batch, forward and backward: time and peak extra memory of ours, the model's own, and TRL's.

    python benchmarks/lm_loss.py [--hidden 896] [--vocabulary 151936] [--device cuda]

One Qwen2.5-VL with a single small layer, so that the output layer is nearly all there is; 4 sequences of
1,024 tokens, 15% of them supervised. Each contender runs in a process of its own, on the same numbers. Extra
memory is the peak of the process above what it held before (on a GPU: of the allocator). "own" is the model's
`forward(labels=...)`; "TRL" its fused head as `SFTTrainer` puts it on a model; "Liger" and "CCE" take part on
a GPU where they are installed. All losses and gradients are compared with the first contender's.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import lightning_vlm  # noqa: F401  # mends torchvision beside a CPU-only torch, for the rivals too

CONTENDERS = ("own", "TRL", "Liger", "CCE", "ours")
SEQUENCES, LENGTH, SUPERVISED = 4, 1024, 0.15


def build(hidden: int, vocabulary: int, train_head: bool, device: str) -> torch.nn.Module:
    """The model: real classes, random weights."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    heads = max(1, hidden // 64)
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": 1,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "vocab_size": vocabulary,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [8, 12, 12],
            },
        },
        vision_config={"hidden_size": 32, "depth": 1, "num_heads": 2, "out_hidden_size": hidden},
        tie_word_embeddings=False,
        image_token_id=1,
        video_token_id=1,
        vision_start_token_id=1,
        vision_end_token_id=1,
    )
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = Qwen2_5_VLForConditionalGeneration(config).to(device, dtype).train()
    model.model.language_model.embed_tokens.requires_grad_(False)
    model.lm_head.requires_grad_(train_head)
    return model


def loss_of(name: str, model: torch.nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """How a contender gets from tokens to a loss."""
    if name == "own":
        return lambda ids, labels: model(input_ids=ids, labels=labels, use_cache=False).loss
    if name == "TRL":
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model)
        return lambda ids, labels: model(input_ids=ids, labels=labels, fused_lm_head=True).loss

    def kept(ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and labels where something is supervised."""
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
        labels = labels[:, 1:].flatten()
        rows = (labels != -100).nonzero()[:, 0]
        return states[rows], labels[rows]

    if name == "Liger":
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        return lambda ids, labels: liger(model.lm_head.weight, *kept(ids, labels))
    if name == "CCE":
        from cut_cross_entropy import linear_cross_entropy as cce

        def by_cce(ids: Tensor, labels: Tensor) -> Tensor:
            states, labels = kept(ids, labels)
            return cce(states, model.lm_head.weight, labels)

        return by_cce
    from lightning_vlm.losses.language import head_cross_entropy

    def ours(ids: Tensor, labels: Tensor) -> Tensor:
        states, labels = kept(ids, labels)
        sums = head_cross_entropy(states, model.lm_head, labels)
        return sums.loss_sum / sums.weight_sum

    return ours


def measure(name: str, hidden: int, vocabulary: int, train_head: bool, device: str, rounds: int) -> dict:
    """Run one contender; the first round is not timed."""
    model = build(hidden, vocabulary, train_head, device)
    loss_function = loss_of(name, model)
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(2, vocabulary, (SEQUENCES, LENGTH), generator=draw)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=draw) >= SUPERVISED, -100)
    ids, labels = ids.to(device), labels.to(device)
    seconds, extra = [], 0
    for _ in range(rounds + 1):
        model.zero_grad(set_to_none=True)
        before = _begin_peak(device)
        start = time.perf_counter()
        loss = loss_function(ids, labels)
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        extra = max(extra, _peak(device) - before)
    down = model.model.language_model.layers[0].mlp.down_proj.weight.grad.float().flatten()[:1000].tolist()
    return {"loss": loss.item(), "seconds": min(seconds[1:]), "extra": extra, "gradient": down}


def _begin_peak(device: str) -> int:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark becomes the present size
    return _status("VmRSS")


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def contenders(device: str) -> list[str]:
    """Who can take part here."""
    needs = {"TRL": "trl", "Liger": "liger_kernel", "CCE": "cut_cross_entropy"}
    gpu_only = {"Liger", "CCE"}
    return [
        one
        for one in CONTENDERS
        if (one not in needs or find_spec(needs[one])) and (one not in gpu_only or device == "cuda")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=896, help="as Qwen2.5 of 0.5B")
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "HEAD"), help="measure one; used by this script")
    given = parser.parse_args()
    if given.one:
        name, head = given.one
        found = measure(name, given.hidden, given.vocabulary, head == "trained", given.device, given.rounds)
        print(json.dumps(found))
        return
    console = Console(width=100)
    sizes = f"{SEQUENCES}×{LENGTH} tokens, {SUPERVISED:.0%} supervised, hidden {given.hidden}"
    for head in ("frozen", "trained"):
        table = Table(title=f"Head {head}: {sizes}, vocabulary {given.vocabulary:,}, {given.device}")
        for column in ("", "seconds", "× own", "extra MiB", "× own", "loss", "gradient off by"):
            table.add_column(column, justify="right" if column else "left")
        first: dict = {}
        for name in contenders(given.device):
            words = [sys.executable, *sys.argv, "--one", name, head, "--device", given.device]
            done = subprocess.run(words, capture_output=True, text=True, env=os.environ, check=False)
            if done.returncode:
                table.add_row(name, f"failed: {done.stderr.strip().splitlines()[-1][:60]}")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            first = first or found
            ours, theirs = torch.tensor(found["gradient"]), torch.tensor(first["gradient"])
            table.add_row(
                name,
                f"{found['seconds']:.2f}",
                f"{found['seconds'] / first['seconds']:.3f}",
                f"{found['extra'] / 2**20:,.0f}",
                f"{found['extra'] / first['extra']:.3f}",
                f"{found['loss']:.5f}",
                f"{((ours - theirs).norm() / theirs.norm()).item():.1e}",
            )
        console.print(table)


if __name__ == "__main__":
    main()
