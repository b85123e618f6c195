"""Runs with a planted fault, and the same runs on data that never had the spoiled samples."""

import json
import tempfile
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning_vlm_callbacks import GradientMonitor, NonFiniteGuard, RunReport
from lightning_vlm_callbacks.nonfinite_guard.batches import named_tensors
from lightning_vlm_callbacks.runs import loss_scaler

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.optim import Cosine
from tests.support.packed import OfList
from tests.support.quiet import QUIET
from tests.support.ranks import call_on_ranks
from tools.reliability.full_run import quiet
from tools.reliability.planted_faults import Fault, FaultyModule, PlantedFault

STEPS = 4
BAD_STEP = 2
"""The step that is spoiled, counted from 0."""
SCALE = 256.0
"""The loss scale that float16 begins with."""
PLANS: dict[str, Any] = {
    "lora": {
        "projector": "full",
        "vision.layers[0:2]": {"lora": {"r": 2, "dropout": 0.1}},
        "language": {"lora": {"r": 2, "dropout": 0.1}},
    },
    "full": {
        "vision.embeddings": "full",
        "vision.layers[0:2]": "full",
        "projector": "full",
        "language": "full",
        "head": "full",
    },
}


class Case(NamedTuple):
    """A run with a fault.

    Args:
        fault: What is planted where.
        method: Of `PLANS`.
        accumulate: Micro-batches of a step.
        at: Which of them is spoiled.
        ranks: How many processes; the fault is on the last of them.
        guard: Whether NonFiniteGuard is there.
    """

    fault: Fault
    method: str = "lora"
    accumulate: int = 1
    at: int = 0
    ranks: int = 1
    guard: bool = True

    def __str__(self) -> str:
        of = f", micro-batch {self.at + 1} of {self.accumulate}" if self.accumulate > 1 else ""
        return (
            f"{self.fault}; {self.method}{of}, {self.ranks} {'process' if self.ranks == 1 else 'processes'}"
        )

    @property
    def precision(self) -> str:
        return "16-mixed" if self.fault.value == "overflow" else "32-true"


@dataclass(frozen=True)
class WithoutStep(Cosine):
    """The rates of a run that is one step longer, without those of the spoiled step."""

    def at(self, step: int, total_steps: int) -> float:
        return super().at(step + (step >= BAD_STEP), total_steps + 1)


class KeepLogged(DummyLogger):
    """Keeps what is logged: name -> step -> value."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, dict[int, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.values.setdefault(name, {})[step or 0] = float(value)


class HalvedScale(Callback):
    """Halves the loss scale before a step, as a scaler does that has skipped the step before.

    Args:
        is_due: Whether it does anything.
    """

    def __init__(self, is_due: bool) -> None:
        self.is_due = is_due

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        scaler = loss_scaler(trainer)
        if self.is_due and scaler is not None and trainer.global_step == BAD_STEP:
            self.is_due = False
            scaler.update(SCALE / 2)


def samples(case: Case, seen: bool) -> OfList:
    """The training data of a run: in order, and without the spoiled step if that isn't to be seen."""
    a_step = 2 * case.accumulate * case.ranks
    drawn = list(Drawn("train", size=STEPS * a_step, tasks=["vqa", "caption"]))
    if not seen:
        del drawn[BAD_STEP * a_step : (BAD_STEP + 1) * a_step]
    return OfList(drawn)


def train(case: Case, model: Path, folder: Path, seen: bool, halved: bool) -> dict[str, Any]:
    """Train on one of the processes of a case.

    Args:
        case: Which run.
        model: The folder of the model.
        folder: Where reports go.
        seen: Whether the spoiled samples are in the data.
        halved: Whether the loss scale is halved where they were.

    Returns:
        Weights, the optimizer's state and rates, what was logged and said, and where the fault was.
    """
    with redirect_stdout(StringIO()), warnings.catch_warnings(record=True) as caught:
        quiet()
        warnings.simplefilter("always")
        module = _module(case, model, seen)
        number = BAD_STEP * case.accumulate + case.at if seen else -1
        planted = PlantedFault(case.fault, number, case.ranks - 1)
        monitor = GradientMonitor(every_n_steps=1)
        guard = [NonFiniteGuard(dirpath=str(folder))] if case.guard else []
        logger = KeepLogged()
        callbacks = [planted, HalvedScale(halved), *guard, monitor, RunReport(str(folder))]
        trainer = _trainer(case, callbacks, logger, folder)
        error = ""
        try:
            trainer.fit(module, VLMDataModule(train=samples(case, seen), batch_size=2, shuffle=False))
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
    (optimizer,) = trainer.optimizers
    scaler = loss_scaler(trainer)
    states = optimizer.state_dict()
    trained = module.trained.names
    return {
        "error": error,
        "weights": {name: one.detach() for name, one in module.named_parameters() if name in trained},
        "optimizer": dict(named_tensors(list(states["state"].values()))),
        "rates": [group["lr"] for group in states["param_groups"]],
        "steps": trainer.global_step,
        "halved": scaler is not None and scaler.get_scale() < SCALE,
        "usual": {name: list(usual) for name, usual in monitor.state_dict()["usual"].items()},
        "logged": logger.values,
        "lines": [str(one.message) for one in caught],
        "path": planted.path,
        "planted": planted.times,
        "sources": planted.sources,
    }


def _module(case: Case, model: Path, seen: bool) -> FaultyModule:
    torch.manual_seed(0)  # LoRA's A is random
    module = FaultyModule(
        str(model),
        adapt=PLANS[case.method],
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        schedule=Cosine(warmup=0.1) if seen else WithoutStep(warmup=0.1),
    )
    module.configure_model()
    if not seen:
        run_state = module.callbacks.run_state
        seed_of, first = run_state.seed_of, BAD_STEP * case.accumulate

        def seed_behind(trainer: Trainer, batch_idx: int, use: str = "") -> int:
            return seed_of(trainer, batch_idx + case.accumulate * (batch_idx >= first), use)

        run_state.seed_of = seed_behind  # type: ignore[method-assign]
    return module


def _trainer(case: Case, callbacks: list[Callback], logger: KeepLogged, folder: Path) -> Trainer:
    options: dict[str, Any] = {
        **QUIET,
        "logger": logger,
        "callbacks": callbacks,
        "limit_val_batches": 0,
        "default_root_dir": folder,
    }
    if case.ranks > 1:
        options |= {"devices": case.ranks, "strategy": "ddp"}
    if case.precision == "16-mixed":  # Lightning's own choice on a CPU would be bfloat16
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", SCALE))]
    return Trainer(max_epochs=1, accumulate_grad_batches=case.accumulate, **options)


class Found(NamedTuple):
    """What a run left.

    Args:
        ranks: What `train` returned on each process.
        reports: The texts of the guard's reports.
        events: The texts of the run report's events of skipped steps.
    """

    ranks: list[dict[str, Any]]
    reports: list[str]
    events: list[str]


def run(case: Case, model: Path, seen: bool = True, halved: bool = False) -> Found:
    """Train in as many processes as a case has; see `train`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ranks = call_on_ranks(train, case, model, folder, seen, halved, ranks=case.ranks)
        reports = [file.read_text() for file in folder.rglob("report.md")]
        lines = (folder / "report.jsonl").read_text().splitlines()
    events = [event["text"] for event in map(json.loads, lines) if event.get("event") == "skipped"]
    return Found(ranks, reports, events)
