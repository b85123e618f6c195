"""What goes wrong outside of us: at most three lines, the cause first, and the fix."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wandb
from lightning.fabric.strategies.model_parallel import _setup_device_mesh
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils.data import DataLoader, Dataset

from lightning_vlm.cli import main
from lightning_vlm.errors import DataError, UserError
from lightning_vlm.failures.describe import DEFECT, USER, explain, message_and_code
from lightning_vlm.failures.texts import EXTRAS
from lightning_vlm.models.parts import find_parts

FIT = (
    "fit --model.name_or_path drawn-vlm --model.adapt {projector: full} "
    "--data.train Drawn --data.train.split train "
    "--data.train.size 8 --data.batch_size 2 --trainer.max_steps 1 --trainer.logger false "
    "--trainer.enable_checkpointing false --trainer.enable_progress_bar false"
)


def fit(*words):
    plan = "{projector: full}"
    first = [plan if word == "PLAN" else word for word in FIT.replace(plan, "PLAN").split()]
    return main([*first, *words])


def refused(capsys, *words, code=2):
    assert fit(*words) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    message = err[err.index("lightning-vlm: error: ") :].strip()
    assert len(message.splitlines()) <= 3
    return message.removeprefix("lightning-vlm: error: ")


SETTINGS = {
    "TensorBoard": (
        ["--trainer.logger", "{class_path: TensorBoardLogger, init_args: {save_dir: x}}"],
        "TensorBoardLogger: this needs the package tensorboard",
    ),
    "MLflow": (
        ["--trainer.logger", "{class_path: MLFlowLogger}"],
        "MLFlowLogger: this needs the package mlflow, which isn't installed; pip install",
    ),
    "Comet": (
        ["--trainer.logger", "{class_path: CometLogger}"],
        "CometLogger: this needs the package comet-ml",
    ),
    "FSDP on a CPU": (["--trainer.strategy", "fsdp"], "trainer.strategy: fsdp needs GPUs"),
    "DeepSpeed": (
        ["--trainer.strategy", "deepspeed"],
        "trainer.strategy: a VLMModule doesn't run with deepspeed; expected auto or ddp",
    ),
    "no GPU": (["--trainer.accelerator", "gpu"], "trainer.accelerator: found no GPU that torch can use"),
    "no TPU": (["--trainer.accelerator", "tpu"], "there is no TPU here that torch can use; expected auto"),
    "a precision's package": (
        ["--trainer.precision", "transformer-engine"],
        "this needs the package transformer_engine",
    ),
    "best": (
        ["--ckpt_path", "best"],
        "--ckpt_path best: found no EarlyStopCheckpoint in the config; give the path of a checkpoint",
    ),
    "hpc": (["--ckpt_path", "hpc"], "ckpt_path: hpc is a checkpoint that SLURM made"),
    "a bucket": (["--ckpt_path", "s3://bucket/x.ckpt"], "this path needs the package s3fs"),
    "a learning rate": (
        ["--model.optimizer", "{class_path: torch.optim.AdamW, init_args: {lr: -1}}"],
        "model.optimizer: Invalid learning rate: -1",
    ),
    "workers": (
        ["--data.num_workers", "-1"],
        "data.num_workers: found -1; expected a whole number, at least 0",
    ),
    "a seed": (["--seed_everything", "-5"], "-5 is not in bounds"),
    "validation's interval": (
        ["--trainer.val_check_interval", "100", "--data.val", "Drawn", "--data.val.size", "2"],
        "`val_check_interval` (100) must be less than",
    ),
    "a file for a folder": (
        ["--trainer.logger", "{class_path: CSVLogger, init_args: {save_dir: file}}"],
        "found a file where a folder is needed at ",
    ),
    "no model": (["--model.name_or_path", "drawn_vlm"], "did you mean drawn-vlm?"),
    "a file for a model": (["--model.name_or_path", "file"], "model 'file': found a file; expected a folder"),
}


@pytest.mark.parametrize(("words", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_others_refuse(tmp_path, monkeypatch, capsys, words, expected):
    if torch.cuda.is_available() and "GPU" in expected:
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("file").write_text("")
    assert expected in refused(capsys, *words)


def test_nothing_is_scored_where_there_is_no_last_checkpoint(tmp_path, monkeypatch, capsys):
    """Lightning warns and scores the base model."""
    monkeypatch.chdir(tmp_path)
    words = "test --model.name_or_path drawn-vlm --data.test Drawn --data.test.size 2 --trainer.logger false"
    assert main([*words.split(), "--ckpt_path", "last"]) == 2
    assert "ckpt_path: found no last checkpoint" in capsys.readouterr().err


def test_weights_and_biases_without_login(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "NETRC", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    wandb.teardown()  # an earlier test may have set it up, and its settings stay
    try:
        message = refused(capsys, "--trainer.logger", "{class_path: WandbLogger, init_args: {project: x}}")
    finally:
        wandb.teardown()
    assert "Weights & Biases: found no login on this machine; run wandb login" in message
    assert "WANDB_MODE=offline" in message


OWN = """
import lightning.pytorch as L
class Boom(L.Callback):
    def __init__(self, what: str):
        self.what = what
    def on_train_batch_end(self, *args):
        exec(self.what)
