"""A bundle opens anywhere, and without code from the file."""

import random
from collections import UserDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks import NonFiniteBundle
from lightning_vlm_callbacks.host_data import HostData
from lightning_vlm_callbacks.nonfinite_guard.bundle import save
from lightning_vlm_callbacks.random_states import random_state, set_random_state

pytestmark = pytest.mark.filterwarnings(
    "ignore:NonFiniteGuard", "ignore:.*val_dataloader", "ignore:.*LeafSpec"
)


class Pair(NamedTuple):
    x: torch.Tensor
    names: list


@dataclass
class Record:
    pair: Pair
    extra: dict


class Host(HostData):
    def __init__(self, sizes):
        self.sizes = sizes


class Thing:
    def __repr__(self):
        return "<thing>"


def bundle_of(batch, weights=None):
    return NonFiniteBundle(
        batch, 3, 7, 0, 0, "32-true", 1.0, random_state(torch.device("cpu")), [], [], weights
    )


def test_a_batch_comes_back_as_it_was(tmp_path):
    """Without pickled classes in the file."""
    x = torch.arange(6.0)
    extra = {"u": UserDict(y=(x, 1)), "t": Thing(), 1: {"z": True}, "h": Host({"of": x[:2]})}
    batch = Record(Pair(x[2:4], ["a", None]), extra)
    assert save(tmp_path / "b.pt", bundle_of(batch), 1e6) == ""
    held = torch.load(tmp_path / "b.pt", weights_only=True)
    assert held["batch"]["pair"]["x"].untyped_storage().nbytes() == 8  # not all that it is a view of
    back = NonFiniteBundle.load(tmp_path / "b.pt")
    assert isinstance(back.batch, Record)
    assert isinstance(back.batch.pair, Pair)
    assert torch.equal(back.batch.pair.x, x[2:4])
    assert back.batch.pair.names == ["a", None]
    assert isinstance(back.batch.extra["u"], UserDict)
    assert torch.equal(back.batch.extra["u"]["y"][0], x)
    assert (back.batch.extra["t"], back.batch.extra[1]) == ("<thing>", {"z": True})
    assert isinstance(back.batch.extra["h"], Host)
    assert torch.equal(back.batch.extra["h"].sizes["of"], x[:2])
    assert (back.batch_idx, back.step) == (3, 7)
    set_random_state(back.random)


def test_a_batch_of_an_unknown_class(tmp_path):
    save(tmp_path / "b.pt", bundle_of(Pair(torch.ones(1), [])), 1e6)
    held = torch.load(tmp_path / "b.pt", weights_only=True)
    for name, words in [("my_project:Pair", "import that first"), ("builtins:int", "no longer holds data")]:
        torch.save({**held, "batch": {"__class__": name, "x": 1}}, tmp_path / "c.pt")
        with pytest.raises(MisconfigurationException, match=words):
            NonFiniteBundle.load(tmp_path / "c.pt")


def test_size_limit(tmp_path):
    small, large = torch.zeros(100), {"w": torch.zeros(1000)}
    assert "weights were too large" in save(tmp_path / "a.pt", bundle_of(small, large), 1000)
    assert NonFiniteBundle.load(tmp_path / "a.pt").weights is None
    assert "no bundle" in save(tmp_path / "b.pt", bundle_of(small), 399)
    assert not (tmp_path / "b.pt").exists()
    assert save(tmp_path / "c.pt", bundle_of(small, large), 4400) == ""


def test_a_bundle_of_an_earlier_version(tmp_path):
    """Its random states were in tuples, with `None` for what wasn't there."""
    randomness = {
        "python": random.getstate(),
        "numpy": ("MT19937", [int(key) for key in np.random.get_state()[1]], 624, 0, 0.0),
        "torch": torch.get_rng_state(),
        "device": None,
    }
    first = random.random(), torch.rand(1)
    content = vars(bundle_of({"x": torch.ones(2)}))
    torch.save({**content, "random": randomness}, tmp_path / "b.pt")
    set_random_state(NonFiniteBundle.load(tmp_path / "b.pt").random)
    assert (random.random(), torch.rand(1)) == first
