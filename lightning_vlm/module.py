"""The LightningModule: a Hugging Face model's forward, and the loss over one whole optimizer step."""

from functools import cached_property, partial
from typing import Any, Literal

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from lightning_vlm.data.batch.collate import Batch, Targets
from lightning_vlm.losses import batch_loss
from lightning_vlm.losses.box_loss import BoxLoss
from lightning_vlm.losses.language import LossSums
from lightning_vlm.losses.tasks import FixedWeights, Weighting, check_weighting, task_weights_for
from lightning_vlm.losses.weights import KindWeights
from lightning_vlm.metrics.answers import check_generation, generate_answers
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.models.loading.loaded import LoadedModel
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.models.mask_head import MaskHead, MaskOptions
from lightning_vlm.models.parts import find_parts
from lightning_vlm.models.plan.plan import expand
from lightning_vlm.models.sharding import whole_parameters
from lightning_vlm.models.source import ModelSource
from lightning_vlm.optim import Cosine, Schedule, check_optimization
from lightning_vlm.training.checkpointing import LoadedWithoutCode, fill_checkpoint, read_checkpoint
from lightning_vlm.training.early_checks import check_selectors
from lightning_vlm.training.module_callbacks import ModuleCallbacks, as_keys
from lightning_vlm.training.optimizer_steps import OptimizerSteps
from lightning_vlm.training.refusals import refuse_unsuited
from lightning_vlm.training.shared_model import load, shard_over_processes
from lightning_vlm.training.stages.run import callbacks_of_stages
from lightning_vlm.training.throughput import VLMBatchCounter
from lightning_vlm.training.trained_weights import TrainedWeights
from lightning_vlm.training.weight_averaging import average_what_trains


