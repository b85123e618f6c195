"""The repeated blocks of a model, compiled one by one."""

import torch
from transformers import PreTrainedModel

from lightning_vlm.models.parts import find_parts


def compile_blocks(model: PreTrainedModel, backend: str = "inductor") -> int:
    """Compile each block of the tower and of the language model with `torch.compile`.

    Blocks have the same structure, so that one compilation serves all of a kind. The code between them
    (pictures of many sizes, loss in chunks) isn't compiled. Lengths may change from batch to batch. Names of
    parameters, hooks and gradient checkpointing stay as they are.

    Args:
        model: Loaded and adapted.
        backend: Of `torch.compile`.

    Returns:
        How many blocks there are.
    """
    parts = find_parts(model)
    paths = [*parts["vision.layers"], *parts["language.layers"]]
    blocks = [block for path in paths for block in model.get_submodule(path).children()]
    # A block is compiled again for each dtype, mode and set of trained weights; the default of 8 is too few.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
    return len(blocks)
