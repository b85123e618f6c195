"""Shared fixtures. Importing `lightning_vlm` first lets its torchvision mend act before anything else does."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lightning_vlm  # noqa: E402, F401

# isort: split
# Its log handler keeps the stderr that it meets first, which must not be one that a test captures.
import lightning.pytorch  # noqa: E402, F401
