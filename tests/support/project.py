"""A small Lightning project that has all that the callbacks work on: parts, LoRA, tasks, a validation."""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning_vlm_callbacks import TaskWeights
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Project(LightningModule):
    """Regression; each sample belongs to one of two tasks. Blocks have LoRA, the head trains in full."""

    def __init__(self, lr: float = 0.02) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])
        inject_adapter_in_model(LoraConfig(r=4, target_modules=["up", "down"]), self.blocks)
        self.head = nn.Linear(8, 2)
        self.tasks = TaskWeights(["small", "large"])
        self.lr = lr

    def losses(self, batch: list[Tensor]) -> Tensor:
        """The loss of each sample."""
        x, y, _ = batch
        for block in self.blocks:
            x = block(x)
        return (self.head(x) - y).square().sum(1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        ids = batch[2]
        self.tasks.rows = ids
        losses = self.losses(batch)
        self.tasks.add_rows(losses.detach(), ids)
        loss = (self.tasks.weights[ids] * losses).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", self.losses(batch).mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=self.lr)


class Samples(LightningDataModule):
    """Each rank has its own samples. A run continues in mid-epoch where it was."""

    def __init__(self, size: int = 32, batch_size: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(size, 8, generator=generator)
        ids = torch.arange(size) // 2 % 2
        y = torch.stack([x[:, 0] * (1 + 5 * ids), x[:, 1] - ids], 1)
        self.samples = TensorDataset(x, y, ids)
        self.batch_size = batch_size

    def train_dataloader(self) -> StatefulDataLoader:
        assert self.trainer is not None
        mine = range(self.trainer.global_rank, len(self.samples), self.trainer.world_size)
        return StatefulDataLoader(torch.utils.data.Subset(self.samples, mine), self.batch_size)

    def val_dataloader(self) -> StatefulDataLoader:
        return StatefulDataLoader(self.samples, 16)
