"""Statistics of gradients, against those of one long vector."""

import math

import pytest
import torch
from lightning_vlm_callbacks.gradient_monitor.measurement import Measurement
from lightning_vlm_callbacks.gradient_monitor.statistics import (
    BIN_EDGES,
    combine,
    log2_histogram,
    reductions,
    statistics,
)
from torch import nn

from tests.callbacks.gradient_monitor.support import assert_close, flat_statistics, numpy_histogram
from tests.support.ranks import call_on_ranks

pytestmark = pytest.mark.filterwarnings("ignore:GradientMonitor")


def statistics_of(*gradients):
    rows = {name: row.tolist() for name, row in reductions(list(gradients)).items()}
    return statistics(rows, [one.numel() for one in gradients])


@pytest.mark.parametrize(
    "dtypes",
    [
        [torch.float32] * 3,
        [torch.bfloat16] * 3,
        [torch.float16, torch.float32, torch.bfloat16],
        [torch.float64, torch.float32, torch.float64],
    ],
)
def test_statistics_are_those_of_one_long_vector(dtypes):
    torch.manual_seed(0)
    gradients = [torch.randn(size).to(dtype) for size, dtype in zip([(7, 9), (5,), ()], dtypes, strict=True)]
    gradients[0][gradients[0] > 0.5] = 0
    gradients[1][2] = -3.5
    assert_close(statistics_of(*gradients), flat_statistics(gradients))


def test_more_elements_than_float32_counts():
    ones = torch.ones(2**24 + 2**22, dtype=torch.bfloat16)
    ones[:100] = 0
    found = statistics_of(ones)
    assert found["zeros"] == pytest.approx(100 / len(ones), rel=0.02)
    assert found["norm"] == pytest.approx((len(ones) - 100) ** 0.5, rel=1e-4)


def test_small_weights_have_a_ratio_and_none_have_none():
    rows = {"norm": [1.0], "sum": [0.0], "max": [1.0], "nonzero": [2.0]}
    moved = statistics({**rows, "weight": [0.3, 0.4], "update": [0.0, 0.05]}, [2])
    assert moved["update_ratio"] == pytest.approx(0.1)
    assert "update_ratio" not in statistics({**rows, "weight": [0.0], "update": [0.05]}, [2])


def combined(gradients):
    """Rows of two gradients of which each rank holds a half, and what comes of rows that hold a NaN."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    pieces = [gradient.tensor_split(2)[rank] for gradient in gradients]
    whole = combine(reductions(pieces))
    if rank == 1:
        pieces[0][0] = math.nan
    spoilt = combine(reductions(pieces))
    torch.distributed.destroy_process_group()
    return whole, spoilt


def test_pieces_on_ranks_are_measured_like_whole_gradients():
    torch.manual_seed(0)
    gradients = [8e18 * torch.randn(9).sign(), torch.randn(6).relu()]  # squares beyond float32
    expected = reductions([gradient.double() for gradient in gradients])
    for whole, spoilt in call_on_ranks(combined, gradients):
        for name, row in expected.items():
            torch.testing.assert_close(whole[name], row, rtol=1e-5, atol=1e-30)
            assert spoilt[name].isnan().tolist() == [name != "nonzero", False]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_shows(bad):
    gradients = [torch.tensor([1.0, bad, 0.0]), torch.ones(3)]
    for found in statistics_of(*gradients), statistics_of(*reversed(gradients)):
        assert not any(math.isfinite(found[name]) for name in ("norm", "std", "max"))
        assert found["zeros"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_constant_has_no_spread(size):
    for value in (0.1, 0.3, 1e-4):
        found = statistics_of(torch.full((size,), value))
        assert found["std"] == pytest.approx(0, abs=1e-3 * value)


def test_weights_of_zero_have_no_ratio():
    rows = {"norm": [1.0], "sum": [1.0], "max": [1.0], "nonzero": [2.0], "weight": [0.0], "update": [1.0]}
    assert "update_ratio" not in statistics(rows, [2])
    assert statistics({**rows, "weight": [4.0]}, [2])["update_ratio"] == 0.25


def test_small_tensors_are_joined_within_their_groups_and_types():
    small = [nn.Parameter(torch.randn(size)) for size in (3, 4, 5, 6)]
    small.append(nn.Parameter(torch.randn(7, dtype=torch.float64)))
    large = [nn.Parameter(torch.randn(100, 100)) for _ in range(2)]
    parameters = [*small, *large]
    for one in parameters[1:]:
        one.grad = torch.randn_like(one)
    large[1].grad = large[1].grad.T  # not in the order of memory
    groups = {
        "a": small[:3],
        "b": [small[2], small[3], small[4], large[0]],
        "all": parameters,
        "c": small[:1],
    }
    measured = Measurement(0, groups)
    # 1 alone in a; 2 in a and b; 3 in b, 4 in b but double; the large ones
    assert sorted(measured._sizes) == [4, 5, 6, 7, 10000, 10000]
    assert set(measured.places) == {"a", "b", "all"}
    buffers = {}
    for _ in range(2):
        before = [one.detach().clone() for one in parameters]
        measured = Measurement(0, groups)
        measured.before_step(False, buffers)
        with torch.no_grad():
            for one in parameters[1:]:
                one.mul_(0.9).sub_(0.01)
        measured.after_step(clipped=True)
        found, _ = measured.read()
        for name, group in groups.items():
            if name == "c":
                continue
            of = [number for number, one in enumerate(parameters) if one.grad is not None and _in(one, group)]
            expected = flat_statistics([parameters[number].grad for number in of])
            moved = flat_statistics([before[number] - parameters[number].detach() for number in of])["norm"]
            expected["clipped_norm"] = expected["norm"]
            expected["update_ratio"] = moved / flat_statistics([before[number] for number in of])["norm"]
            assert_close(found[name], expected)


def _in(one, group):
    return any(one is other for other in group)


def test_octaves_are_numpys_histogram():
    torch.manual_seed(0)
    gradients = [torch.randn(300, 20) * 10.0 ** torch.randint(-14, 4, (300, 1)), torch.zeros(50)]
    assert log2_histogram(gradients).tolist() == numpy_histogram(gradients).tolist()
    big = log2_histogram([torch.full((2**20,), 0.3), torch.full((2**20,), 3.0)])
    assert big.sum() <= 2**16 + 2
    assert big[BIN_EDGES.index(-2)] == big[BIN_EDGES.index(1)] == big.sum() / 2
