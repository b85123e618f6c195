"""Configs that come with the package are found by name, from anywhere, also in a wheel."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import lightning_vlm
from lightning_vlm.cli import main
from lightning_vlm.compare.settings import read_settings
from lightning_vlm.config.shipped import find_config, folder, shipped
from lightning_vlm.config.yaml_file import read_config
from lightning_vlm.errors import UserError

ROOT = Path(__file__).parent.parent
TWO = ["--config", "quickstart", "--config=recipes/callbacks.yaml"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_each_says_what_it_is_for_in_its_first_line():
    assert len(shipped()) == len(list((ROOT / "configs").rglob("*.yaml")))
    purposes = [config.purpose for config in shipped().values()]
    assert len(set(purposes)) == len(purposes)
    for config in shipped().values():
        first = config.path.read_text("utf-8").splitlines()[0]
        assert first.startswith("# "), config.name
        assert first.endswith((".", ":")), config.name
        assert 10 < len(config.purpose) < 110, config.name


@pytest.mark.parametrize(
    "name", ["recipes/callbacks", "recipes/callbacks.yaml", "configs/recipes/callbacks.yaml"]
)
def test_the_ways_to_write_a_name(name):
    assert find_config(name) == ROOT / "configs" / "recipes" / "callbacks.yaml"


def test_a_file_of_the_user_wins():
    for name in ("quickstart.yaml", "recipes/callbacks"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("model: {}")
    assert find_config("quickstart") == Path("quickstart.yaml")
    assert find_config("recipes/callbacks") == Path("recipes/callbacks")
    assert find_config("recipes/callbacks.yaml") == ROOT / "configs" / "recipes" / "callbacks.yaml"


def test_a_folder_of_the_user_does_not():
    Path("recipes/callbacks").mkdir(parents=True)
    assert find_config("recipes/callbacks") == ROOT / "configs" / "recipes" / "callbacks.yaml"


def test_no_name_leads_out_of_the_folder():
    assert find_config("recipes/../quickstart") is None
    assert find_config("../configs/quickstart") is None


def test_a_run_of_two_and_its_saved_config(capsys):
    few = [
        "--trainer.max_steps",
        "2",
        "--trainer.val_check_interval",
        "1",
        "--trainer.limit_val_batches",
        "1",
        "--data.batch_size",
        "2",
    ]
    quick = ["--report", "false", "--data.eval_batch_size", "2", "--model.generation", "null"]
    assert main(["fit", *TWO, *few, *quick]) == 0
    (saved,) = Path().rglob("config.yaml")
    names = [
        one["class_path"].rpartition(".")[2]
        for one in yaml.safe_load(saved.read_text())["trainer"]["callbacks"]
    ]
    assert names[:3] == ["EarlyStopCheckpoint", "NonFiniteGuard", "GradientMonitor"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(saved), "--config", "recipes/callbacks", "--print_config"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.count("EarlyStopCheckpoint") == 1


def test_an_error_in_one_names_its_file(monkeypatch, capsys):
    assert main(["fit", "--config", "recipes/callbacks", "--model.name_or_path", "drawn-vlm"]) == 2
    monkeypatch.chdir(ROOT)
    assert read_config("recipes/callbacks").name == "configs/recipes/callbacks.yaml"
    assert read_config("configs/recipes/callbacks.yaml").name == "configs/recipes/callbacks.yaml"


def test_compare_finds_them_too():
    assert read_settings(Path("quickstart")).generation == {"max_new_tokens": 8}
    with pytest.raises(UserError, match=r"config quickstrt: found no such file; did you mean quickstart\?"):
        read_settings(Path("quickstrt"))


def test_the_table(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : len(shipped()) + 1]] == [*shipped()]
    assert main(["recipes", "examples/"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.split("\n\n")[0].splitlines()[1:]]
    assert names == [name for name in shipped() if name.startswith("examples/")]
    assert main(["recipes", "scale"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^scale/many-nodes.sbatch +A run on several machines", shown, re.M)
    assert re.search(r"^scale/ray_train.py +A run on a Ray cluster", shown, re.M)
    assert main(["recipes", "model"]) == 2
    assert "recipes model: found no config and no folder; did you mean models?" in capsys.readouterr().err


def test_one_is_printed_to_be_copied(capsys):
    assert main(["recipes", "recipes/callbacks"]) == 0
    assert capsys.readouterr().out == (ROOT / "configs/recipes/callbacks.yaml").read_text("utf-8")
    assert main(["recipes", "recipes/callback"]) == 2
    error = capsys.readouterr().err
    assert "did you mean recipes/callbacks?" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("name", ["scale/many-nodes.sbatch", "scale/ray_train.py", "scale/skypilot.yml"])
def test_the_script_of_a_job_is_printed_too(capsys, name):
    assert main(["recipes", name]) == 0
    assert capsys.readouterr().out == (ROOT / "configs" / name).read_text("utf-8")


def test_in_a_wheel_they_lie_inside_the_package(tmp_path):
    """The build copies the folder as pyproject.toml says; here it is copied by hand."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert '[tool.hatch.build.targets.wheel.force-include]\n"configs" = "lightning_vlm/configs"' in text
    package = Path(lightning_vlm.__file__).parent
    shutil.copytree(
        package, tmp_path / "lightning_vlm", ignore=lambda _, names: {*names} & {"__pycache__", "drawn_vlm"}
    )
    shutil.copytree(folder(), tmp_path / "lightning_vlm" / "configs")
    code = (
        "import json, lightning_vlm\nfrom lightning_vlm.config.shipped import find_config, shipped\n"
        "print(json.dumps([lightning_vlm.__file__, str(find_config('quickstart')), [*shipped()]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    file, quickstart, names = json.loads(done.stdout)
    assert Path(file).parent == tmp_path / "lightning_vlm"
    assert Path(quickstart) == tmp_path / "lightning_vlm" / "configs" / "quickstart.yaml"
    assert names == [*shipped()]


def test_a_list_of_callbacks_that_takes_the_place_of_another_says_so(capsys):
    Path("mine.yaml").write_text("trainer: {callbacks: [{class_path: EarlyStopCheckpoint}]}")
    words = ["fit", "--model.name_or_path", "drawn-vlm", "--config", "recipes/lora", "--print_config"]
    with (
        pytest.warns(UserWarning, match=r"mine\.yaml: .*NonFiniteGuard won't run; write callbacks\+"),
        pytest.raises(SystemExit),
    ):
        main([*words[:-1], "--config", "mine.yaml", words[-1]])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert len(shown["trainer"]["callbacks"]) == 1
