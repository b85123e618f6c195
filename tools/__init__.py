"""How the model inside the package was made, and what `make lint` measures."""
