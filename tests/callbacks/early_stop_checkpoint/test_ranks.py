"""Several ranks save, resume and stop together."""

import os

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_vlm_callbacks import EarlyStopCheckpoint

from tests.support.checkpoints import assert_same, names_in


def _on_rank(run, tmp_path):
    options = {
        "data": {"stateful": False, "size": 96},
        "trainer": {"devices": 2, "strategy": "ddp", "accumulate_grad_batches": 2},
        "keep_periodic": None,
    }
    whole, trainer, _ = run("whole", callbacks=[OwnChance()], **options)
    files = sorted((tmp_path / "whole").glob("step-*.ckpt"))
    resumed, *_ = run("resumed", ckpt_path=files[0], chance=100 + trainer.global_rank, **options)
    states = torch.load(files[0], weights_only=True)["callbacks"]
    ranks = next(value["ranks"] for key, value in states.items() if key.startswith("EarlyStopCheckpoint"))
    apart = not torch.equal(ranks[0]["random"]["torch"], ranks[1]["random"]["torch"])
    return {"whole": whole, "resumed": resumed, "apart": apart, "epochs": trainer.current_epoch}


class OwnChance(Callback):
    """Dropout of its own on each rank."""

    def on_train_start(self, trainer, module):
        torch.manual_seed(trainer.global_rank)


def test_two_ranks(on_two_ranks, run, tmp_path):
    ranks = on_two_ranks(_on_rank, run, tmp_path)
    for rank in ranks:
        assert_same(rank["whole"], rank["resumed"])
        assert rank["apart"]
        assert rank["epochs"] == 3
    for name, value in ranks[0]["whole"].items():
        if name.startswith("/model") and "running" not in name and "num_batches" not in name:
            assert torch.equal(value, ranks[1]["whole"][name]), name


def _stops_on_rank(run, tmp_path):
    class Disagree(Callback):
        """Better and better for rank 0, worse and worse for rank 1: in the mean always the same."""

        def on_validation_epoch_end(self, trainer, module):
            way = (-1, 1)[trainer.global_rank]
            module.log("score", torch.tensor(float(way * trainer.current_epoch)))

    _, trainer, keep = run(
        callbacks=[Disagree()],
        monitor="score",
        patience=2,
        data={"stateful": False},
        trainer={"max_epochs": 6, "devices": 2, "strategy": "ddp"},
    )
    return {"epochs": trainer.current_epoch, "best": keep.best_model_score}


def test_ranks_stop_together(on_two_ranks, run, tmp_path):
    assert on_two_ranks(_stops_on_rank, run, tmp_path) == [{"epochs": 3, "best": 0.0}] * 2


class Sharded(LightningModule):
    """A model whose weights lie half here, half there."""

    def configure_model(self):
        if hasattr(self, "net"):
            return
        from torch.distributed.fsdp import fully_shard

        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
        for layer in self.net:
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0].flatten(1)), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0].flatten(1)), batch[1])
        self.log("val/loss", loss, sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def _sharded_on_rank(digits, make_trainer, tmp_path):
    def fit(name, ckpt_path=None):
        keep = EarlyStopCheckpoint("val/loss", dirpath=str(tmp_path / name), keep_periodic=None)
        strategy = ModelParallelStrategy(
            data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo"
        )
        trainer = make_trainer(
            max_epochs=3, callbacks=[keep], enable_checkpointing=True, devices=2, strategy=strategy
        )
        module = Sharded()
        trainer.fit(module, digits.Digits(stateful=False), ckpt_path=ckpt_path)
        trainer.strategy.barrier()
        return {name: one.to_local().clone() for name, one in module.state_dict().items()}

    whole = fit("whole")
    return {"whole": whole, "resumed": fit("resumed", tmp_path / "whole/step-00000004.ckpt")}


def test_sharded(on_two_ranks, digits, make_trainer, tmp_path):
    """A checkpoint is a folder then."""
    for rank in on_two_ranks(_sharded_on_rank, digits, make_trainer, tmp_path):
        assert_same(rank["whole"], rank["resumed"])
    folder = tmp_path / "whole"
    assert [(folder / name).is_dir() for name in names_in(folder)] == [True] * 3
    assert (folder / os.readlink(folder / "latest.ckpt")).is_dir()
