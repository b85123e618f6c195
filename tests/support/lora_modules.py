"""A module with LoRA, and its ranks after each batch."""

import torch
from lightning.pytorch import Callback, LightningModule
from lightning_vlm_callbacks import AdaptiveLoRARank
from lightning_vlm_callbacks.adaptive_lora_rank.lora_layers import lora_layers
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from torch import nn
from torch.utils.data import TensorDataset


class Block(nn.Module):
    def __init__(self, wide):
        super().__init__()
        self.up, self.down = nn.Linear(wide, 24), nn.Linear(24, wide)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    def __init__(self, wide=16):
        super().__init__()
        torch.manual_seed(0)
        self.vision = nn.ModuleList([Block(wide)])
        self.text = nn.ModuleList([Block(wide), Block(wide)])
        self.head = nn.Linear(wide, 8)

    def forward(self, x):
        for block in [*self.vision, *self.text]:
            x = block(x)
        return self.head(x)


class Module(LightningModule):
    """Regression with LoRA of rank 4 on 7 layers, or on those named."""

    def __init__(self, wrap=True, optimizer=torch.optim.AdamW, net=Net, **options):
        super().__init__()
        config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["up", "down", "head"], **options})
        model = net()
        torch.manual_seed(1)
        self.model = get_peft_model(model, config) if wrap else inject_adapter_in_model(config, model)
        self.optimizer = optimizer

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.model(x).float() - y).square().mean()

    def test_step(self, batch, batch_idx):
        self.log("test", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        optimizer = self.optimizer(
            [parameter for parameter in self.parameters() if parameter.requires_grad], lr=0.01
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.98**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Keep(Callback):
    """Ranks after each batch, and whether the sum of all is always what an optimizer holds two of."""

    def __init__(self):
        self.ranks, self.held = [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        layers = lora_layers(pl_module)
        self.ranks.append({name: lora.rank for name, lora in layers.items()})
        kept = [
            value for state in trainer.optimizers[0].state.values() for value in state.values() if value.ndim
        ]
        self.held.append(
            (sum(map(torch.numel, kept)), 2 * sum(lora.rank * lora.cost for lora in layers.values()))
        )


def data(size=96, seed=0):
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 16, generator=chance)
    return TensorDataset(x, torch.tanh(x @ torch.randn(16, 8, generator=chance)))


def quiet(**options):
    given = {"min_rank": 2, "max_rank": 12, "multiple_of": 2, "start": 3, "every": 2, "until": 9}
    return AdaptiveLoRARank(**{**given, **options})


def weights(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def everything(trainer, module):
    state = trainer.optimizers[0].state_dict()["state"]
    kept = {f"{index}.{key}": value for index, some in state.items() for key, value in some.items()}
    return {**weights(module), **kept}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(torch.as_tensor(found[name]), torch.as_tensor(value)), name
