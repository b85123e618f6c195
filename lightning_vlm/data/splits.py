"""The sources of a run: one for each of training, validation, test and prediction."""

from pathlib import Path
from typing import TypeAlias

from lightning_vlm.data.conversation import Conversations
from lightning_vlm.data.held_out import Picked, held_out, share_of
from lightning_vlm.data.negatives import Negatives as Negatives
from lightning_vlm.data.negatives import WithNegatives
from lightning_vlm.data.read.bounds import OnBadBox
from lightning_vlm.data.read.faults import together
from lightning_vlm.data.read.readers import read
from lightning_vlm.data.read.reading import AllowUrls as AllowUrls
from lightning_vlm.data.read.reading import say
from lightning_vlm.data.read.source import OnBadSample, Source
from lightning_vlm.data.read.stream import Stream
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.data.render.split_answers import split_answers
from lightning_vlm.data.skip_list import SkipList
from lightning_vlm.data.streams.options import Streaming
from lightning_vlm.data.streams.refusals import check_splits, is_streamed
from lightning_vlm.data.streams.source import Shards
from lightning_vlm.data.system_prompts import WithSystemPrompts
from lightning_vlm.errors import DataError, UserError

Given: TypeAlias = Conversations | str | Path | None


class Splits:
    """Opens the source of each split when it is first asked for.

    Args:
        given: What each split has: a source, the path of a file or folder, a share of the training data such
            as `10%`, or None.
        image_root: For paths, as of `read`; so are the others.
        on_bad_sample: For paths.
        columns: For paths.
        allow_urls: For paths.
        bad_boxes: For paths.
        box_format: For paths.
        negatives: What is added to training.
        system_prompts: Task -> what stands before conversations without a system turn.
        skip: The file of a list of rows that are left out.
        streaming: How paths are read whose rows are never in memory as a whole; None reads none so.
    """

    def __init__(
        self,
        given: dict[str, Given],
        image_root: str | None,
        on_bad_sample: OnBadSample,
        columns: dict[str, str] | None,
        allow_urls: AllowUrls,
        bad_boxes: OnBadBox = "error",
        box_format: str | None = None,
        negatives: Negatives | None = None,
        system_prompts: dict[str, str] | None = None,
        skip: str | None = None,
        streaming: Streaming | None = None,
    ) -> None:
        self.given = given
        shares = {split: share_of(one) for split, one in given.items()}
        self._shares = {split: share for split, share in shares.items() if share is not None}
        if "train" in self._shares:
            raise UserError(f"data.train: found {given['train']}; expected a source or the path of a file")
        if streaming is not None:
            check_splits(given, self._shares, negatives, skip)
        self.opened: dict[str, Conversations] = {}
        """The sources opened so far."""
        self._samples: dict[str, tuple[Renderer, Conversations]] = {}
        self._image_root = image_root
        self._options = (columns, allow_urls)
        self.on_bad_sample: OnBadSample = on_bad_sample
        """What becomes of bad samples of paths that are opened from now on."""
        self._skip = None if skip is None else SkipList.read(skip)
        self._boxes = (bad_boxes, box_format)
        self._negatives = negatives
        self._prompts = system_prompts
        self._streaming = streaming

    def source(self, split: str) -> Conversations:
        """The source of a split, checked as it is opened.

        Raises:
            UserError: There is no such split, or it has no data.
            DataError: Bad data.
        """
        if split not in self.given:
            raise UserError(f"there is no split '{split}'; choose one of {', '.join(self.given)}")
        if split not in self.opened and (split in self._shares or (split == "train" and self._shares)):
            self._hold_out()
        if split not in self.opened:
            self.opened[split] = self._open(split)
        return self.opened[split]

    def _open(self, split: str) -> Conversations:
        given = self.given[split]
        if given is None:
            raise UserError(
                f"data.{split} is not set; give it a source or the path of a file: --data.{split} FILE, "
                "or the key in a config"
            )
        if self._image_root is not None and not Path(self._image_root).is_dir():
            raise UserError(f"data.image_root: found {self._image_root}, which is no folder")
        skip = self._skip
        if not isinstance(given, str | Path | Conversations):
            kind = f"{type(given).__module__.partition('.')[0]}.{type(given).__name__}"
            raise UserError(
                f"data.{split}: found a {kind.removeprefix('builtins.')}; expected the path of a file or a "
                "folder, or a source: HFDataset of a data set, Chain of several, or your own Conversations"
            )
        if isinstance(given, str | Path):
            path = None if skip is None else skip.path
            begin = str(given), self._image_root, self.on_bad_sample
            ways = *begin, *self._options, split, *self._boxes
            streamed = is_streamed(split, str(given), self._streaming)
            source = Shards(*ways, self._streaming) if streamed else read(*ways, path)
        else:
            source = given if skip is None else without_listed(given, skip)
        if skip is not None:
            skip.check(split, [file.fingerprint() for file in source.files() if isinstance(file, Source)])
        return WithSystemPrompts(source, self._prompts) if self._prompts else source

    def _hold_out(self) -> None:
        """Open the training data and all splits that are shares of it."""
        sources = held_out(self._open("train"), self._shares)
        self.opened.update(sources)
        held = ", ".join(f"{len(sources[split]):,} for {split}" for split in self._shares)
        say(f"data.train: {held} are held out, whole pictures at a time; {len(sources['train']):,} are left")

    def stream(self, prompt: str | None) -> Stream:
        """What comes from standard input, read as paths are; see `Stream`."""
        return Stream(prompt, self._image_root, *self._options, *self._boxes)

    def share(self, other: "Splits") -> None:
        """Take over the sources that others have opened of the same data, read in the same way."""
        alike = self._ways == other._ways and not self._shares and not other._shares
        for split, source in other.opened.items():
            if alike and self.given[split] == other.given[split]:
                self.opened.setdefault(split, source)

    @property
    def _ways(self) -> tuple:
        path = None if self._skip is None else self._skip.path
        return self._image_root, self._options, self._boxes, self._prompts, path, self._streaming

    def samples(self, split: str, renderer: Renderer) -> Conversations:
        """The source of a split, with a sample for each answer that its template can only write last.

        Only a prompt is written for prediction, so that its conversations stay whole. Training has negatives
        beside them, if there are any. What is streamed stays as it is: which answers need a sample of their
        own is only known of samples that were read, so that rendering refuses those that do.
        """
        source = self.source(split)
        if split == "predict" or source.windows is not None:
            return source
        known = self._samples.get(split)
        if known is None or known[0] is not renderer:
            samples, line = split_answers(source, renderer)
            if line is not None:
                say(f"data.{split}: {line}")
            if split == "train" and self._negatives is not None:
                samples = WithNegatives.made(samples, self._negatives)
                say(f"data.negatives: {samples.words()}")
            known = self._samples[split] = renderer, samples
        return known[1]

    def open(self, splits: list[str]) -> None:
        """Open some sources.

        Raises:
            DataError: The faults of all of them together.
        """
        faults: list[DataError] = []
        for split in splits:
            if split in self._shares and "train" in splits:
                continue  # they are opened together
            try:
                self.source(split)
            except DataError as error:
                faults.append(error)
        if faults:
            raise together(faults)


def without_listed(source: Conversations, skip: SkipList) -> Conversations:
    """A source that was opened already, without the rows that a list names.

    Args:
        source: Any. One that makes its samples itself has no rows.
        skip: The list.
    """
    rows = set()
    for file in source.files():
        if isinstance(file, Source):
            rows |= {file.name + row for row in skip.rows(file.name, file.fingerprint())}
    if not rows:
        return source
    kept = [index for index in range(len(source)) if source[index].source not in rows]
    if len(kept) < len(source):
        say(f"{len(source) - len(kept):,} samples are left out, which {skip.path} lists (data.skip)")
    if not kept:
        raise UserError(f"data.skip: {skip.path} leaves out all {len(source):,} samples")
    return source if len(kept) == len(source) else Picked(source, kept, skipped=True)
