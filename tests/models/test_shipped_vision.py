import shutil
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lightning_vlm.data.drawn.scenes import draw, layout
from lightning_vlm.data.drawn.vocabulary import SHADES, SHAPES
from lightning_vlm.errors import UserError
from tools import shipped, shipped_vision


def test_pictures_are_what_was_drawn():
    data = shipped_vision.Pictures(3, "val", seed=5)
    for index in range(3):
        rng = Random(f"see/5/val/{index}")
        picture, (seen,) = draw(rng, layout(rng, "val", word_chance=0, most=1), 64)
        assert np.array_equal(data.pixels[index], np.asarray(picture))
        assert list(SHAPES)[data.shapes[index]] == seen.thing.shape
        assert list(SHADES)[data.colours[index]] == seen.thing.colour
        assert torch.allclose(data.boxes[index], torch.tensor(seen.box))
    pixels = data.batch(torch.arange(3))
    assert pixels.shape == (3, 3, 64, 64)
    assert -1 <= pixels.min() < pixels.max() <= 1


def test_only_the_tower_learns_and_it_learns(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped_vision, "BATCH", 16)
    before = load_file(shipped.create(tmp_path / "base") / "model.safetensors")
    shutil.copytree(tmp_path / "base", tmp_path / "taught")
    scores = shipped_vision.teach(tmp_path / "taught", pictures=2400)
    after = load_file(tmp_path / "taught" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("vision_tower" in name for name in changed)
    assert scores["colour"] > 0.25  # one in twelve by guessing


def test_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(shipped_vision, "teach", lambda directory: {"shape": 0.5})
    shipped_vision.main([str(tmp_path)])
    assert "shape 0.500" in capsys.readouterr().out
    with pytest.raises(UserError, match="DIR"):
        shipped_vision.main([])
