"""The LightningModule: a Hugging Face model's forward, and the loss over one whole optimizer step."""

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import RANKS, fit_ranks
from lightning_vlm_callbacks.run_length import restore_accumulation
from lightning_vlm_callbacks.selectors import select_parameters
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, ProcessorMixin

from lightning_vlm.data.batch.collate import Batch, Targets, split_by_image_count
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import UserError
from lightning_vlm.losses.language import LossSums, head_cross_entropy
from lightning_vlm.losses.tasks import (
    OTHER,
    FixedWeights,
    TaskLog,
    Uncertainty,
    Weighting,
    check_weighting,
    make_task_weights,
    task_index,
    task_weights_for,
)
from lightning_vlm.losses.weights import LEAST_WEIGHT, KindWeights, token_weights
from lightning_vlm.metrics.answers import check_generation, generate_answers
from lightning_vlm.metrics.score_table import print_scores, take_over_printing
from lightning_vlm.metrics.scores import Prediction, Scores
from lightning_vlm.models.attention import VarlenAttentionCheck
from lightning_vlm.models.blocks import compile_blocks
from lightning_vlm.models.loading.checkpoint import base_of, check_base, check_keys
from lightning_vlm.models.loading.initial import check_missing_weights_train
from lightning_vlm.models.loading.load import LoadedModel, load_model, load_processor
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.models.logits import logit_options
from lightning_vlm.models.modes import FitModes
from lightning_vlm.models.parts import find_parts
from lightning_vlm.models.plan.adapt import adapt, trained_buffers
from lightning_vlm.models.plan.new_tokens import add_rows, add_to_tokenizer, train_new_rows
from lightning_vlm.models.plan.plan import expand, read_plan, refuse_on_quantised
from lightning_vlm.optim import (
    Cosine,
    Schedule,
    clip_gradients,
    clip_groups,
    lr_lambda,
    parameter_groups,
    settle_rates,
)
from lightning_vlm.optim.closures import check_closure, no_call, several_calls
from lightning_vlm.optim.groups import groups_without_decay
from lightning_vlm.outputs.start_report import report_start
from lightning_vlm.outputs.wandb_run import KEY, note_other_run, run_id
from lightning_vlm.step import (
    StepClosure,
    StepLoss,
    WholeStep,
    log_no_more,
    refuse_rate_finder,
    refuse_unsuited,
    total_steps,
    zero_loss,
)
from lightning_vlm.training.early_checks import check_selectors
from lightning_vlm.training.gradient_coverage import GradientCoverage
from lightning_vlm.training.resume import WINDOW, AccumulationWindow
from lightning_vlm.training.resume_changes import RUN, RunChanges
from lightning_vlm.training.skip_checks import EvaluationSkipCheck, TrainingSkipCheck
from lightning_vlm.training.weight_averaging import (
    FrozenWeightsWarning,
    average_what_trains,
    load_averages,
    save_averages,
)


