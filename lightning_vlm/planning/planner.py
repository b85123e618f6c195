"""Makes a plan: counts the steps of each method, and chooses."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.errors import UserError
from lightning_vlm.module import VLMModule
from lightning_vlm.planning.asked import CONTEXT, Asked, Room
from lightning_vlm.planning.changes import NOTHING_FITS, batch_words, changes_of, notes_of
from lightning_vlm.planning.choice import (
    ENOUGH_TOKENS,
    LEARNING_RATES,
    Choice,
    micro_batches,
    scaled_learning_rate,
)
from lightning_vlm.planning.methods import DERIVED, ORDERS, OWN, Aim, adapt_of, compared, pick
from lightning_vlm.planning.parts import parts_of, positions_of
from lightning_vlm.planning.planned import Planned, Row
from lightning_vlm.planning.rows import counted_row, of_rank, rank_of, refused_row, with_rank_of
from lightning_vlm.planning.samples import Measured, batches_of, heaviest, lengthened, measure_some
from lightning_vlm.planning.search import Counts, longest, several
from lightning_vlm.planning.speed import estimate_epoch, measure_epoch
from lightning_vlm.planning.step import CountedStep, Method, skeleton
from lightning_vlm.planning.written import Written, asked_of_stage, count_written, stage_of

Say = Callable[[str], None]


class Planner:
    """Plans a run.

    Args:
        module: Of the run, its model not loaded.
        data: Of the run.
        asked: Of its Trainer.
        room: How much memory there is.
        scan: How many samples of the data are measured.
        say: Gets a line on what is counted now.
    """

    def __init__(
        self,
        module: VLMModule,
        data: VLMDataModule,
        asked: Asked,
        room: Room,
        scan: int = 500,
        say: Say = lambda _: None,
    ) -> None:
        if scan < 1:
            raise UserError(f"scan: found {scan}; expected at least 1")
        if data.processor is None:  # in a fit, the Trainer sets the processor of the module
            data.processor = module.processor
        asked = asked_of_stage(asked, data)
        self._module, self._data, self._asked, self._room, self._say = module, data, asked, room, say
        self._own = Method(OWN, module.adapt, module.source.quantization)
        say("building the model without weights")
        model = self._skeleton(self._own)
        self.parts = tuple(parts_of(model))
        self._total = sum(part.parameters for part in self.parts)
        say(f"measuring up to {scan} samples")
        self.measured: Measured = measure_some(data, model, scan)
        sample = heaviest(self.measured)
        self._batch = lru_cache(8)(batches_of(data, model, sample, module.targets))
        self._longer = lengthened(data, model, sample, module.targets)
        self._model = model
        self._twin = next((name for name, one in compared().items() if self._is_own(one)), "")
        """What is compared and is the same as the config's own."""
        self._several = 2
        self._counts = {OWN: self._counted(model)}

    def plan(
        self, aim: Aim = "own", batch: int | None = None, compare: bool = True, measure: bool = False
    ) -> Planned:
        """Count and choose.

        Args:
            aim: What matters.
            batch: The samples of an optimizer step; None is what the config has.
            compare: Whether methods other than those that the choice needs are counted.
            measure: Whether real steps are measured.
        """
        if batch is not None and batch < 1:
            raise UserError(f"batch: found {batch}; expected at least 1")
        counts = self._counts[OWN]
        self._several = counts.several = several(counts.need(False, 1), self._room.room)
        order = self._order(aim)
        rows = {OWN: self._row(OWN)}
        names = [name for name in compared() if name != self._twin]
        for name in names:
            if compare and name not in DERIVED:
                rows[name] = self._row(name)
        if compare:
            self._derive(rows)
        else:
            for name in order:
                rows[name] = rows.get(name) or self._row(name)
                if not rows[name].why_not and max(rows[name].fit) > 0:
                    break
        in_order = {name: rows[name] for name in (OWN, *names) if name in rows}
        return self._decide(in_order, aim, order, batch, measure)

    def written(self) -> Written | None:
        """What the config takes as it is written; None where it leaves that to the device."""
        counts, longest = self._counts[OWN], self.measured.longest.tokens
        return count_written(self._module, self._data, counts, longest, self._room)

    @property
    def _configured_step(self) -> int:
        """The samples of an optimizer step as configured; about, where batches are made by tokens."""
        batching, size = self._data.batching, self._data.batch_size
        if batching.by_tokens and isinstance(batching.max_tokens, int):
            size = max(1, round(batching.max_tokens / float(self.measured.tokens.mean())))
        return size * self._asked.accumulate * self._asked.devices

    def _order(self, aim: Aim) -> tuple[str, ...]:
        return tuple(OWN if name == self._twin else name for name in ORDERS[aim])

    def _derive(self, rows: dict[str, Row]) -> None:
        """Add the ranks that follow from those that were counted."""
        room = self._room.room
        own = rank_of(self._own)
        is_quantised = self._own.quantization is not None
        lora = {64: rows.get("lora r=64"), 8: rows.get("lora r=8")}
        if own is not None and not is_quantised:
            lora[own] = rows[OWN]
        known = {rank: row for rank, row in lora.items() if row is not None and not row.why_not}
        for rank in (8, 16, 64):
            name = f"lora r={rank}"
            if name != self._twin and name not in rows and len(known) > 1:
                (low, high) = sorted(known)[0], sorted(known)[-1]
                rows[name] = of_rank(name, rank, (low, known[low]), (high, known[high]), room)
        at = {rank: rows.get(f"lora r={rank}", known.get(rank)) for rank in (16, 64)}
        base, name = rows.get("qlora r=16"), "qlora r=64"
        if self._twin == "qlora r=16":
            base = rows[OWN]
        if name != self._twin and base and not base.why_not and at[16] and at[64]:
            rows[name] = with_rank_of(name, base, at[16], at[64], room)

    def _decide(
        self, rows: dict[str, Row], aim: Aim, order: Sequence[str], batch: int | None, measure: bool
    ) -> Planned:
        module, data, asked = self._module, self._data, self._asked
        wished = batch or self._configured_step
        mean = float(self.measured.tokens.mean())
        each = math.ceil(wished / asked.devices)
        enough = math.ceil(min(each, ENOUGH_TOKENS / mean) / 2)
        fits = {name: row.fit for name, row in rows.items() if not row.why_not}
        picked = pick(aim, fits, enough, order)
        least = min((row for row in rows.values() if not row.why_not), key=lambda row: row.need.peak)
        name = picked.name or least.name
        counts, recompute = self._counts_of(name), picked.recompute
        given = module.source.gradient_checkpointing
        if name == OWN and given is True and fits[OWN].recomputed:
            recompute = True  # a person's wish
        # Batches of so many tokens have more samples than of the longest ones.
        ratio = self.measured.longest.tokens / mean if data.batching.by_tokens else 1.0
        most_longest = math.ceil(each / ratio)
        fitting = counts.largest(recompute, self._room.room, most_longest) if picked.name else 1
        size, accumulate = micro_batches(each, max(1, int(fitting * ratio)))
        as_longest = min(max(1, fitting), math.ceil(size / ratio))
        need = counts.need(recompute, as_longest)
        method = self._own if name == OWN else compared()[name]
        samples = size * accumulate * asked.devices
        rate = self._rate(name, samples)
        fits_at_all = picked.name is not None
        reasons = list(picked.reasons)
        reasons.append(batch_words(size, accumulate, asked.devices, samples, wished))
        if not fits_at_all:
            reasons.append(NOTHING_FITS)
        choice = Choice(
            adapt=adapt_of(method),
            quantization=method.quantization.method if method.quantization else None,
            batch_size=size,
            accumulate=accumulate,
            recompute=recompute,
            precision=asked.precision,
            learning_rate=rate,
            gib=(need.peak + (CONTEXT if self._room.on_gpu else 0)) / 2**30,
            fits=fits_at_all,
            reasons=tuple(reasons),
        )
        most = positions_of(self._model)
        self._say("looking for the longest sample that fits")
        found = None
        if fits_at_all:
            counts.step.recompute(recompute)
            found = longest(
                lambda tokens: counts.step(self._longer(tokens)).peak,
                self.measured.longest.tokens,
                self._room.room,
                most,
            )
        epoch = self._epoch(counts, method, choice, measure)
        return Planned(
            model=module.name_or_path,
            parts=self.parts,
            device=self._room.words,
            memory=self._room.whole,
            room=self._room.room,
            size=self.measured.size,
            looked_at=len(self.measured.tokens) + self.measured.unusable,
            tokens=(int(np.median(self.measured.tokens)), self.measured.longest.tokens),
            patches=self.measured.longest.patches,
            rows=tuple(rows.values()),
            written=self.written(),
            choice=choice,
            name=name,
            samples=samples,
            need=need,
            longest=found,
            is_longest_of_model=found == most,
            epoch=epoch,
            changes=changes_of(
                module,
                data,
                asked,
                choice,
                name,
                self._configured_step,
                as_longest * self.measured.longest.tokens,
            ),
            notes=tuple(notes_of(module, data, self._room, self.measured.unusable)),
        )

    def _is_own(self, method: Method) -> bool:
        return (method.plan, method.quantization) == (self._own.plan, self._own.quantization)

    def _skeleton(self, method: Method) -> PreTrainedModel:
        return skeleton(self._module.source, method, self._asked.precision, self._module.processor)

    def _counted(self, model: PreTrainedModel) -> Counts:
        module, asked = self._module, self._asked
        more = (module.callbacks.boxes.of if module.box_loss else None, None)
        step = CountedStep(model, asked.precision, module.optimizer, asked.accumulate > 1, more)
        return Counts(step, self._batch, self._several, asked.devices > 1)

    def _counts_of(self, name: str) -> Counts:
        if name not in self._counts:
            self._counts[name] = self._counted(self._skeleton(compared()[name]))
        return self._counts[name]

    def _row(self, name: str) -> Row:
        self._say(f"counting steps: {name}")
        try:
            return counted_row(name, self._counts_of(name), self._room.room)
        except UserError as error:
            return refused_row(name, error)

    def _rate(self, name: str, samples: int) -> float:
        """The config's own learning rate for the size of a step, or where to begin with another method."""
        if name != OWN:
            key = name.split(" ")[0]
            return scaled_learning_rate(LEARNING_RATES[key], samples)
        stage = stage_of(self._data)
        own = stage.learning_rate if stage is not None else None
        if own is None:
            own = float(self._module.optimizer([nn.Parameter(torch.zeros(1))]).defaults["lr"])
        return scaled_learning_rate(own, samples, self._configured_step)

    def _epoch(self, counts: Counts, method: Method, choice: Choice, measure: bool) -> Any:
        self._say("measuring steps" if measure else "counting the operations of a step")
        size = min(choice.batch_size, len(self.measured.numbers))
        places = np.linspace(0, len(self.measured.numbers) - 1, size).round().astype(int)
        typical = batches_of(
            self._data, self._model, self.measured.numbers[places].tolist(), self._module.targets
        )
        times = choice.batch_size / size
        micro = math.ceil(self.measured.size / (choice.batch_size * self._asked.devices))
        steps = math.ceil(micro / choice.accumulate)
        if measure:
            source = replace(self._module.source, plan=method.plan, quantization=method.quantization)
            return measure_epoch(self._module, source, typical(1), choice, self._room, micro, steps, times)
        counts.step.recompute(choice.recompute)
        operations = counts.step.operations(typical(1)) * times
        return estimate_epoch(operations, self._room, self._asked.precision, micro, steps)
