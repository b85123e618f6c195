"""Which model is fine-tuned, how it is loaded, and what of it trains."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedModel, ProcessorMixin

from lightning_vlm.errors import UserError
from lightning_vlm.models.blocks import compile_blocks, refuse_without_compiler
from lightning_vlm.models.family_hooks import FamilyHooks, find_family
from lightning_vlm.models.kernels import refuse_without_gpu, use_liger
from lightning_vlm.models.loading.load import (
    Dtype,
    load_model,
    load_processor,
    model_without_weights,
)
from lightning_vlm.models.loading.loaded import LoadedModel
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.models.parts import find_parts
from lightning_vlm.models.plan.adapt import adapt
from lightning_vlm.models.plan.new_tokens import (
    add_rows,
    add_to_tokenizer,
    new_token_ids,
    refuse_new_tokens,
    train_new_rows,
)
from lightning_vlm.models.plan.plan import read_plan, refuse_on_quantised
from lightning_vlm.models.precision import keep_weights
from lightning_vlm.nearest import did_you_mean


@dataclass(frozen=True)
class ModelSource:
    """The options of a `VLMModule` that its model and processor are made from.

    Args:
        name_or_path: As in `load_model` and `load_processor`, as are all options but these.
        plan: What trains, and how, as for `adapt`.
        compile: Whether the blocks are compiled.
        kernels: Whose kernels compute norms, activations and rotary embeddings; None for PyTorch's.
        new_tokens: Words that become tokens.
        family: The name of a subclass of `FamilyHooks`.

    Raises:
        UserError: A plan that no model could have, or none whose weights are quantised; or both `compile` and
            `kernels`.
    """

    name_or_path: str
    plan: Mapping[str, Any]
    dtype: Dtype
    attn_implementation: str | None
    gradient_checkpointing: bool | Literal["auto"]
    compile: bool
    kernels: Literal["liger"] | None
    quantization: Quantization | None
    chat_template: str | None
    template_options: dict[str, Any]
    revision: str | None
    trust_remote_code: bool
    new_tokens: list[str]
    family: str | None = None

    def __post_init__(self) -> None:
        entries = read_plan(self.plan)
        if isinstance(self.dtype, str) and self.dtype not in get_args(Dtype):
            raise UserError(
                f"dtype: found {self.dtype}; expected {', '.join(get_args(Dtype))}, or trainer.precision for "
                f"mixed precision{did_you_mean(self.dtype, get_args(Dtype))}"
            )
        if self.quantization:
            refuse_on_quantised(entries, self.quantization.method, self.quantization.parts)
        if self.kernels not in (None, "liger"):
            raise UserError(f"model.kernels: found {self.kernels!r}; expected liger, or nothing")
        if self.kernels and self.compile:
            raise UserError(
                "model.kernels: found model.compile too; both fuse the same operations, and a compiled block "
                "can't see into a kernel of Liger's: choose one"
            )

    @property
    def hooks(self) -> FamilyHooks | None:
        """What generic code can't see in the model's class."""
        return find_family(self.family) if self.family else None

    def processor(self) -> ProcessorMixin:
        """Load the processor, whose tokenizer gets the new tokens."""
        processor = load_processor(
            self.name_or_path,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            chat_template=self.chat_template,
            family=self.hooks,
            template_options=self.template_options,
        )
        add_to_tokenizer(processor, self.new_tokens)
        return processor

    def model(
        self, processor: ProcessorMixin | None, autocast: torch.dtype | None = None, *, first: bool = True
    ) -> LoadedModel:
        """Load the model and adapt it.

        Args:
            processor: As from `processor`; only new tokens need it.
            autocast: What matrices are multiplied in under mixed precision. With `dtype` auto, what trains is
                then kept in float32, and what is frozen in this.
            first: As in `load_model`.
        """
        loaded = load_model(
            self.name_or_path,
            dtype=self.dtype,
            attn_implementation=self.attn_implementation,
            gradient_checkpointing=self.gradient_checkpointing is True,  # auto is settled before a fit
            quantization=self.quantization,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            family=self.hooks,
            first=first,
        )
        if processor is not None:
            add_rows(loaded.model, new_token_ids(processor, self.new_tokens))
        with nullcontext() if first else torch.device("meta"):
            adapt(loaded.model, self.plan, loaded.parts)
        train_new_rows(loaded.model)
        if autocast is not None and self.dtype == "auto":
            keep_weights(loaded.model, autocast)
        if self.kernels:
            replaced = use_liger(loaded.model)
            rank_zero_info(f"model.kernels: Liger computes {replaced}")
        if self.compile:
            compile_blocks(loaded.model)
        return loaded

    def refuse_device(self, device: torch.device) -> None:
        """Refuse to train on a device that can't run what the options ask for.

        Raises:
            UserError: No compiler for `compile`, or no GPU for `kernels`.
        """
        if self.compile:
            refuse_without_compiler(device)
        if self.kernels:
            refuse_without_gpu(device)

    def skeleton(self) -> PreTrainedModel:
        """The adapted model on the meta device, without weights and without rows for new tokens."""
        model = model_without_weights(
            self.name_or_path,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            family=self.hooks,
        )
        if self.new_tokens:
            refuse_new_tokens(model)
        with torch.device("meta"):
            adapt(model, self.plan, find_parts(model))
        return model

    def hyperparameters(self) -> dict[str, Any]:
        """What a checkpoint keeps, from which the same model is made again.

        That is only what can be saved without pickling code, and nothing that a person may change on resume.
        Nor is it `trust_remote_code`, or `family`, which names code: a stranger's checkpoint would trust the
        stranger.
        """
        return {
            "name_or_path": self.name_or_path,
            "adapt": self.plan,
            "chat_template": self.chat_template,
            "template_options": self.template_options,
            "revision": self.revision,
            "dtype": self.dtype,
            "new_tokens": self.new_tokens,
            "quantization": asdict(self.quantization) if self.quantization else None,
        }
