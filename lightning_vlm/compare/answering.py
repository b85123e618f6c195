"""Answers of a model: by `Trainer.test`, as everywhere, with what it took."""

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer

from lightning_vlm.compare.answered import Answered, AnswerSet, with_keys
from lightning_vlm.compare.entrants import Entrant
from lightning_vlm.compare.sets import SampleSet
from lightning_vlm.compare.settings import Settings
from lightning_vlm.data.batch.collate import Batch
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.pixel_budget import PixelBudget
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.export.serving import trained_sampling
from lightning_vlm.export.trained import ExportRequest, load_trained
from lightning_vlm.export.write import write
from lightning_vlm.failures.interrupt import interruption
from lightning_vlm.metrics.prediction import Prediction
from lightning_vlm.models.plan.table import count_parameters, methods_of
from lightning_vlm.module import VLMModule
from lightning_vlm.outputs.progress_bar import ProgressBar
from lightning_vlm.terminal import visible

_FROZEN = {"language": "frozen"}
_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
)
_NEWS = ("GPU available", "Restoring states", "Loaded model weights", "LOCAL_RANK")


class Loading(NamedTuple):
    """How models are loaded.

    Args:
        name_or_path: Where the base of checkpoints is now; None: where it was.
        trust_remote_code: Run Python code that comes with a model.
        family: As of `VLMModule`.
        batch_size: Samples that are answered at once; None is as in the config.
    """

    name_or_path: str | None = None
    trust_remote_code: bool = False
    family: str | None = None
    batch_size: int | None = None


class SetProgress(ProgressBar):
    """A progress bar with the name of a set."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._set = name

    @property
    def test_description(self) -> str:
        """What stands before the bar."""
        return visible(self._set)


class Facts(NamedTuple):
    """What a model is.

    Args:
        trained: Parameters that training changed; None where nobody says.
        parameters: All.
        size: The bytes of its weights.
        method: How it was trained.
        step: After how many steps.
        on: The method by which its weights are quantised; empty where they aren't.
    """

    trained: int | None
    parameters: int
    size: int
    method: str
    step: int | None
    on: str = ""


class AnsweringModule(VLMModule):
    """A `VLMModule` that measures how long it answers, and remembers to which samples."""

    seconds: Sequence[float] = ()
    places: Sequence[tuple[int, ...]] = ()
    counts: Sequence[int] = ()

    def start(self) -> None:
        """Forget what was measured."""
        self.seconds, self.places, self.counts = [], [], []

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        """As in `VLMModule`; the answers are texts, so that a GPU is done when they are there."""
        start = time.perf_counter()
        answers = super().predict_step(batch, batch_idx)
        self.seconds = [*self.seconds, time.perf_counter() - start]
        self.places = [*self.places, batch.places]
        self.counts = [*self.counts, len(answers)]
        return answers


@contextmanager
def loaded(entrant: Entrant, settings: Settings, loading: Loading) -> Iterator[AnsweringModule]:
    """The module of a model, whose weights may have to be loaded from `entrant.path`.

    Args:
        entrant: That isn't a file of answers.
        settings: Of the comparison.
        loading: How.
    """
    shared: dict[str, Any] = {
        "generation": dict(settings.generation),
        "scores": settings.scores,
        "token_weights": settings.token_weights,
        "trust_remote_code": loading.trust_remote_code,
        "family": loading.family,
    }
    checkpoint = entrant.checkpoint
    arguments = {} if checkpoint is None else dict(checkpoint.arguments)
    arguments.pop("token_weights", None)  # the same for all, or losses couldn't be compared
    name = entrant.path
    if checkpoint is not None:
        name = loading.name_or_path or checkpoint.base
    if entrant.kind != "checkpoint":
        arguments |= {"adapt": _FROZEN, "new_tokens": [], "mask_head": None}
        if entrant.kind == "model" or entrant.quantized:
            arguments["quantization"] = entrant.quantized
    if entrant.kind == "checkpoint" and entrant.quantized:
        request = ExportRequest(
            Path(entrant.path),
            name_or_path=loading.name_or_path,
            trust_remote_code=loading.trust_remote_code,
            family=loading.family,
        )
        with tempfile.TemporaryDirectory(prefix="compare-") as folder:
            write(load_trained(request), Path(folder), request)
            shared["template_options"] = arguments.get("template_options")
            yield AnsweringModule(folder, adapt=_FROZEN, quantization=entrant.quantized, **shared)
        return
    yield AnsweringModule(name, **arguments, **shared)


def facts_of(module: AnsweringModule, entrant: Entrant) -> Facts:
    """What a model is, once it is loaded."""
    trained, parameters = count_parameters(module.model.parameters())
    size = module.model.get_memory_footprint()
    quantization = module.source.quantization
    on = quantization.method if quantization is not None else ""
    if entrant.kind != "checkpoint" or entrant.checkpoint is None:
        return Facts(0 if entrant.kind == "base" else None, parameters, size, "", None, on)
    method = methods_of(entrant.checkpoint.arguments["adapt"])
    changed = None if entrant.quantized else trained
    return Facts(changed, parameters, size, method, entrant.checkpoint.step, on)


def answers_of(
    module: AnsweringModule, entrant: Entrant, sets: Sequence[SampleSet], settings: Settings, loading: Loading
) -> list[AnswerSet]:
    """What a model answers to each set.

    Args:
        module: Its module, as from `loaded`.
        entrant: It.
        sets: The sets.
        settings: Of the comparison.
        loading: How it is loaded.

    Raises:
        DataError: A bad sample.
        UserError: Weights that don't fit, and the like.
    """
    weights = entrant.path if entrant.kind == "checkpoint" and not entrant.quantized else None
    found = []
    folder = Path(tempfile.mkdtemp(prefix="compare-"))
    for one in sets:
        with _without_news():
            trainer = Trainer(
                accelerator="auto",
                devices=1,
                precision=settings.precision,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                callbacks=[SetProgress(one.name)],
                default_root_dir=folder,
            )
            found.append(_answer(trainer, module, _data(one, entrant, settings, loading), weights))
        weights = None
    if not any(folder.iterdir()):  # or else it has the list of samples that were skipped
        folder.rmdir()
    return found


@contextmanager
def _without_news() -> Iterator[None]:
    """Without what Lightning says of each Trainer: its devices, and that it reads a checkpoint."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(_is_no_news)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_no_news)