class Odd(L.Callback):
    def __init__(self, size: int):
        raise ValueError("size must be even")
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """A module of the user's, `own_boom`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("own_boom.py").write_text(OWN)
    yield
    sys.modules.pop("own_boom", None)


def boom(what):
    return ["--trainer.callbacks+", f"{{class_path: own_boom.Boom, init_args: {{what: {json.dumps(what)}}}}}"]


def test_an_error_in_the_users_own_code_names_its_line(own_code, capsys):
    message = refused(capsys, *boom("{}['x']"))
    assert message.startswith("KeyError: 'x'\nraised by on_train_batch_end in ")
    assert "own_boom.py:7; --debug shows the whole traceback" in message
    message = refused(capsys, "--trainer.callbacks+", "{class_path: own_boom.Odd, init_args: {size: 3}}")
    assert message.startswith("ValueError: size must be even\nraised by __init__ in ")


def test_ctrl_c_and_sigterm_say_how_far_the_run_came(own_code, capsys):
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert fit(*boom("raise KeyboardInterrupt")) == 130
        found = capsys.readouterr()
        assert found.err.endswith("error: stopped by Ctrl-C after 1 step; no checkpoint was saved\n")
        assert re.search(r"^training    \d+ s, 1 step, [\d,]+ tokens per second$", found.out, re.MULTILINE)
        saving = (
            "{class_path: ModelCheckpoint, init_args: {dirpath: saved, every_n_train_steps: 1, filename: x}}"
        )
        words = [
            "--trainer.callbacks+",
            saving,
            "--trainer.enable_checkpointing",
            "true",
            "--trainer.max_steps",
            "3",
        ]
        message = refused(
            capsys, *words, *boom("if args[0].global_step == 2: raise KeyboardInterrupt"), code=130
        )
        saved = Path("saved/x.ckpt").resolve()
        assert message.endswith(f"the newest checkpoint is {saved}; continue with --ckpt_path {saved}")
        ends = boom("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
        message = refused(capsys, *ends, "--trainer.max_steps", "5", code=143)
        assert message.startswith("stopped by SIGTERM after ")
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning has switched it off


INTERRUPTED_IMPORT = """
import os, signal, sys
from lightning_vlm.cli import main

class Interrupt:
    left = ["{module}"]

    def find_spec(self, name, path=None, target=None):
        if name in self.left:
            self.left.remove(name)
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
sys.argv = ["lightning-vlm", "fit", "--config", "never-read.yaml"]
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["numpy", "numpy.linalg"])
def test_ctrl_c_ends_the_imports(module):
    """torch goes on without numpy, or with half of it, where a `KeyboardInterrupt` ends that import."""
    command = [sys.executable, "-c", INTERRUPTED_IMPORT.format(module=module)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (130, "lightning-vlm: error: stopped by Ctrl-C\n")


def raised(function):
    """The exception of a call."""
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


class Faulty(Dataset):
    def __init__(self, fault):
        self.fault = fault

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.fault()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def bad_sample():
    raise DataError("x.jsonl:3", "weight", "-1", "a finite number >= 0")


def in_worker(fault):
    return raised(lambda: list(DataLoader(Faulty(fault), num_workers=1, multiprocessing_context="fork")))


def full_disk():
    with open("/dev/full", "w") as file:
        file.write("x" * 100_000)


def taken_port():
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True)
    torch.distributed.TCPStore("127.0.0.1", store.port, is_master=True)


