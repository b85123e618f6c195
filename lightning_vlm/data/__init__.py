"""From files to batches: rows are read, rendered and joined.

`conversation.py` is what everything here speaks of; `read/` makes conversations of files, `drawn/` of random
numbers, `render/` makes tokens of them, `batch/` joins those, and `datamodule.py` gives them to a Trainer.
"""
