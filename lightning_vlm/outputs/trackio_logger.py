"""A logger for Trackio, which neither Lightning nor Trackio has."""

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from typing_extensions import override


class TrackioLogger(Logger):
    """Logs with Trackio: into a database on this machine, or to a Space or server that you name.

    Trackio's functions are those of Weights & Biases, but Lightning's WandbLogger can't be used with it: it
    imports wandb for what it makes, and neither Lightning nor Trackio has a logger of its own. This one has
    the methods of Lightning's WandbLogger for pictures and tables, so that whatever sends those to one sends
    them to the other.

    The database is in `TRACKIO_DIR`, by default `~/.cache/huggingface/trackio`; `trackio show` opens it in a
    browser. A thread writes there, so that a run that is killed may lack its last seconds.

    Args:
        project: What several runs belong to.
        name: The run's name; None lets Trackio choose one.
        group: Of runs within the project.
        space_id: A Hugging Face Space, such as `me/my-runs`, that gets everything; None stays here.
        server_url: A Trackio server of your own in its place. Its token belongs in `TRACKIO_WRITE_TOKEN`:
            what is given here is saved with the run's config.
        private: Whether a Space that has to be made is private.
        resume: `never` begins another run, `allow` continues the one of this name if there is one, `must`
            refuses if there is none. What resumes from a checkpoint continues its run by itself.
        save_dir: The run's other files go into `save_dir/project/name`.

    Raises:
        ModuleNotFoundError: Trackio isn't installed.

    Example::

        trainer = Trainer(logger=TrackioLogger(project="captions"))
    """

    def __init__(
        self,
        project: str = "lightning_logs",
        name: str | None = None,
        group: str | None = None,
        space_id: str | None = None,
        server_url: str | None = None,
        private: bool = True,
        resume: Literal["never", "allow", "must"] = "never",
        save_dir: str = ".",
    ) -> None:
        super().__init__()
        import trackio  # noqa: F401  # what isn't installed is reported before anything begins

        self._run_name = name
        self._project = project
        self._save_dir = save_dir
        self._options: dict[str, Any] = {
            "group": group,
            "space_id": space_id,
            "server_url": server_url,
            "private": private,
            "resume": resume,
        }
        self._config: dict[str, Any] = {}
        self._run: Any = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of Trackio; it begins when it is first asked for."""
        if self._run is None:
            import trackio

            options = self._options | {"name": self._run_name, "config": self._config, "embed": False}
            self._run = trackio.init(self._project, **options)
            self._run_name = self._run.name
        return self._run

    def continue_run(self, name: str) -> None:
        """Continue a run, unless this logger's has begun.

        Args:
            name: Of the run.
        """
        if self._run is None:
            self._run_name = name
            self._options["resume"] = "allow"

    @property
    @override
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    @override
    def version(self) -> str | None:
        """The name of the run; None until one that Trackio chooses has begun."""
        return self._run_name

    @property
    @override
    def save_dir(self) -> str:
        """The folder for the run's other files."""
        return os.fspath(self._save_dir)

    @override
    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Add to the run's config, until the first values are logged: then Trackio has stored it."""
        given = vars(params) if isinstance(params, Namespace) else params
        self._config.update(given)
        if self._run is not None:
            self._run.config.update(given)

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log values, or what Trackio makes of pictures and tables."""
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """Log pictures: paths, or PIL images. Trackio has one under a key; of several each gets a number."""
        import trackio

        for number, image in enumerate(images, 1):
            name = key if len(images) == 1 else f"{key}/{number}"
            self.log_metrics({name: trackio.Image(Path(image) if isinstance(image, str) else image)}, step)

    @rank_zero_only
    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int | None = None) -> None:
        """Log a table by its columns' names and its rows."""
        import trackio

        self.log_metrics({key: trackio.Table(columns=columns, data=data)}, step)

    @rank_zero_only
    def log_histogram(
        self, key: str, counts: Sequence[float], edges: Sequence[float], step: int | None = None
    ) -> None:
        """Log how many values lie between each edge and the next."""
        import trackio

        self.log_metrics({key: trackio.Histogram(np_histogram=(list(counts), list(edges)))}, step)
