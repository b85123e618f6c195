"""Training data that is never in memory as a whole, and that nothing goes through before training.

`files.py` finds the shards that a pattern names, `lines.py`, `tables.py` and `archives.py` read a row of each
kind of them, `source.py` makes one source of all, and `options.py` is `data.streaming`. The order of samples
is that of `data/batch/windows.py`.

Every shard is read at any place, so that a stream has a length and its samples have numbers. Samplers then
deal numbers, as for any other source: how many ranks and workers there are doesn't change the order, a
resumed run begins at the next number without reading what was passed, and shards needn't be as many as
workers. An iterator can't do that: `datasets.IterableDataset` and webdataset give whole shards to workers,
so that the order depends on how many there are, and what waits in their shuffle buffers is in no checkpoint.
`litdata` resumes exactly, but only reads its own chunks, into which data must be converted first.
"""
