"""Callbacks where each rank holds pieces of the weights give what they give in a single process."""

import json
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning_vlm_callbacks import (
    GradientMonitor,
    NonFiniteGuard,
    RunReport,
    StagedUnfreezing,
    ThroughputMonitor,
)

from tests.support.pieces import KeptMetrics, Pieces, fsdp2, whole_weights
from tests.support.project import Samples

STAGES = [
    {"at": 0, "train": {"net.head": 1.0}},
    {"at": 2, "train": {"net.head": 0.5, "net.blocks[-1:]": 1.0}},
    {"at": 4, "train": {"net.blocks": 0.5}},
]


class Spoil(Callback):
    """The batch of one step of one rank is spoilt."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step and trainer.global_rank == trainer.world_size - 1:
            batch[0][-1] = torch.nan


def fit(make_trainer, callbacks, ranks, **options):
    logger = KeptMetrics()
    module = Pieces()
    given = {"max_steps": 6, "logger": logger, "num_sanity_val_steps": 1, **options}
    trainer = make_trainer(callbacks=callbacks, **given, **(fsdp2(ranks) if ranks > 1 else {}))
    trainer.fit(module, Samples(size=64, batch_size=8 // ranks))
    return {"weights": whole_weights(module), "logged": logger.rows}


def assert_close(found, expected, but=()):
    """Equal to rounding in float32."""
    kept = [{name for name in one if not any(word in name for word in but)} for one in (found, expected)]
    assert kept[0] == kept[1]
    names = kept[0]
    assert names
    for name in names:
        value, right = (torch.as_tensor(one) for one in (found[name], expected[name]))
        torch.testing.assert_close(
            value, right, rtol=2e-5, atol=2e-6, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def monitor(**options):
    return GradientMonitor(groups=["net.blocks[0]", "net.head"], every_n_steps=1, **options)


def test_gradients_stages_and_the_record(make_trainer, on_two_ranks, tmp_path):
    def run(ranks=2):
        throughput = ThroughputMonitor(warmup_steps=1, print_summary=False)
        report = RunReport(dirpath=str(tmp_path / str(ranks)))
        stages = StagedUnfreezing(STAGES, unit="step")
        return fit(make_trainer, [stages, monitor(), throughput, report], ranks)

    alone = run(1)
    assert len([name for name in alone["logged"] if "gradients/net.blocks[0]" in name]) == 2 * 7
    assert len([name for name in alone["logged"] if "gradients/all" in name]) == 6 * 7
    first, second = on_two_ranks(run)
    assert_close(first["weights"], alone["weights"])
    assert_close(second["weights"], alone["weights"])
    assert_close(first["logged"], alone["logged"], but=["train/loss", "epoch", "throughput/"])
    for logged in (first["logged"], alone["logged"]):  # of all ranks together
        step = logged["1 throughput/samples_per_second"] * logged["1 throughput/step_seconds"]
        assert step == pytest.approx(8)
    norms = [norms_in(tmp_path / ranks / "report.jsonl") for ranks in ("1", "2")]
    assert len(norms[0]) == 6
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-5, atol=0)


def norms_in(file):
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return torch.tensor(
        [row["metrics"]["grad_norm"] for row in rows if "grad_norm" in row.get("metrics", {})]
    )


def test_a_bad_step_is_skipped_on_all_ranks(make_trainer, on_two_ranks):
    def run(ranks=2):
        skips = {"guard": NonFiniteGuard(), "monitor": monitor(on_anomaly="skip")}
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = {
                name: fit(make_trainer, [Spoil(3), one], ranks)["weights"] for name, one in skips.items()
            }
        return {
            **found,
            "said": [str(one.message) for one in said if "NonFiniteGuard: step" in str(one.message)],
        }

    alone = run(1)
    assert all(value.isfinite().all() for value in alone["guard"].values())
    first, second = on_two_ranks(run)
    for name in ("guard", "monitor"):
        assert_close(first[name], alone[name])
        assert_close(second[name], alone[name])
    assert first["said"] == [
        "NonFiniteGuard: step 3: the loss is NaN or infinite on rank 1; bad gradients in "
        "net.blocks.0.up.weight, net.blocks.0.up.bias, net.blocks.0.down.weight, ... (10 in all). "
        "The update of this step was skipped on all ranks."
    ]
