"""What a model needs of its pictures beside the pixels, so that its forward never waits for the device.

Sizes of pictures decide what a forward does: how many features belong to each, where windows lie, where one
picture ends. transformers reads them from the device, and waits. Here they stay on the host, what a vision
tower makes of them is made by the data loader's workers, and pictures are checked against the tokens that
stand for them with numbers that the host knows.
"""

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning_vlm_callbacks.host_data import HostData
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.exporters.utils import precompute_export_inputs

from lightning_vlm.data.batch.image_groups import image_counts
from lightning_vlm.errors import UserError
from lightning_vlm.models.parts import vision_tower
from lightning_vlm.models.positions import without_modules

SIZES = {
    "llava": ["image_sizes"],  # Pixtral
    "llava_next": ["image_sizes"],
    "llava_onevision": ["image_sizes", "batch_num_images"],
    "mistral3": ["image_sizes"],
    "qwen2_vl": ["image_grid_thw"],
    "qwen2_5_vl": ["image_grid_thw"],
    "qwen3_vl": ["image_grid_thw"],
    "qwen3_vl_moe": ["image_grid_thw"],
    "qwen3_5": ["image_grid_thw"],
}
"""Types of models that work with sizes on the host, and the inputs that have them. All others get theirs on
the device. `tests/module/test_no_sync.py` tries each."""
_TOWER_SETTINGS = (
    "spatial_merge_size",
    "window_size",
    "patch_size",
    "num_grid_per_side",
    "interpolation_mode",
    "interpolation_padding",
    "interpolation_align_corners",
)
_DEEPSTACK = "_deepstack_process"
_NO_CHECK = "TRANSFORMERS_DISABLE_TORCH_CHECK"


class PictureInputs(HostData):
    """Sizes of a batch's pictures and what follows from them, on the host.

    Args:
        sizes: Inputs of the model that it reads on the host.
        tower: Further arguments of the vision tower: tensors for the device, and lengths.
        positions: Tensor of shape [tokens], int64: where tokens stand for features of pictures, in the
            flattened batch; None if the model doesn't say which tokens do.
        counts: Tensor of shape [batch], int64: as from `image_counts`.
    """

    def __init__(
        self,
        sizes: Mapping[str, Tensor],
        tower: Mapping[str, Tensor | int],
        positions: Tensor | None,
        counts: Tensor | None,
    ) -> None:
        self.sizes = sizes
        self.tower = tower
        self.positions = positions
        self.counts = counts

    def pin_memory(self) -> "PictureInputs":
        """The same with what goes to the device in pinned memory; a `DataLoader` calls it."""
        positions = None if self.positions is None else self.positions.pin_memory()
        tower = {
            name: value.pin_memory() if isinstance(value, Tensor) else value
            for name, value in self.tower.items()
        }
        return PictureInputs(self.sizes, tower, positions, self.counts)


class PictureInputsFinder:
    """Finds the `PictureInputs` of batches without a model's weights, and so in other processes.

    Args:
        model: As loaded; what it attends with is settled.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._names = SIZES.get(model.config.model_type, [])
        self._token_id: int | None = getattr(model.config, "image_token_id", None)
        tower = vision_tower(model)
        self._tower = None if tower is None else _settings_of(tower)

    def __call__(self, inputs: Mapping[str, Tensor]) -> PictureInputs:
        """Find those of a batch, or of a sample.

        Args:
            inputs: What the model's forward takes, on the CPU.
        """
        sizes = {name: value for name, value in inputs.items() if name in self._names}
        tower: dict[str, Any] = {}
        if "image_grid_thw" in sizes and self._tower is not None:
            tower["grid_thw"] = sizes["image_grid_thw"]
            precompute_export_inputs(self._tower, tower)
            del tower["grid_thw"]
        positions = None
        if self._token_id is not None:
            (positions,) = (inputs["input_ids"].flatten() == self._token_id).nonzero(as_tuple=True)
        known = {name: value for name, value in tower.items() if value is not None}
        return PictureInputs(sizes, known, positions, image_counts(inputs))


@contextmanager
def pictures_on_host(model: PreTrainedModel, pictures: PictureInputs | None) -> Iterator[dict[str, Tensor]]:
    """Let forward passes inside of this context wait for nothing about pictures.

    Args:
        model: Whose base model is called.
        pictures: Of the batch that it is called with; None leaves all to the model.

    Yields:
        Inputs in the place of those of the batch.
    """
    if pictures is None:
        yield {}
        return
    with ExitStack() as stack:
        stack.enter_context(_given_to_tower(model, pictures.tower))
        if pictures.positions is not None:
            stack.enter_context(_checked(model.base_model, len(pictures.positions)))
            stack.enter_context(_added_by_position(model, pictures.positions))
        yield dict(pictures.sizes)


@contextmanager
def _given_to_tower(model: PreTrainedModel, values: Mapping[str, Tensor | int]) -> Iterator[None]:
    tower = vision_tower(model)
    if tower is None or not values:
        yield
        return
    device = model.device
    given = {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }

    def give(_: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, kwargs | given

    handle = tower.register_forward_pre_hook(give, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _checked(base: Any, tokens: int) -> Iterator[None]:
    """Compare the number of features with that of tokens on the host, where the model asks the device.

    Raises:
        UserError: There are more or fewer features than tokens that stand for them.
    """
    find = getattr(base, "get_placeholder_mask", None)
    if find is None:
        yield
        return
    signature = inspect.signature(find)

    def find_checked(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        features = given.get("image_features")
        width = given["inputs_embeds"].shape[-1]
        if features is not None and features.numel() != tokens * width:
            raise UserError(
                f"{type(base).__name__}: found {features.numel() / width:g} features of pictures, expected "
                f"{tokens}, one for each token that stands for one; the processor and the model don't fit"
            )
        with _without_own_check():
            return find(*args, **kwargs)

    with _replaced(base, "get_placeholder_mask", find_checked):
        yield


@contextmanager
def _added_by_position(model: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """Let features be added in several layers (DeepStack) where positions say, not where a mask does."""
    decoder: Any = model.get_decoder()
    if not hasattr(decoder, _DEEPSTACK):
        yield
        return
    places = positions.to(model.device, non_blocking=True)

    def add(hidden_states: Tensor, visual_pos_masks: Tensor, visual_embeds: Tensor) -> Tensor:
        rows = hidden_states.flatten(0, 1)
        return rows.index_add(0, places, visual_embeds.to(rows.dtype)).view_as(hidden_states)

    with _replaced(decoder, _DEEPSTACK, add):
        yield


@contextmanager
def _replaced(owner: Any, name: str, method: Any) -> Iterator[None]:
    """Give one object, not its class, another method for a while."""
    own = vars(owner).get(name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


@contextmanager
def _without_own_check() -> Iterator[None]:
    """transformers compares both numbers on the device and waits; this is its own switch for that."""
    before = os.environ.get(_NO_CHECK)
    os.environ[_NO_CHECK] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_CHECK]
        else:
            os.environ[_NO_CHECK] = before


def _settings_of(tower: nn.Module) -> Any:
    """A copy of a tower that has its configuration and settings only."""
    bare = without_modules(tower)
    for name in _TOWER_SETTINGS:
        found = [getattr(module, name) for module in tower.modules() if hasattr(module, name)]
        if found:
            setattr(bare, name, found[0])
    return bare
