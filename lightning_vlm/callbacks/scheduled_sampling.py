"""Scheduled sampling for transformers: a model learns to continue its own words."""

from typing import Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning_vlm_callbacks.modes import eval_mode
from lightning_vlm_callbacks.runs import log_metrics, logs_at
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import ProcessorMixin
from typing_extensions import override

from lightning_vlm.curve import Curve, Point
from lightning_vlm.data.batch.collate import Batch, Targets
from lightning_vlm.errors import UserError
from lightning_vlm.kinds import Kind
from lightning_vlm.losses.language import default_chunk_size
from lightning_vlm.models.logits import LogitOptions, logit_options
from lightning_vlm.module import VLMModule
from lightning_vlm.training.optimizer_steps import total_steps

Decay = Literal["constant", "linear", "exponential", "inverse_sigmoid"]


class ScheduledSampling(Callback):
    """Replaces some input tokens of answers by what the model would have written there.

    After "Scheduled Sampling for Transformers" (Mihaylova and Martins 2019,
    https://arxiv.org/abs/1906.07651): a first pass over the right
    tokens, without gradients and without dropout, predicts every token of the answers; in the second pass,
    which is the ordinary step, each input token of an answer is with some probability the prediction for its
    place. The loss is against the right tokens, and each is still predicted in its own place.

    Where the paper may mix embeddings and send gradients through the first pass, here tokens are replaced
    and no gradients are sent.

    Only tokens of answers that are learned are replaced, and of them not the last, which ends the turn and
    which the model never fails to see when it answers. Nor is anything replaced where the prediction is a
    special token: there an answer would have ended, or a picture would be missing. So prompts, pictures and
    masks stay as they are, `batch.targets` too; only `batch.inputs["input_ids"]` changes, in place.

    The probability is a function of `trainer.global_step`, the same for all micro-batches of a step; what is
    drawn, of seed, epoch and micro-batch, as dropout is. So a resumed run continues exactly. While the
    probability is 0 nothing is done: the step is the ordinary one, bit for bit.

    Each step takes one more forward pass, pictures and all: `benchmarks/scheduled_sampling.py` measures it.
    The objective is not a likelihood, and its optimum not the data's distribution (Huszár 2015): keep the
    probability small, and watch exact match rather than the loss. Validation is as always.

    Args:
        probability: Of a replacement, at the end of training.
        decay: How the probability gets there from 0, as `replacement_probability` has it.
        start: The progress at which it begins to rise; 0.1 leaves the first tenth of training as it is.
        predictions: `likeliest` takes the token with the highest probability, `drawn` draws one.

    Raises:
        UserError: Arguments outside these; a module that isn't a `VLMModule`; a run without an end.

    >>> callback = ScheduledSampling(probability=0.25, decay="inverse_sigmoid", start=0.2)
    """

    def __init__(
        self,
        probability: float,
        decay: Decay = "linear",
        start: float = 0.0,
        predictions: Literal["likeliest", "drawn"] = "likeliest",
    ) -> None:
        super().__init__()
        if not 0 <= probability <= 1:
            raise UserError(f"probability: found {probability}; expected a number from 0 to 1")
        if not 0 <= start < 1:
            raise UserError(f"start: found {start}; expected a progress from 0 to less than 1")
        if predictions not in ("likeliest", "drawn"):
            raise UserError(f"predictions: found {predictions!r}; expected likeliest or drawn")
        replacement_probability(0.0, probability, decay, start)
        self.probability = probability
        self.decay = decay
        self.start = start
        self.predictions = predictions
        self._total = 1
        self._logged = -1
        self._never = torch.zeros(0, dtype=torch.bool)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(pl_module, VLMModule):
            raise UserError(f"ScheduledSampling: found a {type(pl_module).__name__}; expected a VLMModule")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: VLMModule) -> None:  # type: ignore[override]
        assert pl_module.model is not None
        self._total = total_steps(trainer)
        self._logged = -1
        if self.start >= (self._total - 1) / self._total:
            rank_zero_warn(
                f"ScheduledSampling: start {self.start:g} never comes in this run of {self._total} steps, so "
                "no token is replaced"
            )
        size = pl_module.model.config.get_text_config().vocab_size
        self._never = never_written(pl_module.processor, size).to(pl_module.device)

    @override
    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: VLMModule, batch: Batch, batch_idx: int
    ) -> None:
        step = trainer.global_step
        probability = replacement_probability(step / self._total, self.probability, self.decay, self.start)
        if step != self._logged and logs_at(trainer, step):
            self._logged = step
            log_metrics(trainer, {"scheduled_sampling": probability}, step)
        targets = pl_module.targets(batch)
        if probability == 0 or not len(targets.positions):
            return
        ids = batch.inputs["input_ids"]
        generator = torch.Generator(ids.device)
        seed = pl_module.callbacks.run_state.seed_of(trainer, batch_idx, " scheduled sampling")
        generator.manual_seed(seed)
        chosen = torch.rand(len(targets.positions), generator=generator, device=ids.device) < probability
        assert pl_module.model is not None
        # Lightning opens the context of the precision around the training step only.
        with trainer.precision_plugin.forward_context(), torch.no_grad(), eval_mode(pl_module.model):
            hidden = pl_module.hidden_states(batch).flatten(0, 1).index_select(0, targets.positions)
            predicted = predict_tokens(
                hidden,
                pl_module.model.get_output_embeddings(),
                logit_options(pl_module.model),
                generator if self.predictions == "drawn" else None,
            )
        chosen &= ~self._never[predicted]
        # The change is in place, so that a batch kept to run the step again holds the inputs of the step.
        ids.copy_(replaced(ids, batch.kinds, batch.samples, targets, predicted, chosen))


