"""A Lightning project whose weights lie over several ranks, a piece on each, by FSDP2."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from tests.support.project import Block


def fsdp2(ranks: int = 2) -> dict[str, Any]:
    """Options of a Trainer on one of several ranks, whose data are already those of its rank."""
    strategy = ModelParallelStrategy(
        data_parallel_size=ranks, tensor_parallel_size=1, process_group_backend="gloo"
    )
    return {"strategy": strategy, "devices": ranks, "use_distributed_sampler": False}


class Net(nn.Module):
    """Blocks and a head; three rows of the head don't divide evenly by two ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.drop = nn.Dropout(0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.drop(block(x))
        return self.head(x)


class Pieces(LightningModule):
    """Regression of `tests.support.project.Samples`. On one device it is whole.

    Args:
        lr: Of AdamW.
        dropout: Behind each block.
    """

    def __init__(self, lr: float = 0.02, dropout: float = 0.0) -> None:
        super().__init__()
        self.lr, self.dropout = lr, dropout

    def configure_model(self) -> None:
        if hasattr(self, "net"):
            return
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = Net()
        self.net.drop.p = self.dropout
        if self.device_mesh is not None:
            from torch.distributed.fsdp import fully_shard

            for unit in (*self.net.blocks, self.net):
                fully_shard(unit, mesh=self.device_mesh["data_parallel"])

    def losses(self, batch: list[Tensor]) -> Tensor:
        """The loss of each sample."""
        x, y, _ = batch
        return (self.net(x)[:, :2] - y).square().sum(1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.losses(batch).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.losses(batch).mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr)


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights and buffers of a module, whole. All ranks must call it."""
    return {name: whole(value) for name, value in module.state_dict().items()}


def whole(tensor: Tensor) -> Tensor:
    """A copy of a tensor, from its pieces if it lies over several ranks."""
    found = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found.detach().clone()


class KeptMetrics(Logger):
    """What was logged, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, float] = {}

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        return None

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows |= {f"{step} {name}": float(value) for name, value in metrics.items()}
