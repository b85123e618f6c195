"""A run on a Ray cluster, by Ray Train: one process for each GPU, started again where a machine is lost.

    lightning-vlm recipes scale/ray_train.py > ray_train.py
    python ray_train.py --workers 8 --config models/qwen2.5-vl-7b --config recipes/lora --data.train /a.jsonl

Needs `pip install 'ray[train]'` beside lightning-vlm on each machine. All words but those below are words of
`lightning-vlm fit`. The data, the model and the folder of the run lie where all machines see them, under
whole paths. A run that Ray starts again goes on from its newest checkpoint.
"""

import argparse
import os

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

STRATEGY = '{"class_path": "ray.train.lightning.RayDDPStrategy"}'
PLUGIN = '{"class_path": "ray.train.lightning.RayLightningEnvironment"}'
RAY = ("--trainer.strategy", STRATEGY, "--trainer.plugins", PLUGIN, "--trainer.devices", "auto")


def train(given: dict) -> None:
    """Run `lightning-vlm fit` in a process that Ray has started."""
    from lightning_vlm.cli import main

    os.chdir(given["folder"])
    code = main(["fit", *given["words"], *RAY, "--ckpt_path", "last"])
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1, help="processes, one for each GPU")
    parser.add_argument("--cpu", action="store_true", help="without GPUs, to try it")
    parser.add_argument("--tries", type=int, default=3, help="how often a run is started again")
    options, words = parser.parse_known_args()
    trainer = TorchTrainer(
        train,
        train_loop_config={"folder": os.getcwd(), "words": words},
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=not options.cpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=options.tries)),
    )
    trainer.fit()
