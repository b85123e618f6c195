"""Metrics: scores of texts, sums per task, and baselines that don't use the pictures."""
