"""A source as a data set of batches: a list of indices goes in, a batch comes out."""

from collections.abc import Callable

from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from lightning_vlm.data.batch.collate import Batch, Item, Targets, collate
from lightning_vlm.data.batch.sampler import PAD_INDEX
from lightning_vlm.data.batch.skipped import SampleCounts
from lightning_vlm.data.conversation import Conversations
from lightning_vlm.data.render.example import Example
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import DataError
from lightning_vlm.models.picture_inputs import PictureInputsFinder
from lightning_vlm.models.positions import TokenPositions, token_positions


class RenderedBatches(Dataset):
    """Renders the samples of a source, in the process of a worker.

    Args:
        source: The conversations.
        renderer: Turns a conversation into tokens.
        learn: Whether batches hold what is trained on or scored.
        prompts: Whether batches hold prompts to answer. A last assistant turn is then the reference.
        pack: Whether the samples of a batch are packed into one row.
        positions: Gives the positions of tokens in models with several axes of them.
        pictures: Gives what the model needs of pictures beside the pixels.
    """

    def __init__(
        self,
        source: Conversations,
        renderer: Renderer,
        *,
        learn: bool,
        prompts: bool,
        pack: bool = False,
        positions: TokenPositions | None = None,
        pictures: PictureInputsFinder | None = None,
    ) -> None:
        self.source = source
        """The conversations."""
        self._renderer = renderer
        self._learn = learn
        self._prompts = prompts
        self.packs = pack
        """Whether the samples of a batch are packed into one row."""
        self._positions = positions
        self._pictures = pictures

    @classmethod
    def for_model(
        cls,
        model: PreTrainedModel | None,
        source: Conversations,
        renderer: Renderer,
        *,
        learn: bool,
        prompts: bool,
        pack: bool,
    ) -> "RenderedBatches":
        """With what a model needs beside tokens and pixels; nothing more where there is no model."""
        positions = None if model is None else token_positions(model)
        pictures = None if model is None else PictureInputsFinder(model)
        return cls(
            source,
            renderer,
            learn=learn,
            prompts=prompts,
            pack=pack,
            positions=positions,
            pictures=pictures,
        )

    def __getitem__(self, indices: list[int]) -> Batch:
        items: list[Item] = []
        skipped: list[DataError] = []
        places: list[int] = []
        for index in indices:
            if index == PAD_INDEX:
                continue
            try:
                items.append(self._item(index))
                places.append(index)
            except DataError as error:  # the main process raises it, so that its message stays one line
                skipped.append(error)
        examples = [item.example for item in items if item.example is not None]
        truncated = [example.conversation.source for example in examples if example.truncated]
        batch = collate(items, self._pad_token_id, skipped, truncated, self.packs)
        batch = batch._replace(places=tuple(places))
        if not examples or self._pictures is None:
            return batch
        return batch._replace(picture_inputs=self._pictures(batch.inputs))

    def look_ahead(self, most: int, targets: Callable[[Batch], Targets]) -> SampleCounts:
        """Count what becomes of some samples, evenly spaced over all of them. It is the same on all ranks.

        Args:
            most: How many are rendered at most.
            targets: What is learned from a batch.
        """
        size = len(self.source)
        number = min(most, size)
        counts = SampleCounts()
        for place in range(number):
            batch = self[[place * size // number]]
            counts += SampleCounts.of_batch(batch, len(targets(batch).positions))
        return counts

    @property
    def _pad_token_id(self) -> int:
        tokenizer = self._renderer.tokenizer
        if tokenizer.pad_token_id is not None:
            return tokenizer.pad_token_id
        return tokenizer.eos_token_id or 0

    def _item(self, index: int) -> Item:
        conversation = self.source[index]
        example: Example | None = None
        positions: Tensor | None = None
        if self._learn:
            example = self._renderer.example(conversation)
            conversation = example.conversation
            if self._positions is not None:
                positions = self._positions(example)
        if not self._prompts:
            return Item(example, None, None, positions)
        prompt, reference = self._renderer.prompt(conversation)
        return Item(example, prompt, reference, positions)
