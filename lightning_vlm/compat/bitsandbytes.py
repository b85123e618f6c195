"""Make bitsandbytes read 4-bit weights right on a CPU.

They are scaled in blocks of 64 values, row after row, and a block may reach into the next row. The CPU kernel
of bitsandbytes (0.50.2 here) takes each row to begin with a block of its own. So wherever rows are not whole
blocks, such as in layers with 160 or 4,304 inputs, it multiplies by the scales of other blocks: the weights
are wrong by about four times what 4 bits cost, forward and backward, without a warning. GPUs aren't affected.
"""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

_libraries: list = []  # torch drops a kernel when its Library object is collected


def install() -> None:
    """Give the kernel the shape of the blocks instead. Does nothing where weights are read right."""
    if _is_broken():
        library = torch.library.Library("bitsandbytes", "IMPL")
        kernel = torch.library.get_kernel("bitsandbytes::dequantize_4bit", "CPU")

        def dequantize(
            keys: torch.DispatchKeySet,
            packed: Tensor,
            scales: Tensor,
            block: int,
            kind: str,
            shape: Sequence[int],
            dtype: torch.dtype,
        ) -> Tensor:
            values = math.prod(shape)
            rows = (values // block, block) if values % block == 0 else (1, values)
            return kernel.call_boxed(keys, packed, scales, block, kind, rows, dtype).view(shape)

        with warnings.catch_warnings(action="ignore"):  # the warning that there is another kernel
            library.impl("dequantize_4bit", dequantize, "CPU", with_keyset=True, allow_override=True)
        _libraries.append(library)


def _is_broken() -> bool:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    blocks = torch.arange(1.0, 4.0).repeat_interleave(64).view(2, 96)
    return not torch.equal(dequantize_4bit(*quantize_4bit(blocks, blocksize=64, quant_type="nf4")), blocks)
