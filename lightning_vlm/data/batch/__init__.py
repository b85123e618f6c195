"""Which samples share a batch, and how they become tensors."""
