"""The commands of `lightning-vlm`."""

COMMANDS = ("preview", "fit", "validate", "test", "predict", "export")
