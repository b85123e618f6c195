"""The most that known cards compute: dense matrix products in 16 bits, summed in 32, as their makers state.

Lightning has such a table (`get_available_flops` in `lightning.fabric.utilities.throughput`), but in 2.6 it
finds no H200, takes the L40S for an L4, states a pair of cards for the H100 NVL, sparse products for the
H200, the A10 for the A10G, and no tensor cores at all for the GeForce cards, A6000 and A40.
"""

import re

import torch

__all__ = ["peak_of", "peak_of_name"]

_TFLOPS = {
    # Longer names come before those that they begin with.
    "GB200": 2500.0,
    "B200": 2250.0,
    "GH200": 989.4,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.0,
    "H100 80GB HBM3": 989.4,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 312.0,
    "A800": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX A6000": 154.8,
    "GeForce RTX 5090": 209.5,
    "GeForce RTX 4090": 165.2,
    "GeForce RTX 4080 SUPER": 104.4,
    "GeForce RTX 4080": 97.5,
    "GeForce RTX 3090 Ti": 80.0,
    "GeForce RTX 3090": 71.0,
    "GeForce RTX 3080 Ti": 68.2,
    "T4": 65.0,
    "V100S": 130.0,
    "V100-SXM2": 125.0,
    "V100-PCIE": 112.0,
    "MI300X": 1307.4,
    "MI325X": 1307.4,
}
"""Part of the name that CUDA gives a card -> TFLOP/s of bfloat16; of float16 where a card has only that."""

_OTHER_CARD = r"(?! ?(Laptop|Max-Q|MIG|D\b|Ti\b|SUPER\b))(?!\w)"
"""What must not follow: another card has the same name with such an addition."""


def peak_of(device: torch.device) -> tuple[float | None, str]:
    """The peak of a device in operations a second, or None and why it isn't known."""
    if device.type != "cuda":
        return None, f"the peak of a {device.type} isn't known; give ThroughputMonitor peak_tflops"
    return peak_of_name(torch.cuda.get_device_name(device))


def peak_of_name(card: str) -> tuple[float | None, str]:
    """The peak of a card by its name, or None and why it isn't known.

    >>> peak_of_name("NVIDIA H100 80GB HBM3")
    (989400000000000.0, '')
    >>> peak_of_name("NVIDIA H100 NVL")[0] / 1e12, peak_of_name("NVIDIA H200")[0] / 1e12
    (835.5, 989.4)
    >>> peak_of_name("NVIDIA A100-SXM4-40GB MIG 3g.20gb")
    (None, 'NVIDIA A100-SXM4-40GB MIG 3g.20gb is a part of a card; give ThroughputMonitor its peak_tflops')
    """
    if " MIG " in card:
        return None, f"{card} is a part of a card; give ThroughputMonitor its peak_tflops"
    for name, tflops in _TFLOPS.items():
        if re.search(rf"(?<!\w){re.escape(name)}{_OTHER_CARD}", card):
            return tflops * 1e12, ""
    return None, f"the peak of {card} isn't known; give ThroughputMonitor peak_tflops, dense in 16 bits"
