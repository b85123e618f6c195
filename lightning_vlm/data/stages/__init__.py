"""A run in stages: what each stage says of its data, how long it is, and what a data module is in it."""