def _is_no_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_NEWS)


def _answer(trainer: Trainer, module: AnsweringModule, data: VLMDataModule, weights: str | None) -> AnswerSet:
    evaluation = module.callbacks.evaluation
    evaluation.sample_losses = []
    module.start()
    torch.manual_seed(0)
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        trainer.test(module, data, ckpt_path=weights, verbose=False)
    except SystemExit as error:  # Lightning ends the process after Ctrl-C
        raise interruption(error, trainer) or error from None
    rows = torch.cat([rows.double().cpu() for rows in evaluation.sample_losses]).tolist()
    places = [place for batch in module.places for place in batch]
    answers = []
    for row, place, prediction in zip(rows, places, evaluation.answers, strict=True):
        answers.append(Answered(prediction, tuple(row[:4]), place=place))
    start = 1 if len(module.counts) > 1 else 0
    first = sum(module.counts[:start])
    tokenizer = module.processor.tokenizer
    texts = [answer.prediction.text for answer in answers[first:]]
    tokens = sum(len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts)
    peak = torch.cuda.max_memory_allocated() if has_gpu else None
    return AnswerSet(with_keys(answers), sum(module.seconds[start:]), len(texts), tokens, peak)


def _data(one: SampleSet, entrant: Entrant, settings: Settings, loading: Loading) -> VLMDataModule:
    """A set as a model sees it: pictures, videos, boxes as in its training, the rest as in the settings."""
    data = settings.data
    size = loading.batch_size or data.get("eval_batch_size") or data.get("batch_size") or 8
    shared = ("max_length", "answer_tokens", "on_bad_sample", "num_workers", "system_prompts")
    options: dict[str, Any] = {name: data[name] for name in shared if name in data}
    return VLMDataModule(test=one.source, batch_size=size, **options, **_seen(entrant, data))


def _seen(entrant: Entrant, data: Mapping[str, Any]) -> dict[str, Any]:
    """How a model sees pictures and videos, and writes boxes."""
    run = entrant.checkpoint.run if entrant.checkpoint is not None else {}
    if run:
        pixels = PixelBudget.read(str(run.get("data.max_pixels", "")))
        return {
            "min_pixels": pixels.least,
            "max_pixels": pixels.most,
            "pixels_by_detail": pixels.by_detail,
            "video": trained_sampling(run),
            "boxes": run.get("data.boxes"),
        }
    if entrant.kind == "model":  # its processor knows
        return {}
    names = ("min_pixels", "max_pixels", "pixels_by_detail", "boxes")
    seen = {name: data[name] for name in names if name in data}
    if data.get("video") is not None:
        seen["video"] = VideoSampling(**data["video"])
    return seen
