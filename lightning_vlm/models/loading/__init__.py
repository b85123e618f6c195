"""Loading a model, and what its files, its checkpoints and its quantised weights are."""
