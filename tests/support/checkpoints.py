"""What tests of EarlyStopCheckpoint share: the state of a run, compared to the last bit."""

import torch
from lightning.pytorch import Callback


def everything_of(trainer, module):
    """Weights, statistics, optimizer and schedules after a run."""
    state = {"model": module.state_dict(), "optimizers": [one.state_dict() for one in trainer.optimizers]}
    state["schedules"] = [one.scheduler.state_dict() for one in trainer.lr_scheduler_configs]
    return tensors_and_numbers(state)


def tensors_and_numbers(value, path=""):
    if isinstance(value, dict):
        return {
            k: v for key, one in value.items() for k, v in tensors_and_numbers(one, f"{path}/{key}").items()
        }
    if isinstance(value, list | tuple):
        return tensors_and_numbers(dict(enumerate(value)), path)
    return {path: value.clone() if isinstance(value, torch.Tensor) else value}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        same = torch.equal(value, second[name]) if isinstance(value, torch.Tensor) else value == second[name]
        assert same, name


def plateau(optimizer):
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau
    return schedule(optimizer, patience=0, factor=0.5, threshold=0.2)


def names_in(folder):
    return sorted(one.name for one in folder.iterdir() if one.name.startswith("step"))


class Scores(Callback):
    """Logs given scores: one for each epoch of a list, or by the step."""

    def __init__(self, scores):
        self.scores = scores

    def on_validation_epoch_end(self, trainer, module):
        at = trainer.current_epoch if not isinstance(self.scores, dict) else trainer.global_step
        module.log("score", torch.tensor(float(self.scores[at])), sync_dist=True)
