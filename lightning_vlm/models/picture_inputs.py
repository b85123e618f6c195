"""What a model needs of pictures and videos beside the pixels, so that no forward waits for the device.

Sizes of pictures decide what a forward does: how many features belong to each, where windows lie, where one
picture ends. transformers reads them from the device, and waits. Here they stay on the host, what a vision
tower makes of them is made by the data loader's workers, and pictures are checked against the tokens that
stand for them with numbers that the host knows.
"""

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning_vlm_callbacks.host_data import HostData
from torch import Tensor
from transformers import PreTrainedModel

from lightning_vlm.data.batch.image_groups import image_counts
from lightning_vlm.data.batch.picture_sizes import picture_sizes
from lightning_vlm.errors import UserError
from lightning_vlm.models.one_token import TYPES, shares_token, told_apart
from lightning_vlm.models.replaced import replaced
from lightning_vlm.models.tower_inputs import TowerArguments, TowerArgumentsFinder, given_to_tower
from lightning_vlm.models.video_features import without_filled_frames

SIZES = {
    "llava": ["image_sizes"],  # Pixtral
    "llava_next": ["image_sizes"],
    "llava_next_video": ["image_sizes"],
    "granite4_vision": ["image_sizes"],
    "llava_onevision": ["image_sizes", "batch_num_images"],
    "mistral3": ["image_sizes"],
    "lighton_ocr": ["image_sizes"],
    "lfm2_vl": ["spatial_shapes"],
    "lfm3_vl": ["image_grid_thw"],
    "molmo2": ["image_grids"],
    "qwen2_vl": ["image_grid_thw"],
    "qwen2_5_vl": ["image_grid_thw"],
    "qwen3_vl": ["image_grid_thw"],
    "qwen3_vl_moe": ["image_grid_thw"],
    "qwen3_5_moe": ["image_grid_thw"],
    "qwen3_5": ["image_grid_thw"],
    "glm4v": ["image_grid_thw"],
    "glm46v": ["image_grid_thw"],
    "glm4v_moe": ["image_grid_thw"],
    "glm_ocr": ["image_grid_thw"],
    "paddleocr_vl": ["image_grid_thw"],
    "hunyuan_vl": ["image_grid_thw"],
    "exaone4_5": ["image_grid_thw"],
    "minicpmv4_6": ["target_sizes"],
    "video_llama_3": ["image_grid_thw", "image_merge_sizes", "video_merge_sizes"],
}
"""Types of models that work with sizes on the host, and the inputs that have them; where there are grids of
pictures, those of videos as well. All others get theirs on the device. `tests/module/test_no_sync.py` tries
each."""
_TOKENS = {"image_features": "image_token_id", "video_features": "video_token_id"}
"""Where a model's configuration says which tokens stand for features, by the name that these have."""
_DEEPSTACK = "_deepstack_process"
_NO_CHECK = "TRANSFORMERS_DISABLE_TORCH_CHECK"


class PictureInputs(HostData):
    """Sizes of a batch's pictures and videos and what follows from them, on the host.

    Args:
        sizes: Inputs of the model that it reads on the host.
        tower: Further arguments of the vision tower for each of these inputs that it is called with: tensors
            for the device, and lengths.
        positions: Tensor of shape [tokens], int64: where tokens stand for features of pictures or videos, in
            the flattened batch; None if the model doesn't say which tokens do.
        tokens: How many of them stand for pictures, and how many for videos, by the arguments that get these
            features.
        counts: Tensor of shape [batch], int64: as from `image_counts`.
        frames: How many frames each video has, as of `PictureSizes`.
    """

    def __init__(
        self,
        sizes: Mapping[str, Tensor],
        tower: Mapping[str, TowerArguments],
        positions: Tensor | None,
        tokens: Mapping[str, int],
        counts: Tensor | None,
        frames: Sequence[int] = (),
    ) -> None:
        self.sizes = sizes
        self.tower = tower
        self.positions = positions
        self.tokens = tokens
        self.counts = counts
        self.frames = frames

    def pin_memory(self) -> "PictureInputs":
        """The same with what goes to the device in pinned memory; a `DataLoader` calls it."""
        positions = None if self.positions is None else self.positions.pin_memory()
        tower = {}
        for size, arguments in self.tower.items():
            tower[size] = {
                name: value.pin_memory() if isinstance(value, Tensor) else value
                for name, value in arguments.items()
            }
        return PictureInputs(self.sizes, tower, positions, self.tokens, self.counts, self.frames)


