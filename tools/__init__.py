"""How the model inside the package was made, and what `make lint` measures and refuses."""

import lightning_vlm  # noqa: F401  # before transformers, as it makes torchvision importable
