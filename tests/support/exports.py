"""Plans that are exported, and ways to harm an exported folder."""

import torch
from safetensors.torch import load_file, save_file

LORA = {"projector": "full", "language": {"lora": {"r": 2}}}


ADAPTER = {"projector": "full", "language": {"adapter": {"reduction": 4}}}


def lora(**settings):
    return {"language": {"lora": {"r": 2, **settings}}}


def change_one_bit(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)
    (name,) = (name for name in weights if name.endswith("patch_embedding.weight"))
    weights[name].view(torch.int32).flatten()[3] ^= 1
    save_file(weights, file, metadata={"format": "pt"})
