"""How much memory each process takes while a model in pieces is loaded.

`python -m tools.reliability.sharded_memory` counts the memory of each process alone (RssAnon of Linux) every
5 ms, over what it had before. Pages of the model's file that the first process reads are the system's: they
are shared, and given back when they are needed.
"""

import tempfile
import threading
import time
from pathlib import Path

from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support import tiny
from tests.support.ranks import call_on_ranks
from tests.support.sharded import Fit, make_module, make_trainer


def build(folder: Path) -> float:
    """A LLaVA whose language model has 24 layers of width 1024; returns its size in MiB."""
    tiny.build("llava", folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    config = AutoConfig.from_pretrained(folder)
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "head_dim": 128}
    for name, value in {**sizes, "num_attention_heads": 8, "num_key_value_heads": 8}.items():
        setattr(config.text_config, name, value)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**20


def own_memory() -> float:
    """The memory of this process that no file stands behind, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("sharded_memory reads /proc/self/status, which this system doesn't have")


def load(folder: Path, ranks: int) -> list[float]:
    """Load the model on one of so many processes; returns the most memory and that at the end, in MiB."""
    before = own_memory()
    most, ended = [before], threading.Event()

    def watch() -> None:
        while not ended.is_set():
            most.append(max(most.pop(), own_memory()))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    module = make_module(Fit(folder, "llava"))
    trainer = make_trainer(ranks, default_root_dir=folder)
    trainer.strategy.connect(module)
    trainer.strategy.setup_environment()
    module.trainer = trainer
    module.configure_model()
    ended.set()
    watcher.join()
    return [most[0] - before, own_memory() - before]


def main() -> None:
    """Print it for 2 and 4 processes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = call_on_ranks(build, folder, ranks=1)[0]
        print(f"the model has {size:,.0f} MiB")
        for ranks in (2, 4):
            for rank, (most, end) in enumerate(call_on_ranks(load, folder, ranks, ranks=ranks)):
                print(f"{ranks} processes, number {rank}: {most:,.0f} MiB at most, {end:,.0f} MiB at the end")


if __name__ == "__main__":
    main()
