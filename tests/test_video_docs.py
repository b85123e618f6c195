"""What docs/video.md shows is run as it stands there."""

import json
import re
from pathlib import Path

import PIL.Image
import pytest
import yaml

from lightning_vlm import VLMDataModule
from lightning_vlm.data.read.readers import Messages, read
from lightning_vlm.data.video.sampling import VideoSampling
from tests.support.videos import write_numbered
from tests.test_configs import ROOT

TEXT = (Path(__file__).parent.parent / "docs" / "video.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


OWN, OTHERS = (block.splitlines() for block in blocks("json"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the snippets name."""
    monkeypatch.chdir(tmp_path)
    write_numbered(Path("a.mp4"), 50)
    Path("frames").mkdir()
    for number in (1, 2):
        PIL.Image.new("RGB", (64, 48)).save(f"frames/{number}.png")
    return tmp_path


@pytest.mark.parametrize("row", [*OWN, *OTHERS])
def test_rows_are_read(row: str, folder: Path) -> None:
    Path("train.jsonl").write_text(row + "\n")
    source = (Messages if row in OWN else read)("train.jsonl")
    (conversation,) = (source[index] for index in range(len(source)))
    assert len(conversation.videos) == 1
    assert json.loads(row)


def test_settings_of_the_config(folder: Path) -> None:
    (text,) = blocks("yaml")
    Path("train.jsonl").write_text(OWN[0] + "\n")
    data = VLMDataModule(**yaml.safe_load(text)["data"])
    assert data.video == VideoSampling(fps=1, max_frames=32, max_pixels_per_frame=100_352)
    assert len(data.source("train")) == 1
    named = re.findall(r"`(\w+)`", TEXT.split("| `data.video` | |")[1].split("\n\n")[0])
    assert set(named) == set(VideoSampling.__dataclass_fields__)


@pytest.mark.parametrize("code", blocks("python"))
def test_python(code: str, folder: Path) -> None:
    exec(code, {})
    if "drawn" in code:
        assert len(read("drawn/train.jsonl")) == 4


def test_commands_name_what_there_is() -> None:
    (commands,) = blocks("bash")
    assert "configs/examples/video.yaml" in commands
    assert commands.splitlines()[0] in (ROOT / "examples" / "video.yaml").read_text().replace(
        ".venv/bin/", ""
    )
