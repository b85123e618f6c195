"""What is checked when a fit begins, before its model is loaded and before a logger begins a run."""
