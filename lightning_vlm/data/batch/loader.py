"""A loader that a checkpoint resumes at the next batch, in the middle of an epoch too."""

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from lightning_vlm.data.batch.sampler import ResumableBatchSampler
from lightning_vlm.errors import UserError


def begin_next_epoch(trainer: Trainer) -> None:
    """Let a trainer that resumes from the end of an epoch begin the next one.

    With `max_epochs` alone Lightning does so. With `max_steps` it takes the finished epoch for an
    unfinished one, draws one more batch for it and loses the rest of the epoch after. To be called when the
    trainer asks for its training loader.
    """
    loop = trainer.fit_loop
    now: Any = loop.epoch_progress.current
    if loop.restarting and now.ready == now.processed:
        loop.on_iteration_done()  # ends the special handling of a resumed epoch
        loop.epoch_loop.restarting = False
        if now.completed < now.processed:  # saved as it ended
            loop.epoch_progress.increment_completed()


def load_saved_state(trainer: Trainer, loader: "ResumableLoader") -> None:
    """Give a new training loader its state from the checkpoint that a trainer resumes from, if there is one.

    Lightning does so itself only inside an epoch. What is drawn by task also depends on the epochs before.
    """
    states = trainer.fit_loop._combined_loader_states_to_load
    if len(states) == 1:
        loader.load_state_dict(states[0])


