"""What is lost when an exported model is quantised."""

from pathlib import Path

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from lightning_vlm.counted import counted
from lightning_vlm.data.conversation import Conversations, Slice
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.module import VLMModule

_SCORED = 200
"""The most samples to score on."""
_SHOWN = ("loss", "perplexity", "exact_match", "token_f1")


def check_quantized(
    console: Console, folder: Path, method: str, source: Conversations | None, module: VLMModule
) -> None:
    """Score an exported model as it is and quantised, and show both.

    Args:
        console: Where to.
        folder: Of the model.
        method: `nf4` or `int8`.
        source: What to score on; None: drawn pictures.
        module: Which trained it; its weights of tokens count.
    """
    data: Conversations = Drawn("test", size=_SCORED)
    if source is not None:
        data = Slice(source, 0, min(_SCORED, len(source)))
    quantization = Quantization(method)  # type: ignore[arg-type]
    plain = _scores(folder, data, module, None)
    quantised = _scores(folder, data, module, quantization)
    table = Table(title=f"Quantised: {counted(len(data), 'sample')}", title_justify="left")
    table.add_column("")
    for name in _SHOWN:
        table.add_column(name.replace("_", " "), justify="right")
    for title, scores in (("as exported", plain), (method, quantised)):
        table.add_row(title, *(f"{scores[name]:.4f}" for name in _SHOWN))
    table.add_row("lost", *(f"{quantised[name] - plain[name]:+.4f}" for name in _SHOWN))
    console.print(table)


def _scores(
    folder: Path, data: Conversations, module: VLMModule, quantization: Quantization | None
) -> dict[str, float]:
    exported = VLMModule(
        str(folder),
        adapt={"language": "frozen"},
        token_weights=module.token_weights,
        generation={"max_new_tokens": 64},
        quantization=quantization,
    )
    trainer = Trainer(accelerator="auto", devices=1, logger=False, enable_checkpointing=False)
    (found,) = trainer.test(exported, VLMDataModule(test=data), verbose=False)
    scores = {}
    for name, value in found.items():
        scores[name.removeprefix("test/")] = float(value)
    return scores
