"""What several tests and benchmarks share."""

import lightning_vlm  # noqa: F401  # before transformers, as it makes torchvision importable