class ResumableLoader(DataLoader):
    """A DataLoader that resumes in the middle of an epoch, at the first batch that was not yet trained on.

    Its state is a position in the order of an epoch that all ranks share, so another number of ranks and of
    workers goes on from it with the same samples in the same order.

    It is made as `ResumableLoader(dataset, sampler=ResumableBatchSampler(...), batch_size=None)`, where the
    dataset takes a list of indices and returns a whole batch. It has no `__init__` of its own, because
    Lightning re-creates loaders for prediction from the arguments of theirs.
    """

    elastic = True
    """The state is the same on every rank, and any number of ranks may load it."""
    _epoch = 0
    _seen = 0
    passed = 0
    """Samples of all ranks that the last pass handed out."""
    _resume: dict[str, Any] | None = None
    _finished: int | None = None
    stage: str | None = None
    """The stage of the run that it belongs to; None where there are none."""
    stop: int | None = None
    """How many batches the epoch has that comes next; None: all."""

    def begin_at_epoch(self, epoch: int) -> None:
        """Count epochs from here: orders of batches depend on their numbers."""
        self._sampler.first_epoch = epoch

    def count_steps(self) -> None:
        """From now on only batches whose optimizer step has been made count as seen; `finish` says which."""
        self._finished = self._seen

    def finish(self, batches: int) -> None:
        """Called after an optimizer step: so many batches of this pass have had theirs."""
        self._finished = batches

    def samples_of(self, batches: int) -> int:
        """How many samples the first batches of this epoch have, those of all ranks together."""
        return self._sampler.passed(batches)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # This runs at the first batch, because Lightning sets the epoch only after asking for an iterator.
        sampler = self._sampler
        sampler.skip = 0
        if self._resume and self._resume["epoch"] == sampler.epoch:
            sampler.skip = self._batches_before(_position(self._resume), _end(self._resume))
        self._resume = None
        sampler.begin(self.passed)
        self._start_pass(sampler.epoch, sampler.skip, sampler.passed(sampler.skip))
        for batch in super().__iter__():
            if self._seen == self.stop:
                return
            self._seen += 1
            self.passed = sampler.passed(self._seen)
            yield batch

    def __len__(self) -> int:
        batches = len(self._sampler)
        return batches if self.stop is None else min(batches, self.stop)

    @property
    def _sampler(self) -> ResumableBatchSampler:
        assert isinstance(self.sampler, ResumableBatchSampler)
        return self.sampler

    def _start_pass(self, epoch: int, seen: int, passed: int) -> None:
        self._epoch = epoch
        self._seen = seen
        self.passed = passed
        if self._finished is not None:
            self._finished = seen

    def position_behind(self, batches: int) -> int:
        """The position in an epoch behind so many batches of each rank; see `state_dict`."""
        return min(batches * self._sampler.places_of_batch, self._sampler.places_of_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Which epoch this is, which position in it has been reached and where it ends, and what makes its
        order this one.

        Positions count samples, or batches that were made beforehand (`counted_in` of the sampler), those of
        all ranks together. Those count that were handed out, or after `count_steps` those whose optimizer
        step has been made: what was handed out since then comes again, because its gradients are in no
        checkpoint.
        """
        sampler = self._sampler
        seen = self._seen if self._finished is None else self._finished
        end = self.position_behind(len(self))
        position = min(self.position_behind(seen), end)
        state = {"epoch": self._epoch, "position": position, "end": end, **sampler.settings()}
        if self.stage is not None:
            state["stage"] = self.stage
        order = self._sampler.state_dict()
        if order:
            state["order"] = order
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the pass of the epoch that was interrupted behind the batches already seen. Other epochs are
        whole.

        Raises:
            UserError: The batches that were not yet seen would be others now.
        """
        was = state.get("stage")
        if was != self.stage and was is not None and self.stage is not None:
            return  # The stage before this one is over, and this one begins.
        if was != self.stage:
            found = f"stages: found {self.stage or 'none'}, but the checkpoint is of {was or 'a run without'}"
            raise UserError(f"{found}; resume with the stages that the run began with")
        now = self._sampler.settings()
        changed = changes(state, now)
        position, end = _position(state), _end(state)
        if changed and position < end:
            raise UserError(
                f"can't resume in the middle of an epoch with other batches: {'; '.join(changed)}; give "
                "back what was, or begin from a checkpoint of an epoch's end"
            )
        self._resume = dict(state)
        passed = position if self._sampler.counted_in == "samples" else 0
        self._start_pass(state["epoch"], -(-position // self._sampler.places_of_batch), passed)
        if state.get("sampling", ResumableBatchSampler.description) == now["sampling"] and "order" in state:
            self._sampler.load_state_dict(state["order"])

    def _batches_before(self, position: int, end: int) -> int:
        """How many batches of this rank lie before a position.

        Args:
            position: In the order of an epoch.
            end: Where the epoch ends; its last batch may be filled up with nothing.

        Raises:
            UserError: The position lies inside a batch.
        """
        each = self._sampler.places_of_batch
        if position < end and position % each:
            raise UserError(
                f"can't resume behind {position} {self._sampler.counted_in} of an epoch with {each} in the "
                "batches of all processes together, which don't divide them; give back data.batch_size and "
                "the number of processes, or begin from a checkpoint of an epoch's end"
            )
        return -(-position // each)


_OF_EARLIER_VERSIONS = {"sampling": ResumableBatchSampler.description, "batching": "padded"}
"""What a state of earlier versions, or of samples that are padded, doesn't say."""


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What the batches of an epoch depend on that isn't as it was, each in words.

    >>> changes({"seed": 0, "samples a step": 8}, {"seed": 0, "batching": "packed", "max_tokens": 512})
    ['batching was padded, is packed']
    >>> changes({"batching": "packed", "max_tokens": 512}, {"batching": "packed", "max_tokens": 256})
    ['max_tokens was 512, is 256']
    """
    was = {**_OF_EARLIER_VERSIONS, **was}
    now = {**_OF_EARLIER_VERSIONS, **now}
    both = [name for name in now if name in was]
    return [f"{name} was {was[name]}, is {now[name]}" for name in both if was[name] != now[name]]


def _position(state: Mapping[str, Any]) -> int:
    """The position of a state; earlier versions saved how many batches each rank had seen."""
    if "position" in state:
        return state["position"]
    return min(state["seen"] * _places_of_batch(state), _end(state))


def _end(state: Mapping[str, Any]) -> int:
    """Where the epoch of a state ends; earlier versions saved how many batches each rank had, or samples."""
    if "end" in state:
        return state["end"]
    return state["batches"] * _places_of_batch(state) if "batches" in state else state["samples"]


def _places_of_batch(state: Mapping[str, Any]) -> int:
    """What a state of an earlier version says of the batches of all its ranks."""
    return state.get("samples a step") or state["batches a step"]
