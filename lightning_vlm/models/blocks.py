"""The repeated blocks of a model, compiled one by one."""

import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._triton import has_triton
from transformers import PreTrainedModel

from lightning_vlm.compat import output_capturing
from lightning_vlm.errors import UserError
from lightning_vlm.models.parts import find_parts


def compile_blocks(model: PreTrainedModel, backend: str | Callable = "inductor") -> int:
    """Compile each block of the tower and of the language model with `torch.compile`.

    Blocks have the same structure, so that one compilation serves all of a kind. The code between them
    (pictures of many sizes, loss in chunks) isn't compiled. Lengths may change from batch to batch. Names of
    parameters, hooks and gradient checkpointing stay as they are. Generation, whose cache is another at each
    token and in each block, runs as it did.

    Args:
        model: Loaded and adapted.
        backend: Of `torch.compile`.

    Returns:
        How many blocks there are.
    """
    output_capturing.install()
    settings = torch._dynamo.config
    # A block is compiled again for each dtype, mode and set of trained weights; the default of 8 is too few.
    settings.recompile_limit = max(settings.recompile_limit, 64)
    # A hook that is added inside a block after its first step would never be called otherwise.
    settings.skip_nnmodule_hook_guards = False
    blocks = blocks_of(model)
    for block in blocks:
        # Where `nn.Module.compile` keeps what it makes; copies and pickles of a module are without it.
        block._compiled_call_impl = CompiledBlock(block, backend)
    return len(blocks)


def blocks_of(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated blocks of a model's tower and language model."""
    parts = find_parts(model)
    paths = [*parts["vision.layers"], *parts["language.layers"]]
    return [block for path in paths for block in model.get_submodule(path).children()]


class CompiledBlock:
    """Calls a block with its forward compiled, and with its own hooks outside of that.

    `nn.Module.compile` would trace the hooks too. Those of transformers that collect hidden states lengthen a
    list with each block, so that each would be compiled for itself.
    """

    def __init__(self, block: nn.Module, backend: str | Callable) -> None:
        self._block = block
        self._forward = torch.compile(block.forward, dynamic=True, backend=backend)

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of the block runs as it is written: what was compiled reads this one's weights."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("past_key_values") is not None:  # one position of the cache for each block
            return self._block._call_impl(*args, **kwargs)
        self._block.__dict__["forward"] = self._forward
        try:
            return self._block._call_impl(*args, **kwargs)
        finally:
            del self._block.__dict__["forward"]


def refuse_without_compiler(device: torch.device) -> None:
    """Refuse to compile where `torch.compile` would fail at the first step.

    Args:
        device: That trains.

    Raises:
        UserError: A GPU without Triton, or a CPU without a C++ compiler.
    """
    if device.type == "cpu":
        compilers = [one for one in torch._inductor.config.cpp.cxx if one]
        if not any(shutil.which(one) for one in compilers):
            raise UserError(
                f"model.compile: found no C++ compiler ({', '.join(compilers)}), which it needs on a CPU; "
                "install one, or leave model.compile out"
            )
    elif not has_triton():
        raise UserError(
            f"model.compile: found no Triton that works on {device.type}, which torch.compile needs there; "
            "pip install triton, or leave model.compile out"
        )
