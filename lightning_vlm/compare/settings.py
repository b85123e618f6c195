"""What holds for all models of a comparison: how data is read, and how answers are made and scored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lightning_vlm.config.shipped import find_config, unknown
from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.drawn import Drawn, DrawnVideos  # noqa: F401  # so that configs can name them
from lightning_vlm.data.read.easy_vqa import EasyVQA  # noqa: F401  # likewise
from lightning_vlm.errors import UserError
from lightning_vlm.parser import Parser

SPLITS = ("train", "val", "test", "predict")
GENERATION = {"max_new_tokens": 64}
"""How a model answers where no config says it, as in `predict`."""


class Settings(NamedTuple):
    """Settings of a comparison.

    Args:
        data: The section `data` of a config.
        generation: Arguments of `generate`.
        scores: As of `ScoreChoice`.
        precision: Of the Trainer.
        config: The config that they are from; None: they are the defaults.
        token_weights: Of the loss; None are the defaults.
    """

    data: Mapping[str, Any] = {}
    generation: Mapping[str, Any] = GENERATION
    scores: Mapping[str, list[str]] | list[str] | None = None
    precision: Any = None
    config: Path | None = None
    token_weights: Mapping[str, float] | None = None

    @property
    def splits(self) -> list[str]:
        """The splits for which the config has data."""
        return [name for name in SPLITS if self.data.get(name) is not None]


def read_settings(config: Path | None) -> Settings:
    """The settings of a config; the defaults without one.

    Raises:
        UserError: The file can't be read, or is no config.
    """
    if config is None:
        return Settings()
    found = find_config(str(config))
    if found is None:
        raise unknown(str(config))
    config = found
    try:
        read = yaml.safe_load(config.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"--config {config}: {error.strerror}; expected the config of a run") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"--config {config}: found no YAML; expected the config of a run") from error
    sections: dict[str, Mapping[str, Any]] = {}
    for name in ("model", "data", "trainer"):
        section = (read.get(name) or {}) if isinstance(read, Mapping) else None
        if not isinstance(section, Mapping):
            raise UserError(f"--config {config}: found no section {name}; expected the config of a run")
        sections[name] = section
    model, data, trainer = sections.values()
    return Settings(
        data,
        model.get("generation") or GENERATION,
        model.get("scores"),
        trainer.get("precision"),
        config,
    )


def data_module(settings: Settings, **splits: Any) -> VLMDataModule:
    """A data module as in a config, but with these splits alone.

    Raises:
        UserError: A key or a value of the section `data` that isn't right.
    """
    section = {name: value for name, value in settings.data.items() if name not in SPLITS}
    parser = Parser()
    parser.add_class_arguments(VLMDataModule, "data")
    given = parser.parse_object({"data": {**section, **splits}})
    return parser.instantiate_classes(given).data
