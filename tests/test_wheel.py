"""The wheels, installed where nothing of the repository is: what an index shows, and what a user gets."""

import email
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import readme_renderer.markdown

ROOT = Path(__file__).parent.parent
WITHOUT_REPOSITORY = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*words, **options):
    """A finished process, whose output stands in the error if it failed."""
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        env=WITHOUT_REPOSITORY,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", folder, ROOT, ROOT / "callbacks")
    return sorted(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def clean(wheels, tmp_path_factory):
    """A new environment with our wheels, which sees the packages that they need but not the repository."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", *wheels)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A folder of packages that is named in a .pth file: .pth files inside of it, such as that of an editable
    # installation of ours, aren't read.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder


@pytest.mark.parametrize("place", [0, 1], ids=["lightning-vlm", "callbacks"])
def test_what_an_index_shows(wheels, place):
    with zipfile.ZipFile(wheels[place]) as wheel:
        names = wheel.namelist()
        (file,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(wheel.read(file))
    assert any(name.endswith("/py.typed") for name in names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"Typing :: Typed"} <= {*metadata.get_all("Classifier")}
    readme = metadata.get_payload()
    page = readme_renderer.markdown.render(readme)
    assert page is not None
    assert "<h1" in page
    # Nothing on the page leads into a repository that isn't there.
    assert 'href="docs' not in page
    assert "<img" not in page or 'src="http' in page
    assert "](" not in page


def test_the_command(clean, tmp_path):
    command = clean / "bin" / "lightning-vlm"
    assert run(command, "--version", cwd=tmp_path).startswith("lightning-vlm ")
    place = run(
        clean / "bin" / "python", "-c", "import lightning_vlm; print(lightning_vlm.__file__)", cwd=tmp_path
    )
    assert Path(place.strip()).is_relative_to(clean)
    row = '{"messages": [{"role": "user", "content": "%d?"}, {"role": "assistant", "content": "Yes."}]}\n'
    (tmp_path / "train.jsonl").write_text("".join(row % number for number in range(40)))
    words = ("--config", "recipes/lora", "--model.name_or_path", "drawn-vlm", "--data.train", "train.jsonl")
    shown = run(command, "fit", *words, "--trainer.max_steps", "1", cwd=tmp_path)
    assert "checkpoint" in shown


def test_type_checkers_see_the_types(clean, tmp_path):
    (tmp_path / "user.py").write_text(
        "from lightning_vlm_callbacks import GradientMonitor\nGradientMonitor(every_n_steps='often')\n"
    )
    # Others' packages are left out, as reading them takes minutes.
    others = "".join(
        f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in ("torch", "lightning", "torchvision", "peft")
    )
    (tmp_path / "mypy.ini").write_text(f"[mypy]\n{others}")
    words = (sys.executable, "-m", "mypy", "--python-executable", clean / "bin" / "python", "user.py")
    done = subprocess.run(
        [str(word) for word in words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert 'has incompatible type "str"' in done.stdout, done.stdout
