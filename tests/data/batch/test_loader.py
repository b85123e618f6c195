"""A loader resumes at the next batch, alone and under a real Trainer."""

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import Dataset

from lightning_vlm.data.batch.loader import ResumableLoader, begin_next_epoch
from lightning_vlm.data.batch.sampler import ResumableBatchSampler
from lightning_vlm.errors import UserError


class Echo(Dataset):
    """A batch is its indices."""

    def __getitem__(self, indices):
        return torch.tensor(indices)


def loader(size=22, batch_size=4, workers=0, rank=0, world=1, seed=0, shuffle=True):
    batches = ResumableBatchSampler(size, batch_size, shuffle, seed, rank, world)
    return ResumableLoader(
        Echo(), sampler=batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )


def listed(loader):
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seen", [0, 1, 3, 5])
def test_resumed_it_gives_exactly_the_rest_and_then_a_whole_epoch(workers, seen):
    first = loader(workers=workers)
    first.sampler.set_epoch(2)
    passing = iter(first)
    before = [next(passing).tolist() for _ in range(seen)]
    if not before:  # as after the epoch before
        first._epoch, first._seen = 2, 0
    state = first.state_dict()
    second = loader(workers=workers)
    second.load_state_dict(state)
    assert second.state_dict() == state
    second.sampler.set_epoch(2)
    rest = listed(second)
    assert before + rest == listed(loader_of(2))
    second.sampler.set_epoch(3)
    assert listed(second) == listed(loader_of(3))
    assert second.state_dict()["position"] == 22


def loader_of(epoch, **options):
    made = loader(**options)
    made.sampler.set_epoch(epoch)
    return made


def test_at_the_end_of_an_epoch_the_next_one_is_whole():
    first = loader()
    assert len(listed(first)) == 6
    second = loader()
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(1)
    assert listed(second) == listed(loader_of(1))


def test_other_batches_are_refused_in_the_middle_of_an_epoch_only():
    first = loader()
    passing = iter(first)
    next(passing)
    middle = first.state_dict()
    for changed in ({"size": 23}, {"seed": 1}, {"shuffle": False}):
        with pytest.raises(UserError, match=r"middle of an epoch with other batches: .* was .*, is "):
            loader(**changed).load_state_dict(middle)
    loader(batch_size=2, world=2).load_state_dict(middle)  # the same step, split otherwise
    list(passing)
    loader(size=23).load_state_dict(first.state_dict())


def test_a_state_that_an_earlier_version_saved_still_loads():
    """Such a state has these keys; the earliest ones had no sampling."""
    saved = {"epoch": 0, "seen": 4, "samples": 22, "samples a step": 4, "seed": 0, "shuffle": 1}
    for state in (saved, {**saved, "sampling": "each sample once"}):
        resumed = loader()
        resumed.load_state_dict(state)
        assert resumed.state_dict() == {
            "epoch": 0,
            "position": 16,
            "end": 22,
            "sampling": "each sample once",
            "samples": 22,
            "seed": 0,
            "shuffle": 1,
        }
        assert listed(resumed) == listed(loader())[4:]


class Records(LightningModule):
    """Trains one weight and writes down what it sees."""

    def __init__(self, seen):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = seen

    def training_step(self, batch):
        self.seen.append((self.current_epoch, batch.tolist()))
        return self.weight * batch.float().sum()

    def validation_step(self, batch):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Data(LightningDataModule):
    """Loads, with validation if asked for."""

    def __init__(self, workers, validate):
        super().__init__()
        self.workers, self.validate = workers, validate

    def train_dataloader(self):
        begin_next_epoch(self.trainer)
        return loader(workers=self.workers)

    def val_dataloader(self):
        return loader(size=8, shuffle=False) if self.validate else []


class Save(Callback):
    """Saves after a number of steps, or at the end of an epoch."""

    def __init__(self, path, after_step=None, after_epoch=None, after_validation=None):
        self.path, self.after_step, self.after_epoch = path, after_step, after_epoch
        self.after_validation = after_validation

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.after_step:
            trainer.save_checkpoint(self.path)

    def on_validation_end(self, trainer, *_):
        if trainer.current_epoch == self.after_validation and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer, *_):
        if trainer.current_epoch == self.after_epoch:
            trainer.save_checkpoint(self.path)


def run(callback=None, ckpt_path=None, workers=0, validate=False, **options):
    seen = []
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
        "callbacks": callback,
        **options,
    }
    trainer = Trainer(**quiet)
    module = Records(seen)
    trainer.fit(module, Data(workers, validate), ckpt_path=ckpt_path)
    return seen, module.weight.item(), trainer


def test_lightning_sets_the_epoch_and_leaves_the_sampler_in_place():
    seen, _, trainer = run(max_epochs=3)
    expected = [(epoch, batch) for epoch in range(3) for batch in listed(loader_of(epoch))]
    assert seen == expected
    assert isinstance(trainer.train_dataloader.sampler, ResumableBatchSampler)


@pytest.mark.parametrize("end", [{"max_epochs": 4}, {"max_steps": 22}, {"max_epochs": 5, "max_steps": 22}])
@pytest.mark.parametrize(
    "at", [{"after_step": s} for s in (1, 4, 6, 9, 12, 18)] + [{"after_epoch": 1}, {"after_validation": 1}]
)
@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_anywhere_it_sees_what_the_uninterrupted_run_sees(tmp_path, end, at, workers, validate):
    if "after_validation" in at and not validate:
        pytest.skip("nothing is validated")
    if workers and at not in ({"after_step": 9}, {"after_step": 12}):
        pytest.skip("workers cost time; a middle and an end are enough")
    path = tmp_path / "saved.ckpt"
    whole, weight, _ = run(Save(path, **at), validate=validate, **end)
    rest, resumed_weight, _ = run(ckpt_path=path, workers=workers, validate=validate, **end)
    step = at.get("after_step", 12)
    assert rest == whole[step:]
    assert resumed_weight == weight


@pytest.mark.parametrize("end", [{"max_epochs": 3}, {"max_steps": 9}])
@pytest.mark.parametrize("step", [2, 3, 6])
def test_resumed_with_a_limit_on_batches_it_sees_what_the_uninterrupted_run_sees(tmp_path, end, step):
    path = tmp_path / "saved.ckpt"
    whole, weight, _ = run(Save(path, after_step=step), limit_train_batches=3, **end)
    rest, resumed_weight, _ = run(ckpt_path=path, limit_train_batches=3, **end)
    assert rest == whole[step:]
    assert resumed_weight == weight


@pytest.mark.parametrize(("end", "later"), [("max_epochs", (2, 3)), ("max_steps", (12, 18))])
def test_a_run_that_had_ended_continues_when_it_is_given_more_steps(tmp_path, end, later):
    path = tmp_path / "saved.ckpt"
    whole, *_ = run(**{end: later[1]})
    _, _, trainer = run(**{end: later[0]})
    trainer.save_checkpoint(path)
    rest, *_ = run(ckpt_path=path, **{end: later[1]})
    assert rest == whole[12:]
