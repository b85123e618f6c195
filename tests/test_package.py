import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lightning_vlm
from lightning_vlm import torchvision_mend


def test_what_the_package_gives():
    assert lightning_vlm.VLMModule.__module__ == "lightning_vlm.module"
    assert lightning_vlm.VLMDataModule.__module__ == "lightning_vlm.data.datamodule"
    with pytest.raises(AttributeError, match="Trainer"):
        lightning_vlm.Trainer  # noqa: B018


def test_torchvision_works_beside_this_torch():
    from torchvision.transforms import v2

    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    assert v2.Resize((4, 4))(picture).shape == (3, 4, 4)


def test_the_mend_is_gone_once_torchvision_is_there():
    import torchvision  # noqa: F401

    before = list(sys.meta_path)
    torchvision_mend.install()
    assert sys.meta_path == before
    assert not any(type(finder).__module__ == torchvision_mend.__name__ for finder in before)


def test_the_mend_leaves_a_whole_torchvision_alone(tmp_path):
    """A folder without a compiled library stands for one whose library loads."""
    assert not torchvision_mend._is_broken(tmp_path)
    if torch.version.cuda is None and torch.version.hip is None:
        (tmp_path / "_C.so").write_bytes(b"not a library")
        assert torchvision_mend._is_broken(tmp_path)


def test_callbacks_do_without_everything_of_ours():
    """What they may not import can't be imported here at all."""
    mend = Path(torchvision_mend.__file__).read_text("utf-8")  # by itself, as it is no matter of ours here
    names = ("transformers", "peft", "bitsandbytes", "wandb", "lightning_vlm")
    # Lightning itself imports transformers where that is installed, so it comes before.
    block = f"import lightning.pytorch\nsys.modules.update(dict.fromkeys({names}))\n"
    code = f"{mend}\ninstall()\n{block}import lightning_vlm_callbacks\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_table_of_families_has_each():
    from lightning_vlm.models.tiny import FAMILIES

    table = (Path(__file__).parent.parent / "docs/families.md").read_text("utf-8")
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [row[0].strip("| ") for row in rows[2:]] == [*FAMILIES]
    assert "FAILED" not in table
