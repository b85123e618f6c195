"""What a step takes, against PyTorch's own records; and what an optimizer will keep, against one."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_vlm.errors import UserError
from lightning_vlm.host_memory import available_memory
from lightning_vlm.training.memory.meter import AllocationCounter, CPUMeter, meter_of
from lightning_vlm.training.memory.trial import state_bytes
from tests.support.real_steps import recorded_peak


def step(model, x, recompute=False):
    for block in model:
        x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
    x.square().sum().backward()


@pytest.mark.parametrize("recompute", [False, True])
def test_a_peak_is_that_of_the_allocator(recompute):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)) for _ in range(4)]
    model = nn.ModuleList(blocks)
    x = torch.randn(512, 256)
    found = CPUMeter(0).peak(lambda: step(model, x, recompute))
    model.zero_grad(set_to_none=True)
    expected = recorded_peak(lambda: step(model, x, recompute))
    assert found == pytest.approx(expected, rel=0.02)


def test_views_and_what_was_there_before_are_not_counted():
    weight = torch.zeros(1000)
    with AllocationCounter(10**9) as counter:
        weight.view(10, 100).t()[2:].add_(1)
        assert counter.peak == 0
        first = weight + 1
        same = first.view(100, 10).detach()
        del first
        weight + 2  # freed at once
        assert counter.peak == 8000
        del same
        weight + 3
    assert counter.peak == 8000


def test_a_step_that_needs_more_than_there_is_is_stopped():
    meter = CPUMeter(coming=1000, whole=101_000)
    hold, kept = [], []

    def run():
        for _ in range(5):  # it comes to three
            hold.append(torch.zeros(10_000))
            kept.append(weakref.ref(hold[-1].untyped_storage()))

    with pytest.raises(torch.OutOfMemoryError, match="120,000 bytes are in use, and 100,000 are there"):
        meter.peak(run)
    assert meter.room == 89_900
    assert len(hold) == 2  # the third was stopped
    hold.clear()
    gc.collect()
    assert all(reference() is None for reference in kept)  # nothing of the meter's holds on to them


def test_a_machine_has_some_memory():
    assert 2**28 < available_memory() < 2**46


def test_a_device_that_cannot_be_asked_is_refused():
    said = pytest.raises(UserError, match="auto: the memory of meta can't be measured")
    with said, meter_of(torch.device("meta"), 0):
        pass


OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 1e-3),
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, 1e-3, amsgrad=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, 1e-3),
    "momentum": lambda parameters: torch.optim.SGD(parameters, 1e-3, momentum=0.9),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, 1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtypes", [[torch.float32], [torch.bfloat16, torch.float32]], ids=str)
def test_what_an_optimizer_will_keep_is_known(name, dtypes):
    parameters = [nn.Parameter(torch.zeros(300, 20, dtype=dtype)) for dtype in dtypes]
    known = state_bytes(OPTIMIZERS[name], parameters)
    optimizer = OPTIMIZERS[name](parameters)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values()]
    assert known == sum(value.nbytes for value in kept if torch.is_tensor(value) and value.numel() > 1)


class PretendedGPU:
    """The functions of `torch.cuda` that a meter calls, over tensors on the CPU."""

    def __init__(self, total):
        self.total = total
        self.counter = AllocationCounter(total)
        self.base = 0

    def memory_allocated(self, device):
        return self.counter.live

    memory_reserved = memory_allocated

    def mem_get_info(self, device):
        return self.total - self.counter.live, self.total

    def max_memory_allocated(self, device):
        return self.counter.peak

    def reset_peak_memory_stats(self, device):
        self.counter.peak = self.counter.live

    def empty_cache(self):
        pass

    def synchronize(self, device):
        pass


def test_a_gpu_holds_what_training_will_hold(monkeypatch):
    gpu = PretendedGPU(10_000_000)
    for name in dir(PretendedGPU):
        if not name.startswith("_"):
            monkeypatch.setattr(torch.cuda, name, getattr(gpu, name))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *sizes, device=None, **options: empty(*sizes, **options))
    with gpu.counter:
        weights = torch.zeros(250_000)
        with meter_of(torch.device("cuda"), 2_000_000) as meter:
            assert (meter.whole, meter.held, meter.room) == (10_000_000, 3_000_000, 6_000_000)
            assert meter.peak(lambda: (weights + 1) + 1) == 2_000_000
            with pytest.raises(torch.OutOfMemoryError):
                meter.peak(lambda: torch.zeros(1_750_001))
        assert gpu.memory_allocated(None) == 1_000_000  # and gives it back