class VLMModule(LoadedWithoutCode):
    """Fine-tunes a vision-language model of transformers, by Σ wℓ / Σ w over an optimizer step (`step.py`).

    Args:
        name_or_path: A model on the Hugging Face Hub, a folder, or `drawn-vlm`, a small one in this package.
        adapt: What trains, and how: selector -> `frozen`, `full`, `{lora: {r: 16}}`, `ia3`,
            `{adapter: {reduction: 16}}` or `cross_modal_adapter`; see `models/plan`. The rest is frozen. Or a
            ready plan: `lora` (also None), `qlora`, `full`, `projector-only`, `mixed-16gb`.
        optimizer: Its `lr` and `weight_decay` are of all groups, but norms, biases and LoRA have no decay.
            None is AdamW with lr 2e-4. Adam and AdamW are fused on a GPU.
        learning_rates: Selector -> its own learning rate.
        schedule: The factor on learning rates over the run. None is a cosine with 3% warm-up.
        clip: The most that the gradient's norm may be; or selector -> its own limit, "rest" for all else.
        token_weights: The weight of each kind of token.
        task_weights: The weight in training of each task that shouldn't weigh 1, such as `{ocr: 2.0}`; or how
            weights are found: `inverse_initial_loss` or `uncertainty`. For GradNorm add the callback instead.
        box_loss: What is added on numbers of boxes: `soft`, `wasserstein` or `iou`; see `BoxLoss`.
        mask_head: Makes masks where `<seg>` stands; keys as of `MaskOptions`, or true.
        generation: Arguments of `generate`, such as `{max_new_tokens: 32}`. None generates only to predict.
            With `num_return_sequences` answers are ranked by `length_score`, with alpha `length_penalty`.
        chat_template: The name of a ready template or a Jinja text, in place of the processor's own.
        template_options: Variables of the template, such as `{enable_thinking: false}`.
        dtype: Of the weights; `auto` is as saved, but float32 for what trains under mixed precision.
        attn_implementation: `auto` (or None) is transformers' choice, or `flash_varlen` where that is exact.
        gradient_checkpointing: Trade time for memory; `auto` does where a measured step says that it must.
        compile: Compile each block with `torch.compile`: slow first steps, faster ones after them.
        kernels: `liger` computes norms, activations and rotary embeddings by its kernels, on a GPU.
        quantization: `nf4` or `int8`: the language model's linear layers are loaded in 4 or 8 bits, and only
            adapters can train on them; or keys as of `Quantization`. None is nf4 with `adapt: qlora`.
        revision: Of the model on the Hub.
        trust_remote_code: Run Python code that comes with the model.
        no_gradient_needed: Selectors of trained parameters that may stay without gradient at the first step.
        router_aux_loss: Weight of the load-balancing loss; `auto`: the model's own where routers train.
        new_tokens: Words that become tokens, as `<loc_0..999>`; their rows start at the mean, and train.
        family: `module.Class` of a subclass of `FamilyHooks`, for a model class of your own.
        scores: Which scores answers have: `[anls, cer]`, or task -> scores; see `docs/scores.md`.
    """

    loaded: LoadedModel
    """The model, and what was found out as it was loaded; set by `configure_model`."""
    trained: TrainedWeights
    """What checkpoints keep; set by `configure_model`."""
    seeds_batches = True
    """Each training batch gets a seed by its place in the run; EarlyStopCheckpoint asks for this."""

    def __init__(
        self,
        name_or_path: str,
        adapt: dict[str, Any] | str | None = None,
        optimizer: OptimizerCallable | None = None,
        learning_rates: dict[str, float] | None = None,
        schedule: Schedule | None = None,
        clip: float | dict[str, float] | None = 1.0,
        token_weights: KindWeights | None = None,
        task_weights: dict[str, float] | Weighting | None = None,
        box_loss: BoxLoss | str | None = None,
        mask_head: MaskOptions | bool | None = None,
        generation: dict[str, Any] | None = None,
        chat_template: str | None = None,
        template_options: dict[str, Any] | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        attn_implementation: str | None = "auto",
        gradient_checkpointing: bool | Literal["auto"] = False,
        compile: bool = False,
        kernels: Literal["liger"] | None = None,
        quantization: Quantization | str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        no_gradient_needed: list[str] | None = None,
        router_aux_loss: float | bool | Literal["auto"] = "auto",
        new_tokens: list[str] | None = None,
        family: str | None = None,
        scores: dict[str, list[str]] | list[str] | None = None,
    ) -> None:
        super().__init__()
        self.name_or_path = name_or_path
        self.adapt = expand(adapt)
        self.optimizer = optimizer or partial(torch.optim.AdamW, lr=2e-4)
        self.learning_rates = learning_rates or {}
        self.schedule = schedule or Cosine(warmup=0.03)
        self.clip = clip
        check_optimization(self.optimizer, self.schedule, clip)
        self.token_weights = KindWeights.read(token_weights)
        check_weighting(task_weights)
        self.task_weights = task_weights
        self.box_loss = BoxLoss.read(box_loss)
        masks = MaskOptions.read(mask_head)
        self.generation = check_generation(generation)
        self.no_gradient_needed = no_gradient_needed or []
        self.source = ModelSource(
            name_or_path=name_or_path,
            plan=self.adapt,
            dtype=dtype,
            attn_implementation=attn_implementation,
            gradient_checkpointing=gradient_checkpointing,
            compile=compile,
            kernels=kernels,
            quantization=Quantization.read(quantization or ("nf4" if adapt == "qlora" else None)),
            chat_template=chat_template,
            template_options=template_options or {},
            revision=revision,
            trust_remote_code=trust_remote_code,
            new_tokens=new_tokens or [],
            family=family,
        )
        """How the model and the processor are made."""
        kept = as_keys(token_weights=self.token_weights, box_loss=self.box_loss, mask_head=masks)
        self.save_hyperparameters(self.source.hyperparameters() | kept)
        self.model: PreTrainedModel = None  # type: ignore[assignment]
        """The adapted model; None until `configure_model`."""
        self.mask_head: MaskHead | None = None  # until `configure_model`, and where no masks are made
        self.parts: dict[str, list[str]] = {}
        """The parts of the model, for selectors."""
        self.tasks: FixedWeights | None = None
        """The tasks and their weights; None until a fit is set up."""
        self.callbacks = ModuleCallbacks.of(router_aux_loss, self.box_loss, masks, scores)
        """Parts of this module that follow a run."""
        self.steps = OptimizerSteps(self.callbacks.run_state.window)
        """What divides the gradients of each step in a fit."""
        self.strict_loading = False  # our own load_state_dict is stricter

    @cached_property
    def processor(self) -> ProcessorMixin:
        """The processor of the model, loaded when first asked for."""
        return self.source.processor()

    @property
    def predictions(self) -> list[Prediction]:
        """The answers of the last validation or test on this process."""
        return self.callbacks.evaluation.answers

    def configure_callbacks(self) -> list[Callback]:
        """Those of this module; before loggers begin, for no other hook does, selectors are checked."""
        of_stages = callbacks_of_stages(self, self.trainer)
        if type(self).configure_model is VLMModule.configure_model:
            check_selectors(self, self.trainer, of_stages)
        return [*of_stages, *self.callbacks.missing_in(self.trainer)]

    def configure_model(self) -> None:
        """Load the model and adapt it, once."""
        if self.model is not None:
            shard_over_processes(self)  # it may have been loaded before there was a strategy
            return
        self.loaded = load(self)
        self.model = self.loaded.model
        self.parts = find_parts(self.model, prefix="model.")
        self.mask_head = self.callbacks.masks.make(self.model)
        self.trained = TrainedWeights(self)
        shard_over_processes(self)

    def unload_model(self) -> None:
        """Free the memory of the model."""
        self.model = None  # type: ignore[assignment]
        del self.loaded

    def setup(self, stage: str) -> None:
        """Refuse what would be silently wrong, and learn which tasks there are."""
        self.callbacks.check_attached(self.trainer)
        refuse_unsuited(self.trainer, fits=stage == "fit")
        if stage == "fit":
            self.callbacks.run_state.setup_fit()
            self.tasks = task_weights_for(self.trainer, self.task_weights)
            self.steps = OptimizerSteps(self.callbacks.run_state.window, self.tasks)
            average_what_trains(self.trainer, self)

    def on_fit_start(self) -> None:
        """Find what is clipped together; from `on_train_start` on, a callback may freeze some of it."""
        self.steps.find_clip_groups(self)

    def on_train_start(self) -> None:
        """Begin to count."""
        self.steps.start(self.trainer)
        self.callbacks.run_state.start(self, self.steps.total)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Count what comes."""
        self.steps.start_batch(batch.tokens, len(self.targets(batch).positions))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of weighted losses of a micro-batch, scaled."""
        self.callbacks.modes.keep()
        with self.callbacks.experts.watch():
            more = self.callbacks.boxes.of, self.callbacks.masks.of
            sums = batch_loss.task_sums(self.model, batch, self.targets(batch), self.tasks, *more)
        loss = self.steps.add(self.callbacks.experts.add_loss(sums))
        if not batch_loss.has_pictures(batch):
            # The vision side has no part in the graph then; DDP would wait for its gradients.
            return loss + batch_loss.zero_loss(whole_parameters(self))
        self.callbacks.coverage.before_backward(lambda: self.loss_sums(batch).loss_sum)
        return self.callbacks.coverage.reach_all(self, loss)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Step with gradients of the true loss: they are divided right after the window's last backward."""
        step = partial(super().optimizer_step, epoch, batch_idx, optimizer)
        found = self.steps.run(self, batch_idx, optimizer_closure, step)
        self.callbacks.skip_check.end_step(self.trainer, batch_idx, found.empty, self.targets)

    def on_train_end(self) -> None:
        """Log what waits to be logged."""
        self.steps.end(self)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps that were skipped don't count for the schedule."""
        if not self.steps.last_was_empty:
            super().lr_scheduler_step(scheduler, metric)

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip by `clip`, and log the norms from before."""
        self.steps.clip(self)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Groups by selector; the schedule over the whole run."""
        self.callbacks.memory.settle(self)
        configured = self.steps.configure(self)
        self.callbacks.run_state.configured(configured["optimizer"])
        return configured

    def batch_counter(self) -> VLMBatchCounter:
        """How a ThroughputMonitor counts batches."""
        return VLMBatchCounter(self.model, self.trainer.precision_plugin.forward_context)

    def targets(self, batch: Batch) -> Targets:
        """What is learned from a batch, found once: `VLMDataModule` asks while the batch is on the CPU."""
        return batch.targets or self.callbacks.boxes.find_targets(self, batch)

    def hidden_states(self, batch: Batch) -> Tensor:
        """What the head gets: a Tensor of shape [batch, length, hidden]."""
        return batch_loss.last_hidden_states(self.model, batch)

    def loss_sums(self, batch: Batch) -> LossSums:
        """Weighted losses of a batch, summed, and the loss of each of its targets; see `target_losses`."""
        return batch_loss.target_losses(self.model, self.hidden_states(batch), self.targets(batch))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add to the scores of each task; those of several loaders are one."""
        answers = [] if self.generation is None else self.predict_step(batch, batch_idx)
        self.callbacks.evaluation.add(self, batch, answers)

    test_step = validation_step

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        """What the model answers to the prompts of a batch; see `generate_answers`."""
        return generate_answers(self.model, self.processor, batch, self.generation, self.mask_head)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what ever trains, and what a resumed run needs."""
        fill_checkpoint(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another base model."""
        self.configure_model()
        read_checkpoint(self, checkpoint)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load trained weights. Frozen ones may be missing, nothing else, and nothing may be unknown.

        Raises:
            UserError: Names or shapes that don't fit, all of them listed.
        """
        self.configure_model()
        self.trained.check(state_dict)
        return super().load_state_dict(state_dict, strict=False, assign=assign)
