"""What is lost when an exported model is quantised."""

from pathlib import Path

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from lightning_vlm.data.conversation import Conversations, Slice
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.module import VLMModule

_SCORED = 200
"""The most samples to score on."""


def check_quantized(
    console: Console, folder: Path, method: str, source: Conversations | None, module: VLMModule
) -> dict[str, dict[str, float]]:
    """Score an exported model as it is and quantised, and show both.

    Args:
        console: Where to.
        folder: Of the model.
        method: `nf4` or `int8`.
        source: What to score on; None: drawn pictures.
        module: Which trained it; its weights of tokens count.
    Returns:
        The scores of each, by name.
    """
    data = Drawn("test", size=_SCORED) if source is None else Slice(source, 0, min(_SCORED, len(source)))
    scores: dict[str, dict[str, float]] = {}
    for name, quantization in (("as exported", None), (method, Quantization(method))):  # type: ignore[arg-type]
        one = VLMModule(
            str(folder),
            adapt={"language": "frozen"},
            token_weights=module.token_weights,
            generation={"max_new_tokens": 64},
            quantization=quantization,
        )
        trainer = Trainer(accelerator="auto", devices=1, logger=False, enable_checkpointing=False)
        (found,) = trainer.test(one, VLMDataModule(test=data), verbose=False)
        scores[name] = {key.removeprefix("test/"): float(value) for key, value in found.items()}
    keys = ("loss", "perplexity", "exact_match", "token_f1")
    table = Table(title=f"Quantised: {len(data):,} samples", title_justify="left")
    table.add_column("")
    for key in keys:
        table.add_column(key.replace("_", " "), justify="right")
    plain, quantised = scores.values()
    for name, row in (*scores.items(), ("lost", {key: quantised[key] - plain[key] for key in plain})):
        table.add_row(name, *(f"{row[key]:+.4f}" if name == "lost" else f"{row[key]:.4f}" for key in keys))
    console.print(table)
    return scores
