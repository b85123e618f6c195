"""A run is resumed exactly wherever it was saved: seams of the run × ways of sampling × who saves.

Each case runs once without interruption while a callback saves at every hook, and Lightning's ModelCheckpoint
and EarlyStopCheckpoint save beside it. Each of these files is resumed from: weights must be the uninterrupted
run's bit for bit, batches and validations those that were left.
"""

import copy

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler, ModelCheckpoint
from lightning_vlm_callbacks import EarlyStopCheckpoint

from lightning_vlm import VLMDataModule
from lightning_vlm.data.batch.task_sampling import TaskSampling
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.optim import Constant

HARD = TaskSampling(score="hard", every_n_samples=6, floor=0.1)
SIZE = TaskSampling(temperature=2.0)
GROUPED = TaskSampling(grouped=True)
HOOKS = (
    "on_train_epoch_start",
    "on_before_backward",  # in the middle of a batch, as a signal handler
    "on_train_batch_end",
    "on_validation_batch_end",
    "on_validation_end",
    "on_train_epoch_end",
    "on_train_end",
)


class SaveAtHooks(Checkpoint):
    """Saves at every hook up to a number of batches."""

    def __init__(self, folder, hooks, batches):
        for hook in hooks:
            setattr(self, hook, self._saver(folder, hook, batches))

    def _saver(self, folder, hook, batches):
        def save(trainer, *_, **__):
            done = trainer.fit_loop.epoch_loop.batch_progress.total.ready
            if done <= batches:
                number = len(list(folder.glob("*.ckpt")))
                trainer.save_checkpoint(folder / f"{number:02} {hook} after batch {done}.ckpt")

        return save


class Trace(Callback):
    """Which samples were trained on, and where a validation ended."""

    def __init__(self):
        self.batches, self.validations = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch_idx, *batch.sources))

    def on_validation_end(self, trainer, module):
        self.validations.append((trainer.current_epoch, trainer.fit_loop.batch_idx, trainer.global_step))


@pytest.fixture(scope="module")
def rendered_once():
    """Rendering the same few samples again would take most of the time."""
    render, known = Renderer.example, {}

    def example(self, conversation):
        if conversation.source not in known:
            known[conversation.source] = render(self, conversation)
        return known[conversation.source]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Renderer, "example", example)
        yield


@pytest.fixture(scope="module")
def fit(module, make_quiet, listed, rendered_once):
    """Fits a copy of one small module; gives its weights and the trace."""
    train, val = listed(Drawn("train", size=10)), listed(Drawn("val", size=2))
    base = module(
        "llava", adapt={"projector": "full"}, schedule=Constant()
    )  # of no length: max_epochs is raised
    assert base.processor

    def run(callbacks, sampling=None, ckpt_path=None, **options):
        seed_everything(1, verbose=False)
        mine, trace = copy.deepcopy(base), Trace()
        given = {"accumulate_grad_batches": 2, "enable_checkpointing": True, "max_epochs": 2, **options}
        data = VLMDataModule(train=train, val=val, batch_size=2, sampling=sampling)
        trainer = make_quiet(callbacks=[trace, *callbacks], **given)
        trainer.fit(mine, data, ckpt_path=ckpt_path, weights_only=True)
        return {name: p.detach().clone() for name, p in mine.named_parameters() if p.requires_grad}, trace

    return run


SEAMS = ("on_train_epoch_start", "on_train_batch_end", "on_train_epoch_end")
CASES = {  # an epoch is 5 batches; steps end behind 2, 4 and 5 of them
    "each sample once, validated after each batch": {"hooks": HOOKS, "batches": 3, "val_check_interval": 1},
    "each sample once": {"hooks": HOOKS, "batches": 6},
    "drawn by loss": {"sampling": HARD},
    "drawn by size": {"sampling": SIZE, "hooks": ("on_train_epoch_end",)},
    "batches of one task": {"sampling": GROUPED, "hooks": ("on_train_epoch_end",)},
    "drawn by loss, max_steps": {"sampling": HARD, "max_epochs": -1, "max_steps": 5},
    "drawn by loss, max_epochs raised": {"sampling": HARD, "stop": {"max_epochs": 1}},
    "max_steps raised, inside an epoch": {"max_steps": 5, "stop": {"max_steps": 2}},
    "max_steps raised, at the end of an epoch": {"max_steps": 5, "stop": {"max_steps": 3}},
    "drawn by loss, max_steps raised": {
        "sampling": HARD,
        "max_epochs": -1,
        "max_steps": 5,
        "stop": {"max_steps": 4},
    },
    "another accumulation in the second epoch": {
        "accumulate_grad_batches": 1,
        "hooks": ("on_train_epoch_start", "on_train_batch_end"),
        "batches": 8,
        "scheduler": {0: 1, 1: 3},
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_seam(fit, tmp_path, case):
    options = dict(case)
    stop, scheduler = options.pop("stop", None), options.pop("scheduler", None)
    hooks, batches = options.pop("hooks", SEAMS), options.pop("batches", 5)
    ours, lightnings = tmp_path / "ours", tmp_path / "lightning"

    def more():
        return [GradientAccumulationScheduler(dict(scheduler))] if scheduler else []

    savers = []
    if hooks is not HOOKS:
        savers = [
            ModelCheckpoint(lightnings, every_n_train_steps=1, save_top_k=-1),
            EarlyStopCheckpoint(every_n_steps=1, keep_periodic=None, dirpath=str(ours)),
        ]
    if stop is None:
        expected, trace = fit([*more(), SaveAtHooks(tmp_path, hooks, batches), *savers], **options)
    else:
        expected, trace = fit([], **options)
        fit(
            [SaveAtHooks(tmp_path, ("on_train_epoch_end", "on_train_end"), 99), *savers],
            **{**options, **stop},
        )
    files = [file for file in sorted(tmp_path.rglob("*.ckpt")) if not file.is_symlink()]
    assert len(files) >= 5
    wrong = []
    for file in files:
        weights, again = fit(more(), ckpt_path=file, **options)
        left = {name: getattr(again, name) for name in ("batches", "validations")}
        whole = {name: getattr(trace, name)[-len(seen) :] if seen else [] for name, seen in left.items()}
        same = all(torch.equal(weights[name], weight) for name, weight in expected.items())
        if not same or left != whole:
            wrong.append((str(file.relative_to(tmp_path)), same, left, whole))
    assert not wrong


def test_a_file_from_the_middle_of_a_step_says_so(fit, tmp_path, recwarn):
    """A signal may come when some weights have changed and the rest hasn't."""

    class SaveInStep(Callback):
        def on_train_start(self, trainer, module):
            def save(*_):
                trainer.save_checkpoint(tmp_path / "inside.ckpt")

            trainer.optimizers[0].register_step_post_hook(save)

    fit([SaveAtHooks(tmp_path, SEAMS, 5)], max_epochs=1)
    assert not [one for one in recwarn if "can't be resumed" in str(one.message)]
    fit([SaveInStep()], max_epochs=1)
    assert [one for one in recwarn if "can't be resumed from it exactly" in str(one.message)]
