"""A run in stages: what trains in each, at which rates, and what changes where one begins."""