def replacement_probability(progress: float, probability: float, decay: Decay, start: float = 0.0) -> float:
    """The probability of a replacement: 0 up to `start`, `probability` at the end of training.

    One minus it is the teacher forcing of Bengio et al. (2015, https://arxiv.org/abs/1506.03099), section
    2.4. With x from 0 to 1 between `start` and the end it is `probability` times: linear, x; exponential,
    1 - k^i where k^i falls to e^-5; inverse sigmoid, 1 - k / (k + e^(i/k)) where k = e^5, which is a logistic
    function of 10 (x - 1/2). The latter two are stretched by less than 1.4% to begin at 0 and end at 1.
    Constant is `probability` from `start` on.

    Raises:
        UserError: There is no such decay.

    >>> [round(replacement_probability(x, 0.4, "linear", start=0.5), 2) for x in (0, 0.5, 0.75, 1)]
    [0.0, 0.0, 0.2, 0.4]
    """
    if decay not in get_args(Decay):
        raise UserError(f"decay: found {decay!r}; expected constant, linear, exponential or inverse_sigmoid")
    if decay == "constant":
        return Curve([Point(0, 0.0, "steps"), Point(start, probability)])(progress)
    return Curve([Point(start, 0.0, decay), Point(1, probability)])(progress)


def predict_tokens(
    hidden: Tensor,
    head: nn.Module,
    options: LogitOptions,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """What a model would write, a chunk of tokens at a time, so that its logits are never all held.

    Args:
        hidden: Tensor of shape [tokens, hidden], floating-point.
        head: From [tokens, hidden] to logits [tokens, vocabulary].
        options: What the family does to its logits.
        generator: Draws a token from the model's distribution, on the device of `hidden`; None takes the
            likeliest one.
        chunk_size: Tokens in a chunk; None chooses by vocabulary.
    Returns:
        Tensor of shape [tokens], int64.

    >>> predict_tokens(torch.eye(3), nn.Identity(), LogitOptions(None, 1.0))
    tensor([0, 1, 2])
    """
    size = chunk_size or default_chunk_size(head, hidden.device)
    found = []
    for chunk in hidden.split(size):
        logits = head(chunk)
        if generator is not None:
            logits = logits.float() * options.logit_scale
            if options.softcap is not None:
                logits = options.softcap * torch.tanh(logits / options.softcap)
            # The first of exponential clocks draws by the probabilities; multinomial would wait for the GPU.
            clocks = torch.empty_like(logits).exponential_(generator=generator)
            logits = logits - clocks.log()
        found.append(logits.argmax(1))
    return torch.cat(found)


def replaced(
    ids: Tensor, kinds: Tensor, samples: Tensor, targets: Targets, predicted: Tensor, chosen: Tensor
) -> Tensor:
    """Input tokens with some of those inside answers replaced.

    Args:
        ids: Tensor of shape [batch, length], int64. It stays as it is.
        kinds: Tensor of shape [batch, length], int8.
        samples: Tensor of shape [batch, length]: which sample each token belongs to.
        targets: Of the batch.
        predicted: Tensor of shape [targets], int64: for each target the token to put in its place.
        chosen: Tensor of shape [targets], bool: where to. What no token of the same answer follows stays.
    Returns:
        Tensor of shape [batch, length], int64. The host never waits for the device.

    >>> kinds = torch.tensor([[Kind.INSTRUCTION, Kind.RESPONSE, Kind.RESPONSE, Kind.RESPONSE]])
    >>> ids, samples = torch.tensor([[4, 5, 6, 7]]), torch.zeros(1, 4, dtype=torch.int32)
    >>> targets = Targets(torch.tensor([0, 1, 2]), torch.tensor([5, 6, 7]), torch.ones(3))
    >>> replaced(ids, kinds, samples, targets, torch.tensor([1, 2, 3]), torch.ones(3).bool())
    tensor([[4, 1, 2, 7]])
    """
    answer = kinds >= Kind.RESPONSE
    follows = samples[:, 1:] == samples[:, :-1]  # where samples share a row, another one's token may come
    inside = answer & pad(answer[:, 1:] & follows, (0, 1))
    places = targets.positions + 1
    mixed = ids.flatten().clone()
    mixed[places] = torch.where(chosen & inside.flatten()[places], predicted, mixed[places])
    return mixed.view_as(ids)


def never_written(processor: ProcessorMixin, size: int) -> Tensor:
    """Which tokens no answer has inside: special tokens, and those that stand for pictures.

    Args:
        processor: With its tokenizer.
        size: Of the vocabulary.
    Returns:
        Tensor of shape [size or more], bool.
    """
    tokenizer = processor.tokenizer
    ids = set(tokenizer.all_special_ids)
    ids |= {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    for medium in ("image", "video", "audio"):
        token = getattr(processor, f"{medium}_token", None)
        if token:
            ids.add(tokenizer.convert_tokens_to_ids(str(token)))
    ids.discard(None)
    never = torch.zeros(max(size, max(ids, default=0) + 1), dtype=torch.bool)
    never[list(ids)] = True
    return never
