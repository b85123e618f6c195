"""Fine-tune vision-language models with PyTorch Lightning, right to the token.

`VLMModule`, `VLMDataModule` and `AnswerWriter` are imported when first asked for, so that
`lightning-vlm --help` stays fast.
"""

from typing import TYPE_CHECKING, Any

import lightning_vlm_callbacks  # noqa: F401  # before Lightning, as it makes torchvision importable for it

from lightning_vlm import quiet

if TYPE_CHECKING:
    from lightning_vlm.callbacks.answer_writer import AnswerWriter
    from lightning_vlm.data.datamodule import VLMDataModule
    from lightning_vlm.module import VLMModule

__all__ = ["AnswerWriter", "VLMDataModule", "VLMModule"]
__version__ = "0.1.0"

quiet.install()


def __getattr__(name: str) -> Any:
    if name == "VLMModule":
        from lightning_vlm.module import VLMModule

        return VLMModule
    if name == "VLMDataModule":
        from lightning_vlm.data.datamodule import VLMDataModule

        return VLMDataModule
    if name == "AnswerWriter":
        from lightning_vlm.callbacks.answer_writer import AnswerWriter

        return AnswerWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