class VLMModule(LightningModule):
    """Fine-tunes a vision-language model of transformers.

    The loss is Σ wℓ / Σ w over all tokens of an optimizer step: every micro-batch of the accumulation window,
    every rank. So batch 8 equals 4×2 accumulated equals 2 ranks × 4. (Lightning and transformers average
    the averages of micro-batches.) Micro-batches give sums; the gradients are divided once, before callbacks
    see them in `on_before_optimizer_step` and before they are clipped.

    Args:
        name_or_path: A model on the Hugging Face Hub, a folder, or `drawn-vlm`, the small model inside this
            package.
        adapt: What trains, and how: selector -> `frozen`, `full`, `{lora: {r: 16}}`, `ia3`,
            `{adapter: {reduction: 16}}` or `cross_modal_adapter`; `models/plan.py` has their settings. What
            isn't named is frozen. Or the name of a ready plan: `lora` (also None: the projector in full, LoRA
            of rank 16 on the language model), `qlora`, `full`, `projector-only`, `mixed-16gb`.
        optimizer: The optimizer; its `lr` and `weight_decay` are the defaults of all groups. None is AdamW
            with lr 2e-4. Norms, biases and LoRA get no weight decay.
        learning_rates: Selector -> its own learning rate.
        schedule: The factor on learning rates over the run. None is a cosine with 3% warm-up.
        clip: The most that the gradient's norm may be; or selector -> its own limit, "rest" for all else;
            None for no clipping.
        token_weights: The weight of each kind of token.
        task_weights: The weight of each task that shouldn't weigh 1, such as `{ocr: 2.0}`; or how weights are
            found: `inverse_initial_loss` or `uncertainty` (`losses/tasks.py`). For GradNorm leave it out, and
            add the callback. They multiply a token's loss in training, not in validation.
        generation: Arguments of `generate` for validation, test and prediction, such as
            `{max_new_tokens: 32}`. None doesn't generate, except to predict. With `num_return_sequences` the
            answers to a prompt are ranked by `length_score`, whose alpha is `length_penalty`.
        chat_template: The name of a ready template or a Jinja text, in place of the processor's own.
        dtype: Of the weights; `auto` is as saved.
        attn_implementation: `auto` is what transformers chooses, with one FlashAttention call a layer for all
            pictures of a batch in towers that allow it (on CUDA in 16 bits; checked at the first batch). Or
            one for the whole model, such as `sdpa`, `eager`, `flash_attention_2`. None is `auto`.
        gradient_checkpointing: Trade time for memory.
        compile: Compile each block of the tower and of the language model with `torch.compile`: the first
            steps take longer (half a minute for 3 billion parameters on a GPU), all others less.
        quantization: `nf4` or `int8`: the language model's linear layers are loaded in 4 or 8 bits, and only
            adapters can train on them; or keys as of `Quantization`. None: nothing; nf4 with `adapt: qlora`.
        revision: Of the model on the Hub.
        trust_remote_code: Run Python code that comes with the model.
        no_gradient_needed: Selectors of trained parameters that may stay without gradient at the first step.
            All others stop the run there.
        new_tokens: Words that become tokens, such as `<loc_1>`. Their rows of embeddings and head begin at
            the mean of the others, and train whatever the plan says.
    """

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
        generation: dict[str, Any] | None = None,
        chat_template: str | None = None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        attn_implementation: str | None = "auto",
        gradient_checkpointing: bool = False,
        compile: bool = False,
        quantization: Quantization | str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        no_gradient_needed: list[str] | None = None,
        new_tokens: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.name_or_path, self.adapt = name_or_path, expand(adapt)
        lines = read_plan(self.adapt)  # a plan that no model could have is refused before one is loaded
        self.optimizer = optimizer or _adamw
        self.learning_rates = learning_rates or {}
        self.schedule = schedule or Cosine(warmup=0.03)
        self.clip = clip
        self.token_weights = KindWeights.read(token_weights)
        check_weighting(task_weights)
        self.task_weights = task_weights
        check_generation(generation)
        self.generation = generation
        self.no_gradient_needed = no_gradient_needed or []
        self.compile_blocks = compile
        self.new_tokens, self._new_rows = new_tokens or [], range(0)
        self.quantization = Quantization.read(quantization or ("nf4" if adapt == "qlora" else None))
        if self.quantization:
            refuse_on_quantised(lines, self.quantization.method, self.quantization.parts)
        self._processor_options: dict[str, Any] = {
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "chat_template": chat_template,
        }
        self._model_options: dict[str, Any] = {
            "dtype": dtype,
            "attn_implementation": attn_implementation,
            "gradient_checkpointing": gradient_checkpointing,
            "quantization": self.quantization,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
        self._processor: ProcessorMixin | None = None
        self.model: PreTrainedModel | None = None
        """The adapted model; None until `configure_model`."""
        self.loaded: LoadedModel | None = None
        """The same model, and what was found out as it was loaded; None until `configure_model`."""
        self.tasks: FixedWeights | None = None
        """The tasks of the training data and their weights; None until a fit is set up."""
        self.parts: dict[str, list[str]] = {}
        """The parts of the model, for selectors."""
        self.tokens_seen = 0
        """Tokens of this process that went through training steps, padding not counted."""
        self.predictions: list[Prediction] = []
        """The answers of the last validation or test on this process."""
        self.strict_loading = False  # our own load_state_dict is stricter: see there
        self._varlen_attention = VarlenAttentionCheck()
        self._scores_to_print: dict[str, float] | None = None
        self._ever_trains: set[str] = set()
        self._frozen_weights = FrozenWeightsWarning()
        self._buffer_names: list[str] = []  # of the model, such as statistics of norms that train
        self._seed: int | None = None
        self._scores = Scores()
        self._step_loss = StepLoss()
        self._window = AccumulationWindow()
        self._changes = RunChanges()
        self._step_was_empty = False
        self._total_steps = 0
        self._training_skip_check = TrainingSkipCheck()
        self._evaluation_skip_check = EvaluationSkipCheck()
        self._coverage = GradientCoverage()
        self._clip_groups: tuple[dict[str, list[torch.nn.Parameter]], dict[str, float]] = ({}, {})
        self._modes = FitModes()
        self._rows: torch.Tensor | None = None  # the task of each sample of the batch in training
        # Only what can be saved without pickling code, and nothing that a person may change on resume. Nor
        # trust_remote_code: a stranger's checkpoint would trust the stranger.
        self.save_hyperparameters(
            {
                "name_or_path": name_or_path,
                "adapt": self.adapt,
                "token_weights": asdict(self.token_weights),
                "chat_template": chat_template,
                "revision": revision,
                "dtype": dtype,
                "new_tokens": self.new_tokens,
                "quantization": asdict(self.quantization) if self.quantization else None,
            }
        )

    @property
    def processor(self) -> ProcessorMixin:
        """The processor of the model, loaded when first asked for."""
        if self._processor is None:
            processor = load_processor(self.name_or_path, **self._processor_options)
            self._new_rows = add_to_tokenizer(processor, self.new_tokens)
            self._processor = processor
        return self._processor

    def configure_callbacks(self) -> list[Callback]:
        """No callback: this is Lightning's only hook before loggers begin, and a refused run needs none."""
        if type(self).configure_model is VLMModule.configure_model:
            check_selectors(self, self.trainer, fits=self.trainer.state.fn == TrainerFn.FITTING)
        return []

    def configure_model(self) -> None:
        """Load the model and adapt it, once."""
        if self.model is not None:
            return
        self.loaded = load_model(self.name_or_path, **self._model_options)
        model = self.loaded.model
        if self.new_tokens:
            _ = self.processor  # which counts them
            add_rows(model, self._new_rows)
        adapt(model, self.adapt, self.loaded.parts)
        train_new_rows(model)
        if self.compile_blocks:
            compile_blocks(model)
        self.model = model
        self.parts = find_parts(model, prefix="model.")
        self._ever_trains = {name for name, one in model.named_parameters("model") if one.requires_grad}
        self._buffer_names = list(trained_buffers(model))
        if self.loaded.missing:
            excused = select_parameters(self, self.no_gradient_needed) if self.no_gradient_needed else {}
            check_missing_weights_train(self.loaded.missing, set(map(id, excused.values())))

    def setup(self, stage: str) -> None:
        """Refuse what would be silently wrong, and learn which tasks there are."""
        refuse_unsuited(self.trainer.strategy, self.trainer.gradient_clip_val if stage == "fit" else None)
        if stage == "fit":
            refuse_rate_finder(self.trainer)
            if self._seed is None:  # before a tuner draws
                self._seed = torch.initial_seed()
            self.tasks = task_weights_for(self.trainer, self.task_weights)
            self._task_log = TaskLog(self.tasks)
            average_what_trains(self.trainer, self, self._ever_trains)

    # Training

    def on_fit_start(self) -> None:
        """Look at all that ever trains; from `on_train_start` on, a callback may freeze some of it."""
        assert self.model is not None
        assert self.loaded is not None
        self._modes.start_fit(self.model)
        self._coverage.start_fit(self, self.model, self.no_gradient_needed)
        self._changes.check_optimizer(self.trainer.optimizers)
        if self.clip is not None:
            own = self.tasks.parameters() if self.tasks else ()
            self._clip_groups = clip_groups(self, self.clip, own)
        report_start(self.trainer, self.loaded, self.adapt)

    def on_train_start(self) -> None:
        """Begin to count, and settle how long the schedule is."""
        assert self.tasks is not None
        # A tuner such as BatchSizeFinder changes the number of steps after the optimizer was configured, and
        # a resumed run may be longer than it was.
        self._total_steps = total_steps(self.trainer)
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, LambdaLR):
                settle_rates(config.scheduler)
        self._modes.keep()
        self._step_loss.begin(self.device, len(self.tasks.names))
        self.tokens_seen = 0
        self._training_skip_check.start_fit()
        restore_accumulation(self.trainer)
        self._changes.start(self.trainer, self._arguments(), self._total_steps)
        self._window.start_run(self.trainer)
        if self._seed is None:
            self._seed = torch.initial_seed()

    def _arguments(self) -> dict[str, Any]:
        """What a resumed run is compared by."""
        return {
            "adapt": self.adapt,
            "optimizer": self._optimizer_name(),
            "schedule": str(self.schedule),
            "clip": self.clip,
            "token_weights": self.hparams["token_weights"],
            "task_weights": self.task_weights,
            "dtype": self._model_options["dtype"],
        }

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Count what comes. Dropout is a function of seed, place in the run and rank, so that a resumed run
        draws the same."""
        self._window.start_batch(self.trainer, self._trained_buffers())
        torch.manual_seed(self.seed_of(batch_idx))
        targets = len((batch.targets or self.targets(batch)).positions)
        self._step_loss.targets += targets
        self.tokens_seen += batch.tokens
        self._training_skip_check.add(batch, targets, batch_idx)
        if _has_pictures(batch.inputs):
            assert self.model is not None
            self._varlen_attention.check_once(self.model, batch.inputs)

    def seed_of(self, batch_idx: int, use: str = "") -> int:
        """A seed for one use of chance in a training batch: its place in the run and the rank decide."""
        place = f"{self._seed} {self.current_epoch} {batch_idx} {self.global_rank}{use}"
        return random.Random(place).getrandbits(63)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of weighted losses of a micro-batch, scaled."""
        self._modes.keep()
        loss = self._step_loss.add(*self.task_sums(batch))
        if not _has_pictures(batch.inputs):
            # The vision side has no part in the graph then; DDP would wait for its gradients.
            return loss + zero_loss(self.parameters())
        self._coverage.before_backward(lambda: self._loss_once_more(batch, batch_idx))
        return loss

    def _loss_once_more(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss_sums(batch).loss_sum
        torch.manual_seed(self.seed_of(batch_idx))  # dropout draws as if this forward hadn't been
        return loss

    def on_after_backward(self) -> None:
        """Stop the run if something that trains got no gradient."""
        self._coverage.after_backward()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """A resumed run doesn't repeat the validation that follows if it was done before."""
        self._window.end_batch(self.trainer, batch_idx)

    def on_train_end(self) -> None:
        """Say what was left out, and if nothing could be checked."""
        self._modes.end_fit()
        self._task_log.write(self.trainer)
        self._training_skip_check.end_fit(self.trainer)
        self._coverage.end_fit(anything_seen=self.tokens_seen > 0)

    def teardown(self, stage: str) -> None:
        """Print the scores of `validate` and `test`."""
        if self._scores_to_print is not None:
            print_scores(self.trainer, self._scores_to_print)
            self._scores_to_print = None

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step with gradients of the true loss: they are divided right after the window's last backward.

        A step in which no token has weight is left out: the optimizer isn't called, nothing is logged, and
        the schedule waits. `global_step` counts it all the same, since lengths of runs are counted so.
        """
        assert optimizer_closure is not None
        closure = StepClosure(
            run=optimizer_closure,
            divide=self._divide_gradients,
            record=self._record_step,
            repeat=lambda: self._prepare_repeat(batch_idx),
        )
        may_be_empty = self._step_loss.targets == 0
        self._step_was_empty = may_be_empty and closure.run_ahead().empty
        if self._step_was_empty:
            self._leave_out_step()
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, closure)
        if closure.step is None:
            raise UserError(no_call(self._optimizer_name()))
        self._end_step(closure.step, batch_idx)

    def _prepare_repeat(self, batch_idx: int) -> None:
        """Let an optimizer that calls its closure again get the same dropout."""
        window = self.trainer.accumulate_grad_batches
        if window > 1:
            raise UserError(several_calls(self._optimizer_name(), window))
        torch.manual_seed(self.seed_of(batch_idx))

    def _leave_out_step(self) -> None:
        self._task_log.write(self.trainer)
        log_no_more(self.trainer, ("train/loss", "train/grad_norm"))
        for parameter in self.parameters():
            parameter.grad = None

    def _end_step(self, step: WholeStep, batch_idx: int) -> None:
        """Pass on what the step has found, and end its window."""
        assert self.tasks is not None
        if not step.empty:
            self.tasks.end_step(step.sums, step.counts)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, VLMDataModule):
            data.end_step(step.sums, step.counts, batch_idx)
        self._window.end_step(self.trainer, batch_idx)
        self._training_skip_check.end_step(self.trainer, batch_idx, self._step_was_empty, self.targets)

    def _optimizer_name(self) -> str:
        return type(self.trainer.optimizers[0]).__name__

    def _divide_gradients(self) -> WholeStep:
        trainer, tasks = self.trainer, self.tasks
        assert tasks is not None
        step = self._step_loss.divide(
            self.parameters(), tasks.weights, trainer.accumulate_grad_batches, trainer.world_size
        )
        tasks.scale = step.factor
        self._window.stepping = True
        return step

    def _record_step(self, step: WholeStep) -> None:
        self._task_log.add(step.sums, step.counts, self.trainer)
        self.log("train/loss", step.loss, prog_bar=True, on_step=True, on_epoch=False)

    def on_train_epoch_end(self) -> None:
        """Add up over epochs what was left out."""
        self._training_skip_check.end_epoch()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps that were left out don't count for the schedule."""
        if not self._step_was_empty:
            super().lr_scheduler_step(scheduler, metric)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by `clip`, and log the norms from before."""
        if self.clip is None:
            return
        norms = clip_gradients(*self._clip_groups)
        for name, norm in norms.items():
            key = "train/grad_norm" if name == "all" else f"train/grad_norm/{name}"
            self.log(key, norm, on_step=True, on_epoch=False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Groups by selector; the schedule over the whole run."""
        defaults = check_closure(self.optimizer, self.trainer).defaults
        rates = self.learning_rates
        if isinstance(self.tasks, Uncertainty):
            rates = {"tasks": 0.01, **rates}
        groups = parameter_groups(self, defaults["lr"], defaults.get("weight_decay", 0.0), rates)
        if "weight_decay" not in defaults:
            groups = groups_without_decay(groups)
        try:
            optimizer = self.optimizer(groups)
        except ValueError as error:
            names = ", ".join(one["name"] for one in groups)
            raise UserError(f"model.optimizer: {error} (the groups are {names})") from None
        self._total_steps = total_steps(self.trainer)
        scheduler = LambdaLR(optimizer, lambda step: lr_lambda(self.schedule, self._total_steps)(step))
        self._changes.configured(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # The loss

    def loss_sums(self, batch: Batch) -> LossSums:
        """Weighted losses of a batch, summed. Logits exist only where a token has weight, in chunks.

        Returns:
            As `head_cross_entropy`, with one token loss for each of the batch's targets.
        """
        assert self.model is not None
        targets = batch.targets or self.targets(batch)
        hidden = self.hidden_states(batch).flatten(0, 1).index_select(0, targets.positions)
        head, options = self.model.get_output_embeddings(), logit_options(self.model)
        return head_cross_entropy(hidden, head, targets.labels, targets.weights, **options._asdict())

    def task_sums(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of a training batch, and its parts by task; no second pass for them.

        Returns:
            Σ wℓ with the weights of tasks, a scalar with a graph; of each task Σ wℓ before its weight, and
            Σ w, detached, of shape [tasks].

        Raises:
            UserError: A sample's task isn't one of the training data's.
        """
        if self.tasks is None:  # outside of a fit, where no task has a weight
            self.tasks = make_task_weights(None, [OTHER]).to(self.device)
        tasks, targets = self.tasks, batch.targets or self.targets(batch)
        self._rows = torch.tensor([task_index(task, tasks.names) for task in batch.tasks] or [-1])
        length = batch.inputs["input_ids"].shape[1]
        of = self._rows.to(self.device, non_blocking=True)[targets.positions // length]
        weights = targets.weights * tasks.weights[of]
        loss = self.loss_sums(batch._replace(targets=targets._replace(weights=weights)))
        zeros = torch.zeros_like(tasks.weights)
        sums = zeros.index_add(0, of, (loss.token_losses * targets.weights).to(zeros.dtype))
        counts = zeros.index_add(0, of, targets.weights)
        self._rows = None
        tasks.add(sums, counts)
        regularizer = tasks.regularizer(sums, counts)
        return loss.loss_sum if regularizer is None else loss.loss_sum + regularizer, sums, counts

    def hidden_states(self, batch: Batch) -> Tensor:
        """What the head gets: a Tensor of shape [batch, length, hidden]."""
        assert self.model is not None
        base = getattr(self.model, self.model.base_model_prefix)
        rows, hiddens = [], []
        for some, inputs in split_by_image_count(batch.inputs):
            rows.append(some)
            if self.tasks is not None and self._rows is not None:
                self.tasks.rows = self._rows[some]
            hiddens.append(base(**inputs, use_cache=False, return_dict=True).last_hidden_state)
        return hiddens[0] if len(hiddens) == 1 else torch.cat(hiddens)[torch.cat(rows).argsort()]

    def targets(self, batch: Batch) -> Targets:
        """What is learned from a batch. `VLMDataModule` asks before it moves a batch: on a GPU the host would
        have to wait for the answer."""
        if not batch.kinds.numel():  # only prompts
            none = torch.zeros(0, dtype=torch.int64)
            return Targets(none, none, torch.zeros(0))
        of_samples, of_turns = batch.sample_weights, batch.turn_weights
        weights = token_weights(batch.kinds, self.token_weights, of_samples, of_turns)
        weights = torch.nn.functional.pad(weights[:, 1:], (0, 1)).flatten()
        (positions,) = (weights >= LEAST_WEIGHT).nonzero(as_tuple=True)
        return Targets(positions, batch.inputs["input_ids"].flatten()[positions + 1], weights[positions])

    # Validation, test, prediction

    def on_validation_epoch_start(self) -> None:
        """Begin to count."""
        self._scores.reset()
        self._evaluation_skip_check.start()
        self.predictions = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add to the scores of each task."""
        targets = batch.targets or self.targets(batch)
        self._evaluation_skip_check.add(batch, len(targets.positions))
        self._scores.add_losses(batch, targets, self.loss_sums(batch).token_losses)
        if self.generation is not None:
            answers = self.answer(batch)
            self._scores.add_answers(answers)
            self.predictions += answers

    def on_validation_epoch_end(self) -> None:
        """Log the scores over all ranks."""
        stage = "test" if self.trainer.testing else "val"
        scores = self._scores.compute()
        if "loss" not in scores:  # on all ranks alike
            self._evaluation_skip_check.warn_of_no_loss(self.trainer, stage)
        for name, value in scores.items():
            # Every rank has the same value; sync_dist only keeps Lightning from warning.
            sync = self.trainer.world_size > 1
            self.log(f"{stage}/{name}", value, prog_bar=name in ("loss", "exact_match"), sync_dist=sync)
        self._window.end_validation(self.trainer)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def on_validation_end(self) -> None:
        """Keep the scores until the progress bar has gone."""
        self._scores_to_print = take_over_printing(self.trainer)

    on_test_end = on_validation_end

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        """What the model answers to each prompt of the batch."""
        return self.answer(batch)

    def answer(self, batch: Batch) -> list[Prediction]:
        """What the model answers to the prompts of a batch; see `generate_answers`."""
        assert self.model is not None
        return generate_answers(self.model, self.processor, batch, self.generation)

    # Checkpoints

    def _trained_buffers(self) -> dict[str, Tensor]:
        assert self.model is not None
        return {name: self.model.get_buffer(name) for name in self._buffer_names}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what ever trains; the rest is the base model's, whose identity is kept instead."""
        save_averages(self.trainer, checkpoint, self._ever_trains)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: state[name] for name in state if name in self._ever_trains}
        assert self.loaded is not None
        base = base_of(self.name_or_path, self.loaded.fingerprint)
        own = checkpoint["lightning_vlm"] = {**base, "seed": self._seed}
        if (wandb_id := run_id(self.trainer)) is not None:
            own[KEY] = wandb_id
        if self.tasks is not None:
            own["tasks"] = {**self.tasks.state(), "log": self._task_log.state_dict()}
        frozen = {name for name, _ in self.named_parameters()} - self._ever_trains
        self._frozen_weights.warn_once(checkpoint, frozen)
        own["buffers"] = self._window.buffers(self._trained_buffers())
        if self.trainer.state.fn == TrainerFn.FITTING:
            own[WINDOW] = self._window.save(self.trainer, checkpoint)
            own[RUN] = self._changes.facts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another base model, and take over the ranks of its LoRA layers."""
        self.configure_model()
        assert self.loaded is not None
        own = check_base(checkpoint.get("lightning_vlm"), self.name_or_path, self.loaded.fingerprint)
        self._seed = own.get("seed")
        for name, buffer in self._trained_buffers().items():
            if name in own.get("buffers", {}):
                buffer.copy_(own["buffers"][name])
        if RANKS in checkpoint:
            fit_ranks(self, checkpoint)
            self._ever_trains &= {name for name, _ in self.named_parameters()}
        load_averages(self._trainer, checkpoint, self._ever_trains)
        self._window.load(own.get(WINDOW))
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._changes.load(self.trainer, checkpoint, own.get(RUN, {}))
        if self.tasks is not None and self.trainer.state.fn == TrainerFn.FITTING:
            note_other_run(self.trainer, own.get(KEY))
            self.tasks.load_state(own.get("tasks", {}))
            self._task_log.load_state_dict(own.get("tasks", {}).get("log", {}))

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load trained weights. Frozen ones may be missing, nothing else, and nothing may be unknown.

        Raises:
            UserError: Names or shapes that don't fit, all of them listed.
        """
        self.configure_model()
        check_keys(state_dict, self.state_dict(), self._ever_trains)
        return super().load_state_dict(state_dict, strict=False, assign=assign)


def _adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=2e-4)


def _has_pictures(inputs: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(("pixel_values", "image")) for name in inputs)