class PictureInputsFinder:
    """Finds the `PictureInputs` of batches without a model's weights, and so in other processes.

    Args:
        model: As loaded; what it attends with is settled.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._names = list(SIZES.get(model.config.model_type, []))
        if "image_grid_thw" in self._names:
            self._names.append("video_grid_thw")
        self._token_ids: dict[str, int] = {}
        for features, name in _TOKENS.items():
            token_id = getattr(model.config, name, None)
            if token_id is not None:
                self._token_ids[features] = token_id
        self._tower = TowerArgumentsFinder(model)
        self._shares_token = shares_token(model)

    def __call__(self, inputs: Mapping[str, Tensor]) -> PictureInputs:
        """Find those of a batch, or of a sample.

        Args:
            inputs: What the model's forward takes, on the CPU.
        """
        sizes = {name: value for name, value in inputs.items() if name in self._names}
        positions = None
        ids = inputs["input_ids"].flatten()
        are_features = {name: ids == token_id for name, token_id in self._token_ids.items()}
        if self._shares_token and TYPES in inputs:
            types = inputs[TYPES].flatten()
            are_features = {"image_features": types == 1, "video_features": types == 2}
        if are_features:
            (positions,) = torch.stack(list(are_features.values())).any(0).nonzero(as_tuple=True)
        return PictureInputs(
            sizes,
            self._tower(sizes),
            positions,
            {name: int(are.sum()) for name, are in are_features.items()},
            image_counts(inputs),
            picture_sizes(inputs).video_frames,
        )


@contextmanager
def pictures_on_host(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], pictures: PictureInputs | None
) -> Iterator[dict[str, Tensor]]:
    """Let forward passes inside of this context wait for nothing about pictures and videos.

    Args:
        model: Whose base model is called.
        inputs: Of the batch that it is called with.
        pictures: Of this batch; None leaves all to the model.

    Yields:
        Inputs in the place of those of the batch.
    """
    with ExitStack() as stack:
        frames = pictures.frames if pictures else None
        stack.enter_context(without_filled_frames(model, inputs, frames))
        stack.enter_context(told_apart(model, inputs))
        if pictures is None:
            yield {}
            return
        stack.enter_context(given_to_tower(model, pictures.sizes, pictures.tower))
        if pictures.positions is not None:
            stack.enter_context(_checked(model.base_model, pictures.tokens))
            stack.enter_context(_added_by_position(model, pictures.positions))
        yield dict(pictures.sizes)


@contextmanager
def _checked(base: Any, tokens: Mapping[str, int]) -> Iterator[None]:
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
        embedded = given.get("inputs_embeds")  # Gemma 4 looks for the places before it embeds
        for name, count in tokens.items():
            features = given.get(name)
            if "token_id" in given and given["token_id"] == getattr(base.config, _TOKENS[name], None):
                features = given.get("features")  # of one kind a call (MiniCPM-V)
            if features is None or embedded is None:
                continue
            width = embedded.shape[-1]
            if features.numel() != count * width:
                medium = name.removesuffix("_features").replace("image", "picture")
                raise UserError(
                    f"{type(base).__name__}: found {features.numel() / width:g} features of {medium}s, "
                    f"expected {count}, one for each token that stands for one; the processor and the model "
                    "don't fit"
                )
        with _without_own_check():
            return find(*args, **kwargs)

    with replaced(base, "get_placeholder_mask", find_checked):
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

    with replaced(decoder, _DEEPSTACK, add):
        yield


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
