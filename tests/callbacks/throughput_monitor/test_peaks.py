"""Peaks of cards by the names that CUDA gives them; Lightning's table where it is right."""

import pytest
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning_vlm_callbacks.throughput_monitor.peaks import peak_of, peak_of_name


@pytest.mark.parametrize(
    ("card", "dtype"),
    [
        ("NVIDIA H100 80GB HBM3", torch.bfloat16),
        ("NVIDIA H100 PCIe", torch.bfloat16),
        ("NVIDIA A100-SXM4-80GB", torch.bfloat16),
        ("NVIDIA A100 80GB PCIe", torch.bfloat16),
        ("NVIDIA L4", torch.bfloat16),
        ("Tesla T4", torch.float16),
        ("Tesla V100-SXM2-16GB", torch.float16),
    ],
)
def test_where_lightnings_table_is_right(card, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    assert peak_of(torch.device("cuda")) == (get_available_flops(torch.device("cuda"), dtype), "")


@pytest.mark.parametrize(
    ("card", "tflops"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA A40", 149.7),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090 Ti", 80),
        ("NVIDIA H20", 148),
        ("AMD Instinct MI300X", 1307.4),
    ],
)
def test_others(card, tflops):
    assert peak_of_name(card)[0] == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize(
    "card",
    [
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA RTX A4000",
        "NVIDIA RTX 4000 Ada Generation",
        "NVIDIA A16",
        "NVIDIA H100 64GB HBM2",
        "Quadro RTX 6000",
        "NVIDIA Graphics Device",
    ],
)
def test_unknown_cards_have_no_peak(card):
    peak, why = peak_of_name(card)
    assert peak is None
    assert card in why
    assert "peak_tflops" in why


def test_a_cpu_has_none():
    assert peak_of(torch.device("cpu")) == (
        None,
        "the peak of a cpu isn't known; give ThroughputMonitor peak_tflops",
    )
