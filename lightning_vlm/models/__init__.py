"""Models: loading, their parts, what of them trains, and small ones for tests."""
