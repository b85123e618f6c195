"""What a vision tower makes of the sizes of pictures and videos, found by the data loader's workers."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.exporters.utils import precompute_export_inputs

from lightning_vlm.models.parts import vision_tower
from lightning_vlm.models.positions import without_modules

TowerArguments: TypeAlias = Mapping[str, Tensor | int]
"""Arguments of a vision tower: tensors for the device, and lengths."""
_GRIDS = ("image_grid_thw", "video_grid_thw")
"""Of the sizes of a batch, those that the vision tower gets."""
_READ_ON_DEVICE = ("glm4v_vision", "glm4v_moe_vision")
"""Types of towers that compute with the grid on the device."""
_TOWER_SETTINGS = (
    "spatial_merge_size",
    "window_size",
    "patch_size",
    "num_grid_per_side",
    "interpolation_mode",
    "interpolation_padding",
    "interpolation_align_corners",
)


class TowerArgumentsFinder:
    """Finds further arguments of a model's vision tower, without its weights.

    Args:
        model: As loaded; what it attends with is settled.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        tower = vision_tower(model)
        self._tower = None if tower is None else _settings_of(tower)
        self._frames_apart = _takes_frames_apart(model)

    def __call__(self, sizes: Mapping[str, Tensor]) -> dict[str, TowerArguments]:
        """Those for each size that the tower gets.

        Args:
            sizes: On the CPU.
        """
        tower = {}
        for name, grid in sizes.items():
            if name in _GRIDS:
                is_apart = self._frames_apart and name == "video_grid_thw"
                merges = sizes.get(name.replace("grid_thw", "merge_sizes"))
                tower[name] = self._arguments(frames_apart(grid) if is_apart else grid, merges)
        return tower

    def _arguments(self, grid: Tensor, merges: Tensor | None) -> TowerArguments:
        if self._tower is None:
            return {}
        found: dict[str, Any] = {"grid_thw": grid}
        if merges is not None:
            found["merge_sizes"] = merges
        precompute_export_inputs(self._tower, found)
        found.pop("merge_sizes", None)
        if self._tower.config.model_type not in _READ_ON_DEVICE:
            del found["grid_thw"]
        return {name: value for name, value in found.items() if value is not None}


@contextmanager
def given_to_tower(
    model: PreTrainedModel, sizes: Mapping[str, Tensor], found: Mapping[str, TowerArguments]
) -> Iterator[None]:
    """Let a vision tower get what was found for it.

    Args:
        model: Whose tower it is.
        sizes: What the model is called with, on the host.
        found: Arguments of the tower for each of these.
    """
    tower = vision_tower(model)
    if tower is None or not any(found.values()):
        yield
        return
    device = model.device
    given = {}
    for size, arguments in found.items():
        given[size] = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in arguments.items()
        }

    def give(_: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The tower is called with pictures, then with videos; the grid that it gets tells which it is."""
        for size, arguments in given.items():
            grid, own = kwargs.get("grid_thw"), sizes[size]
            if grid is own or _are_frames_of(grid, own):
                return args, kwargs | arguments
        return args, kwargs

    handle = tower.register_forward_pre_hook(give, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def frames_apart(grid: Tensor) -> Tensor:
    """Grids of videos as those of their frames, each by itself.

    >>> frames_apart(torch.tensor([[2, 4, 6]])).tolist()
    [[1, 4, 6], [1, 4, 6]]
    """
    frames = grid.repeat_interleave(grid[:, 0], dim=0)
    frames[:, 0] = 1
    return frames


def _are_frames_of(grid: Any, videos: Tensor) -> bool:
    """Whether a grid, on the host, has the frames of videos."""
    if not isinstance(grid, Tensor) or grid.device != videos.device or len(grid) != videos[:, 0].sum():
        return False
    return torch.equal(grid, frames_apart(videos))


def _takes_frames_apart(model: PreTrainedModel) -> bool:
    """Whether a model gives its tower the frames of a video each by itself (GLM-4V)."""
    find = getattr(model.base_model, "get_video_features", None)
    return find is not None and "repeat_interleave" in inspect.unwrap(find).__code__.co_names


def _settings_of(tower: nn.Module) -> Any:
    """A copy of a tower that has its configuration and settings only."""
    bare = without_modules(tower)
    for name in _TOWER_SETTINGS:
        found = [getattr(module, name) for module in tower.modules() if hasattr(module, name)]
        if found:
            setattr(bare, name, found[0])
    return bare
