import subprocess
import sys
from pathlib import Path

import lightning_vlm_callbacks
import pytest
import torch
from lightning_vlm_callbacks.compat import torchvision as torchvision_fix

import lightning_vlm


def test_what_the_package_gives():
    assert lightning_vlm.VLMModule.__module__ == "lightning_vlm.module"
    assert lightning_vlm.VLMDataModule.__module__ == "lightning_vlm.data.datamodule"
    with pytest.raises(AttributeError, match="Trainer"):
        lightning_vlm.Trainer  # noqa: B018


def test_torchvision_works_beside_this_torch():
    from torchvision.transforms import v2

    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert v2.Resize((4, 4))(picture).shape == (3, 4, 4)


def test_the_fix_is_gone_once_torchvision_is_there():
    import torchvision  # noqa: F401

    before = list(sys.meta_path)
    torchvision_fix.install()
    assert sys.meta_path == before
    assert not any(type(finder).__module__ == torchvision_fix.__name__ for finder in before)


def test_the_fix_leaves_a_whole_torchvision_alone(tmp_path):
    """A folder without a compiled library stands for one whose library loads."""
    assert not torchvision_fix.is_broken(tmp_path)
    if torch.version.cuda is None and torch.version.hip is None:
        (tmp_path / "_C.so").write_bytes(b"not a library")
        assert torchvision_fix.is_broken(tmp_path)


def test_callbacks_do_without_everything_of_ours():
    """What they may not import can't be imported here at all. Beside a CPU-only torch, Lightning itself
    imports only because `lightning_vlm_callbacks` came first."""
    names = ("transformers", "peft", "bitsandbytes", "wandb", "lightning_vlm")
    # Lightning itself imports transformers where that is installed, so it comes before.
    code = f"""
import sys
import lightning_vlm_callbacks
assert "torch" not in sys.modules, "importing the package alone is quick"
import lightning.pytorch
sys.modules.update(dict.fromkeys({names}))
from lightning_vlm_callbacks import *
print(StagedUnfreezing.__module__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "lightning_vlm_callbacks.staged_unfreezing.callback"


def test_lightning_imports_after_it_has_failed():
    """As in a notebook whose first cell lacks the import that fixes it."""
    code = """
try:
    import lightning.pytorch
except RuntimeError as error:
    assert "torchvision::nms" in str(error)
import lightning_vlm_callbacks
import lightning.pytorch
lightning_vlm_callbacks.GradientMonitor()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_dir_shows_the_public_names():
    assert dir(lightning_vlm) == sorted([*lightning_vlm.__all__, "__version__"])
    assert dir(lightning_vlm_callbacks) == sorted(lightning_vlm_callbacks.__all__)
    for name in lightning_vlm_callbacks.__all__:
        assert getattr(lightning_vlm_callbacks, name).__name__ == name
    with pytest.raises(AttributeError, match="GradientMonitr"):
        lightning_vlm_callbacks.GradientMonitr  # noqa: B018


def test_the_table_of_families_has_each():
    from tests.support.tiny import FAMILIES

    table = (Path(__file__).parent.parent / "docs/families.md").read_text("utf-8").partition("## Every")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows[2:]] == [*FAMILIES]
    assert "FAILED" not in table
