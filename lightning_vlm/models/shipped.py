"""The small model inside the package; `tools/` has how it was made."""

from pathlib import Path

SHIPPED: dict[str, Path] = {"drawn-vlm": Path(__file__).parent / "drawn_vlm"}
"""The name to load each model by, and its folder."""
