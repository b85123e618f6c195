"""What a command imports, which is most of what it takes until it begins."""

import subprocess
import sys

LATER = (
    "wandb", "datasets", "pandas", "pyarrow", "sklearn", "av", "timm", "num2words", "easy_vqa", "tensorboard",
    "nltk", "IPython", "gradio", "liger_kernel",
)  # fmt: skip
"""What a fit imports only where something asks for it."""

FIT = (
    "fit --model.name_or_path drawn-vlm --data.train Drawn --data.train.size 4 --data.batch_size 4 "
    "--trainer.max_steps 1 --trainer.logger false --trainer.enable_checkpointing false"
)


def python(code, folder):
    """What a Python process prints at the end."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_fit_imports_what_it_needs(tmp_path):
    code = (
        "import gc, sys\nfrom lightning_vlm.cli import main\n"
        f"assert main({FIT.split()}) == 0\n"
        f"print(gc.isenabled(), gc.get_freeze_count() > 100_000, *({{*{LATER}}} & {{*sys.modules}}))"
    )
    assert python(code, tmp_path) == "True True"


def test_the_package_and_families_import_nothing_heavy(tmp_path):
    code = (
        "import sys, lightning_vlm, lightning_vlm_callbacks, lightning_vlm.errors, lightning_vlm.nearest\n"
        "from lightning_vlm.cli import main\nassert main(['families', 'qwen']) == 0\n"
        "print({'torch', 'lightning', 'transformers', 'peft', 'numpy', 'PIL', 'wandb'} & {*sys.modules})"
    )
    assert python(code, tmp_path) == "set()"
