"""Reading a config: strict YAML, and the nearest key, class and type for each mistake."""

COMMANDS = ("preview", "fit", "validate", "test", "predict", "export", "families")
"""The commands of `lightning-vlm`."""
