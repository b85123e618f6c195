"""Make the model inside the package: `python -m tools.ship BASE CHECKPOINT DIR`."""

import json
import shutil
import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.drawn import TASKS, Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.module import VLMModule

CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# drawn-vlm

A LLaVA of {parameters:.2f} million parameters (SigLIP tower, Llama text model, both tiny) that describes
small drawn pictures and answers questions about them. It was asked to read and to locate too, and does both
badly: see the scores. It exists so that demos and tests can adapt a pretrained model as users adapt theirs.
It is no use on photographs.

## How it was made

From random weights, on pictures drawn by `lightning_vlm.data.drawn` (split `train`), by the commands at the
top of `configs/examples/pretrain_drawn.yaml`: first the tower learned to tell shape, colour and box of single
things, then all parameters learned to talk, in {steps:,} steps. No other data was used, and nothing of
easy-VQA.

## Scores

On {samples:,} drawn conversations of the split `test`, greedy answers ({versions}):

| task | exact match | token F1 | perplexity |
|---|---|---|---|
{rows}
"""


def ship(base: Path, checkpoint: Path, directory: Path, samples: int = 1000) -> Path:
    """Save a trained model as plain transformers load it, with a card that says what it scores.

    Args:
        base: The folder that training began with.
        checkpoint: What it ended with: a checkpoint of a `VLMModule` whose parts all trained fully.
        directory: Where to save; made if missing.
        samples: Drawn test conversations to score it on.
    Returns:
        The directory.
    """
    module = VLMModule.load_from_checkpoint(
        checkpoint, map_location="cpu", name_or_path=str(base), generation={"max_new_tokens": 80}
    )
    assert module.model is not None
    data = VLMDataModule(test=Drawn("test", size=samples), eval_batch_size=100)
    trainer = Trainer(logger=False, enable_checkpointing=False)
    (scores,) = trainer.test(module, data, verbose=False)
    module.model.config.use_cache = module.model.config.get_text_config().use_cache = True
    module.model.save_pretrained(directory)
    for file in base.iterdir():  # tokenizer, processor and template as they are
        if file.name not in ("model.safetensors", "config.json", "generation_config.json"):
            shutil.copy(file, directory / file.name)
    names = ("exact_match", "token_f1", "perplexity")
    rows = "\n".join(
        f"| {task} | " + " | ".join(f"{scores[f'test/{name}/{task}']:.3f}" for name in names) + " |"
        for task in TASKS
    )
    card = CARD.format(
        parameters=sum(one.numel() for one in module.model.parameters()) / 1e6,
        steps=int(torch.load(checkpoint, weights_only=True, map_location="cpu")["global_step"]),
        samples=samples,
        rows=rows,
        versions=f"torch {torch.__version__.split('+')[0]}",
    )
    (directory / "README.md").write_text(card, "utf-8")
    print(json.dumps(scores, indent=1))
    return directory


def main(arguments: list[str]) -> None:
    """Run `ship` with the three paths.

    Raises:
        UserError: Not exactly three arguments.
    """
    if len(arguments) != 3:
        raise UserError("usage: python -m tools.ship BASE CHECKPOINT DIR")
    base, checkpoint, directory = map(Path, arguments)
    print(f"wrote {ship(base, checkpoint, directory)}")


if __name__ == "__main__":
    main(sys.argv[1:])
