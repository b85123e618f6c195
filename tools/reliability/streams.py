"""Streams of a million samples: opened, resumed, read in constant memory, dealt to processes and workers.

    python -m tools.reliability.streams            # everything: about 15 minutes of a core
    python -m tools.reliability.streams open       # or some of: open resume memory split mixing

It draws its shards into a temporary folder (about 3 GB) and prints a figure for each promise. Each opening is
measured in a process of its own that has imported what any run has: time by the clock and of the processor,
and memory as the growth of its peak (`VmHWM`), so that what imports cost isn't counted.
"""

import argparse
import itertools
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import lightning_vlm  # noqa: F401
from lightning_vlm.data.batch.loader import ResumableLoader
from lightning_vlm.data.batch.sampler import PAD_INDEX
from lightning_vlm.data.batch.window_sampler import WindowSampler
from lightning_vlm.data.batch.windows import Windows
from lightning_vlm.data.streams.source import Shards
from tests.support.ranks import call_on_ranks
from tests.support.shards import COLOURS, archive_bytes, picture, row

SAMPLES = 1_000_000
READ = 200_000
"""How many of them are read for the figure of memory."""
SHARDS = 64
KINDS = ("jsonl", "parquet", "tar")


def main() -> None:
    """Print the figures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = list(PARTS)
    parser.add_argument("parts", nargs="*", default=names, choices=[*names, []])
    parser.add_argument("--samples", type=int, default=SAMPLES)
    given = parser.parse_args()
    import datasets  # noqa: F401  # what tables need; a run has imported it before it opens them
    from lightning.pytorch import Trainer  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            write(Path(folder), kind, given.samples)
        for part in given.parts or names:
            for line in PARTS[part](Path(folder)):
                print(f"{part}: {line}", flush=True)


def write(folder: Path, kind: str, samples: int) -> None:
    """Write samples as shards of one kind."""
    pictures = [picture(number) for number in range(4)]
    for number, data in enumerate(pictures):
        (folder / f"{COLOURS[number]}.png").write_bytes(data)
    for shard, numbers in enumerate(np.array_split(np.arange(samples), SHARDS)):
        path = folder / f"{shard:04}.{kind}"
        rows = [(int(number), row(int(number))) for number in numbers]
        if kind == "jsonl":
            lines = ({"image": f"{COLOURS[number % 4]}.png", **words} for number, words in rows)
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        elif kind == "tar":
            members = (
                member
                for number, words in rows
                for member in (
                    (f"{number:08}.png", pictures[number % 4]),
                    (f"{number:08}.json", json.dumps(words).encode()),
                )
            )
            path.write_bytes(b"".join(archive_bytes(members)))
        else:
            import pyarrow
            import pyarrow.parquet

            columns = {name: [words[name] for _, words in rows] for name in ("question", "answer")}
            images = [{"bytes": pictures[number % 4], "path": None} for number, _ in rows]
            table = pyarrow.table({"image": images, **columns})
            pyarrow.parquet.write_table(table, path, row_group_size=1000)


def opened(folder: Path) -> Iterator[str]:
    """How long it takes to open all samples, and what memory it adds."""
    for kind in KINDS:
        (found,) = call_on_ranks(_open, f"{folder}/*.{kind}", ranks=1)
        yield (
            f"{kind}: {found['samples']:,.0f} samples of {SHARDS} shards opened in {found['seconds']:.2f} s "
            f"by the clock, {found['processor']:.2f} s of the processor; {found['added']:.0f} MB added"
        )


def _open(pattern: str) -> dict[str, float]:
    before = _peak()
    clock, processor = time.monotonic(), time.process_time()
    source = Shards(pattern)
    took = {"seconds": time.monotonic() - clock, "processor": time.process_time() - processor}
    return {"samples": float(len(source)), "added": _peak() - before, **took}


def resumed(folder: Path) -> Iterator[str]:
    """How long an open source takes to the first batch behind nine tenths of an epoch, and it is right."""
    for kind in KINDS:
        source = Shards(f"{folder}/*.{kind}")
        batch = 8
        seen = len(source) * 9 // 10 // batch
        whole = WindowSampler(source.windows, batch, True, 0, 0, 1)
        expected = next(itertools.islice(iter(whole), seen, None))
        begun = time.monotonic()
        loader = _loader(source, batch, 0, 1, 0)
        state = {**loader.state_dict(), "epoch": 0, **_at(seen, batch)}
        loader.load_state_dict(state)
        first = next(iter(loader))
        took = time.monotonic() - begun
        assert first == [_name(source, index) for index in expected]
        yield f"{kind}: the batch at sample {seen * batch:,} came after {took:.3f} s, the right one"


def _at(seen: int, batch: int) -> dict[str, int]:
    return {"seen": seen, "position": seen * batch}


def memory(folder: Path) -> Iterator[str]:
    """How memory grows while rows are read, in the order of an epoch."""
    for kind in KINDS:
        (found,) = call_on_ranks(_read_all, f"{folder}/*.{kind}", ranks=1)
        sizes = found["sizes"]
        rest = sizes[len(sizes) // 4 :]
        slope = np.polyfit(np.arange(len(rest)) * found["each"], rest, 1)[0] * SAMPLES
        yield (
            f"{kind}: {found['rows']:,.0f} rows read in {found['seconds']:.0f} s of the processor; "
            f"{sizes[0]:.0f} MB before, {max(sizes):.0f} MB at most; {slope:+.1f} MB a million rows "
            "behind the first quarter"
        )


def _read_all(pattern: str) -> dict[str, Any]:
    source = Shards(pattern)
    order = source.windows.order(0, 0)
    rows = min(READ, len(order))
    each = max(1, rows // 40)
    sizes = [_now()]
    begun = time.process_time()
    for place in range(rows):
        assert source[order[place]].images
        if place % each == each - 1:
            sizes.append(_now())
    seconds = time.process_time() - begun
    return {"rows": rows, "sizes": sizes, "each": each, "seconds": seconds}


def split(folder: Path) -> Iterator[str]:
    """Each sample once, in one order, over real processes and workers."""
    for kind in KINDS:
        pattern = f"{folder}/{{0000..0001}}.{kind}"
        one = [name for batch in _batches(pattern, 32, 0) for name in batch]
        assert len(set(one)) == len(one)
        for ranks, workers in ((1, 2), (2, 0), (2, 2), (4, 0), (4, 2)):
            found = call_on_ranks(_batches, pattern, 32 // ranks, workers, ranks=ranks)
            same = [name for step in zip(*found, strict=True) for batch in step for name in batch]
            assert same == one, (kind, ranks, workers)
        ways = "1, 2 and 4 processes with 0 and 2 workers"
        yield f"{kind}: {len(one):,} samples, each once and in one order, over {ways}"


def _batches(pattern: str, batch: int, workers: int) -> list[list[str]]:
    import os

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return list(_loader(Shards(pattern), batch, rank, world, workers))


def mixing(folder: Path) -> Iterator[str]:
    """How near the mix of a window is to that of all, for data that is sorted by its ten classes."""
    for name, rows in (("rows read alone (blocks of 64)", 64), ("row groups of 1,000", 1000)):
        for window in (1_000, 10_000, 100_000):
            windows = Windows.of_rows([rows] * (SAMPLES // rows), window)
            order = windows.order(0, 0)
            classes = order.between(0, len(order)).numpy() * 10 // len(order)
            batches = classes[: len(order) // 256 * 256].reshape(-1, 256)
            spread = np.std((batches == 0).mean(1))
            yield (
                f"{name}, window {window:,}: the share of a class in batches of 256 is 10% ± {spread:.1%}; "
                f"a full shuffle has ± {np.sqrt(0.09 / 256):.1%}"
            )


class _Names:
    def __init__(self, source: Shards) -> None:
        self._source = source

    def __getitem__(self, indices: list[int]) -> list[str]:
        return [_name(self._source, index) for index in indices if index != PAD_INDEX]


def _name(source: Shards, index: int) -> str:
    return source[index].source


def _loader(source: Shards, batch: int, rank: int, world: int, workers: int) -> ResumableLoader:
    sampler = WindowSampler(source.windows, batch, True, 0, rank, world)
    names: Any = _Names(source)
    return ResumableLoader(names, sampler=sampler, batch_size=None, num_workers=workers)


def _peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _now() -> float:
    """The memory that this process has now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


PARTS: dict[str, Callable[[Path], Iterator[str]]] = {
    "open": opened,
    "resume": resumed,
    "memory": memory,
    "split": split,
    "mixing": mixing,
}

if __name__ == "__main__":
    main()
