"""A picture of ranks: a heat map of layers over steps. Needs matplotlib, and only here."""

from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["save_ranks"]


def save_ranks(file: str | Path, history: Sequence[tuple[int, Mapping[str, int]]], end: int) -> Path:
    """Draw the rank of each layer from step to step, as a PNG.

    Args:
        file: Where the picture goes; its folder is made.
        history: Steps, increasing, and the ranks by layer that hold from then on. All have the same layers.
        end: The last step.
    Returns:
        The file.

    >>> import tempfile
    >>> history = [(0, {"q": 8, "v": 8}), (10, {"q": 12, "v": 4})]
    >>> save_ranks(Path(tempfile.mkdtemp(), "ranks.png"), history, 30).stat().st_size > 1000
    True
    """
    from matplotlib.figure import Figure  # pyplot would change the backend of the calling program

    names = list(history[0][1])
    edges = [step for step, _ in history]
    edges.append(max(end, edges[-1] + 1))
    rows = [[ranks[name] for _, ranks in history] for name in names]
    size = max(3.0, min(0.17 * len(names) + 1.2, 40.0))
    figure = Figure(figsize=(10, size), layout="constrained")
    axis = figure.subplots()
    picture = axis.pcolormesh(edges, range(len(names) + 1), rows, cmap="viridis", vmin=0)
    axis.set_yticks(
        [i + 0.5 for i in range(len(names))], names, fontsize=min(8.0, 300 * size / 4 / len(names))
    )
    axis.invert_yaxis()
    axis.set_xlabel("step")
    figure.colorbar(picture, ax=axis, label="rank")
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
