"""A Lightning project that has nothing to do with ours: small pictures, a convolutional net, LightningCLI.

    python tests/callbacks/digits.py fit --config my.yaml

Tests load this file as the module `digits`.
"""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI, LRSchedulerCallable, OptimizerCallable
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader


class Block(nn.Module):
    """What has everything that can go wrong: weights, norm statistics, dropout."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.drop(torch.relu(self.norm(self.conv(x))))


class Classifier(LightningModule):
    """A stem, a list of blocks and a head."""

    def __init__(
        self,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        schedule: LRSchedulerCallable | None = None,
        interval: str = "step",
        width: int = 8,
        blocks: int = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(blocks))
        self.head = nn.Linear(width * 4, 10)
        self.optimizer, self.schedule, self.interval = optimizer, schedule, interval

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        x = self.stem(pictures)
        for block in self.blocks:
            x = block(x)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]), sync_dist=True)
        self.log("val/accuracy", (logits.argmax(1) == batch[1]).float().mean(), sync_dist=True)

    def configure_optimizers(self):
        # As most projects do it: what trains at the start is what the optimizer gets.
        optimizer = self.optimizer(one for one in self.parameters() if one.requires_grad)
        if self.schedule is None:
            return optimizer
        scheduler = {"scheduler": self.schedule(optimizer), "interval": self.interval, "monitor": "val/loss"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Digits(LightningDataModule):
    """The 8×8 digits of scikit-learn. With `stateful`, a run goes on in mid-epoch where it was."""

    def __init__(self, size: int = 128, batch_size: int = 16, stateful: bool = True) -> None:
        super().__init__()
        pictures, labels = load_digits(return_X_y=True)
        pictures = torch.tensor(pictures, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        labels = torch.tensor(labels)
        self.train = TensorDataset(pictures[:size], labels[:size])
        self.val = TensorDataset(pictures[-64:], labels[-64:])
        self.batch_size = batch_size
        self.loader = StatefulDataLoader if stateful else DataLoader

    def train_dataloader(self):
        return self.loader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, 32)


def main(arguments: list[str] | None = None) -> LightningCLI:
    return LightningCLI(Classifier, Digits, seed_everything_default=0, args=arguments)


if __name__ == "__main__":
    main()