RANK = """

-- Process 1 terminated with the following error:
Traceback (most recent call last):
  File "x.py", line 1
lightning_vlm.errors.UserError: no samples"""
EXCEPTIONS = {
    "memory of the CPU": (
        lambda: raised(lambda: torch.empty(1 << 50, dtype=torch.uint8)),
        "out of memory on the CPU (1,125,899.9 GB more were asked for)\nlower data.batch_size "
        "(data.max_tokens where it is set) and raise trainer.accumulate_grad_batches",
    ),
    "a model in more pieces than processes": (
        lambda: raised(lambda: _setup_device_mesh(8, 1, 2, torch.device("cpu"))),
        "trainer.strategy.init_args.data_parallel_size: found 8; expected 2, the number of processes",
    ),
    "memory of Python": (
        lambda: raised(lambda: bytearray(1 << 60)),
        "out of memory on the CPU\nlower data.batch_size",
    ),
    "memory of a GPU": (
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        "out of memory on the GPU (2.00 GiB more were asked for)\nlower data.batch_size",
    ),
    # One that is killed before torch listens for the signal is only found to be gone.
    "a worker that is killed": (lambda: in_worker(kill), ("a data worker was killed", "a data worker ended")),
    "a worker that is gone": (
        lambda: RuntimeError("DataLoader worker (pid(s) 7856, 7857) exited unexpectedly"),
        "a data worker ended without an error message",
    ),
    "an error in a worker": (lambda: in_worker(lambda: {}["x"]), "a data worker failed with KeyError: 'x'"),
    "a bad sample in a worker": (
        lambda: in_worker(bad_sample),
        "x.jsonl:3: weight: found -1; expected a finite number >= 0",
    ),
    "a full disk": (lambda: raised(full_disk), "the disk is full"),
    "permission": (
        lambda: PermissionError(errno.EACCES, "Permission denied", "/root/x"),
        "permission denied at /root/x",
    ),
    "a folder for a file": (
        lambda: raised(Path("/tmp").read_bytes),
        "found a folder at /tmp; expected a file",
    ),
    "a port": (lambda: raised(taken_port), "the network port is in use, probably by another run"),
    "a module": (
        lambda: raised(lambda: __import__("no_such_package.inside")),
        "this needs the package no_such_package, which isn't installed",
    ),
    "Half on a CPU": (
        lambda: RuntimeError("\"addmm_impl_cpu_\" not implemented for 'Half'"),
        "the device can't compute in Half; choose another trainer.precision",
    ),
    "GPUs that aren't there": (
        lambda: RuntimeError("You requested gpu: [0, 1, 2, 3]\n But your machine only has: [0, 1]"),
        "trainer.devices: asked for the GPUs [0, 1, 2, 3], but the machine has [0, 1]",
    ),
    "what can't be compiled": (
        InvalidCxxCompiler,
        "model.compile: torch.compile can't compile this model here (No working C++ compiler found in",
    ),
    "a rank that ended": (
        lambda: RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.1]:52360."),
        "another process of the run ended first",
    ),
    "a rank that was killed": (
        lambda: RuntimeError(
            "[/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:11141: Connection reset by peer"
        ),
        "another process of the run ended first; its own message says why, but one that was killed has none",
    ),
    "another rank's error": (
        lambda: RuntimeError(RANK),
        "no samples",
    ),
    "the network": (
        lambda: ConnectionError("HTTPSConnectionPool: Max retries exceeded"),
        "the network can't be reached",
    ),
}


@pytest.mark.parametrize(("make", "expected"), EXCEPTIONS.values(), ids=EXCEPTIONS)
@pytest.mark.filterwarnings("ignore")
def test_exceptions_of_others(make, expected):
    error = make()
    message = explain(error)
    assert message is not None, repr(error)
    assert message.startswith(expected)
    assert len(message.splitlines()) <= 3


def test_the_cause_is_found_behind_what_wraps_it():
    def wrap():
        try:
            raise UserError("data.train: found no samples")
        except UserError as error:
            raise ValueError("Problem with given class_path 'x.Y'") from error

    assert explain(raised(wrap)) == "data.train: found no samples"


def test_a_defect_keeps_its_traceback_in_a_file():
    error = raised(lambda: find_parts(None))
    message, code = message_and_code(error, ["fit", "--config", "c.yaml"])
    lines = message.splitlines()
    assert code == DEFECT
    assert code != USER
    assert lines[0].startswith(f"{type(error).__name__}: ")
    assert len(lines) <= 3
    assert "this looks like a defect of lightning-vlm; please report it" in lines[-1]
    kept = Path(lines[-1].rpartition(" is in ")[2])
    text = kept.read_text()
    kept.unlink()
    assert "lightning-vlm fit --config c.yaml" in text
    assert "Traceback (most recent call last)" in text
    assert f"torch {torch.__version__.split('+')[0]}" in text


def test_extras_that_are_named_are_there():
    table = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    for name in EXTRAS:
        assert re.search(rf"^{name} = \[", table, re.MULTILINE), name
