"""What trains, in which mode, with which rates; what is refused; and that the host waits for nothing."""

import csv
import json
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.losses.weights import KindWeights
from lightning_vlm.optim import Linear
from lightning_vlm.training.refusals import refuse_strategy
from tests.support.ranks import call_on_ranks

LORA = {"lora": {"r": 2}}


def data(size=4, batch_size=2, val=None, source=None):
    return VLMDataModule(train=source or Drawn("train", size=size), val=val, batch_size=batch_size)


def hook(name, does):
    """A callback with one hook."""
    return type("Hook", (Callback,), {name: lambda self, trainer, module, *_: does(trainer, module)})()


# Gradients


def test_parameters_without_gradient_stop_the_run_at_once(module, make_quiet):
    one, trainer = module("llava", adapt={"vision": "full", "projector": "full"}), make_quiet(max_epochs=1)
    with pytest.raises(
        UserError, match=r"vision_tower\.encoder\.layers\.2\..*\(\d+ in all\).*no_gradient_need"
    ):
        trainer.fit(one, data())
    assert trainer.global_step == 0


def test_text_before_pictures_hides_nothing(module, make_quiet, listed, words):
    """Text alone gives zeros to the vision side; that is no gradient."""
    one, trainer = (
        module("llava", adapt={"vision": "full", "language": LORA}),
        make_quiet(max_epochs=1, accumulate_grad_batches=2),
    )
    source = VLMDataModule(train=listed([words(), *Drawn("train", size=1)]), batch_size=1, shuffle=False)
    with pytest.raises(UserError, match=r"vision_tower\.encoder\.layers\.2\."):
        trainer.fit(one, source)


def test_parameters_that_need_no_gradient(module, make_quiet):
    one = module(
        "llava",
        adapt={"vision": "full"},
        no_gradient_needed=["vision.layers[-1]", "model.model.vision_tower.post_layernorm"],
    )
    make_quiet(max_steps=1).fit(one, data())
    one = module("llava", adapt={"projector": "full"}, no_gradient_needed=["nowhere"])
    with pytest.raises(UserError, match=r"no_gradient_needed: .*nowhere"):
        make_quiet(max_steps=1).fit(one, data())


def test_vision_lora_learns_under_gradient_checkpointing(module, make_quiet):
    one = module("qwen2_5_vl", adapt={"vision": LORA}, gradient_checkpointing=True)
    before = {name: p.detach().clone() for name, p in one.named_parameters() if "lora_B" in name}
    make_quiet(max_steps=1).fit(one, data())
    after = dict(one.named_parameters())
    assert len(before) > 5
    assert all(not torch.equal(after[name], p) for name, p in before.items())


def test_text_alone_trains_with_a_warning(module, make_quiet, listed, words):
    one = module("llava", adapt={"projector": "full", "language": LORA})
    with pytest.warns(UserWarning, match="no batch had a picture"):
        make_quiet(max_steps=1).fit(one, data(source=listed([words(), words()])))


# Modes


@pytest.mark.parametrize("checkpointing", [False, True])
def test_modes_also_after_validation(module, make_quiet, checkpointing):
    one = module(
        "llava",
        adapt={"projector": "full", "language": {"lora": {"r": 2, "dropout": 0.1}}},
        gradient_checkpointing=checkpointing,
        generation={"max_new_tokens": 2},
    )
    seen = []

    def look(trainer, module):
        seen.append({name for name, part in module.model.named_modules() if part.training})

    trainer = make_quiet(max_epochs=1, val_check_interval=1, callbacks=[hook("on_before_zero_grad", look)])
    trainer.fit(one, data(size=6, val=Drawn("val", size=1)))
    assert len(seen) == 3
    assert seen[0] == seen[1] == seen[2]
    assert not any("vision" in name for name in seen[0])
    assert {"model.multi_modal_projector", "model.language_model.layers.0"} <= seen[0]
    assert any("lora_dropout" in name for name in seen[0])


# Optimizer and schedule


def test_groups_reach_the_optimizer_with_their_rates(module, make_quiet):
    one = module(
        "llava",
        adapt={"projector": "full", "language": LORA},
        optimizer=partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
        learning_rates={"projector": 1e-2},
        schedule=Linear(),
    )
    trainer = make_quiet(max_steps=2, max_epochs=-1)
    trainer.fit(one, data())
    groups = {group["name"]: group for group in trainer.optimizers[0].param_groups}
    assert {name: (group["initial_lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "projector": (1e-2, 0.1),
        "projector, no decay": (1e-2, 0.0),
        "rest, no decay": (1e-3, 0.0),
    }
    of = {id(p) for p in groups["projector"]["params"]}
    assert of == {id(p) for name, p in one.named_parameters() if "projector" in name and p.ndim > 1}
    assert sum(len(group["params"]) for group in groups.values()) == sum(
        p.requires_grad for p in one.parameters()
    )


def rates(make_quiet, one, source, **options):
    """The rate that each step used, as a share of the first."""
    seen = []
    watch = hook("on_before_optimizer_step", lambda t, m: seen.append(t.optimizers[0].param_groups[0]["lr"]))
    extra = options.pop("callbacks", [])
    make_quiet(callbacks=[watch, *extra], **options).fit(one, source)
    return [round(rate, 6) for rate in seen]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_steps": 3, "max_epochs": -1}, 3),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, 4),  # 3 batches are 2 steps
        ({"max_epochs": 2, "max_steps": 3, "accumulate_grad_batches": 2}, 3),
        ({"max_epochs": 2, "limit_train_batches": 2}, 4),
        ({"max_epochs": 2, "callbacks": [GradientAccumulationScheduler({0: 1, 1: 2})]}, 5),
    ],
)
def test_the_schedule_spans_the_run(module, make_quiet, options, steps):
    one = module(
        "llava",
        adapt={"projector": "full"},
        optimizer=partial(torch.optim.SGD, lr=1.0, momentum=0.9),
        schedule=Linear(),
        clip=None,
    )
    found = rates(make_quiet, one, data(size=5), **options)
    assert found == [round(1 - (step + 0.5) / steps, 6) for step in range(steps)]


def test_a_run_without_end_is_refused(module, make_quiet):
    with pytest.raises(UserError, match=r"max_steps or trainer\.max_epochs"):
        make_quiet(max_epochs=-1).fit(module("llava"), data())


def test_norms_are_logged_by_selector(module, make_quiet):
    one = module(
        "llava", adapt={"projector": "full", "language": LORA}, clip={"projector": 0.01, "rest": 100.0}
    )
    seen = {}

    def norms(trainer, module):
        for name in ("projector", "language"):
            grads = [p.grad for key, p in module.named_parameters() if name in key and p.grad is not None]
            seen[name] = torch.nn.utils.get_total_norm(grads).item()

    clipped = {}

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            norms(trainer, module)
            clipped["before"] = dict(seen)

        def on_train_batch_end(self, trainer, module, *_):
            norms(trainer, module)
            clipped["after"] = dict(seen)

    trainer = make_quiet(max_steps=1, callbacks=[Watch()])
    trainer.fit(one, data())
    logged = trainer.callback_metrics
    assert logged["train/grad_norm/projector"].item() == pytest.approx(
        clipped["before"]["projector"], rel=1e-5
    )
    assert logged["train/grad_norm/rest"].item() == pytest.approx(clipped["before"]["language"], rel=1e-5)
    assert clipped["after"]["projector"] == pytest.approx(0.01, rel=1e-3)
    assert clipped["after"]["language"] == clipped["before"]["language"]


# Refused


def test_strategies():
    for strategy in (DDPStrategy(), ModelParallelStrategy()):
        refuse_strategy(strategy)
    for strategy in (DeepSpeedStrategy.__new__(DeepSpeedStrategy), FSDPStrategy()):
        with pytest.raises(UserError, match=f"{type(strategy).__name__}.*choose ddp"):
            refuse_strategy(strategy)


def test_the_trainers_own_clipping_is_refused(module, make_quiet):
    with pytest.raises(UserError, match=r"gradient_clip_val 1\.0; clip with model\.clip"):
        make_quiet(gradient_clip_val=1.0).fit(module("llava"), data())


def test_synchronised_batch_norms_are_refused(module, make_quiet):
    """They would be new modules, that don't know that their statistics are frozen."""

    def on_rank():
        with pytest.raises(UserError, match=r"sync_batchnorm true; batch norms keep the statistics"):
            make_quiet(strategy="ddp", sync_batchnorm=True).fit(module("llava"), data())

    call_on_ranks(on_rank, ranks=1)  # Lightning leaves its process group and the variables of a rank


# Hyperparameters


def test_hyperparameters_are_plain_and_leave_trust_behind(module):
    one = module(
        "llava",
        adapt={"projector": "full"},
        optimizer=partial(torch.optim.SGD, lr=0.1),
        schedule=Linear(),
        token_weights=KindWeights(box=5.0),
        trust_remote_code=True,
    )
    found = dict(one.hparams)
    assert json.loads(json.dumps(found)) == found
    assert found["token_weights"]["box"] == 5.0
    assert "trust_remote_code" not in found
    assert not {"optimizer", "schedule", "clip", "learning_rates"} & found.keys()


# Waiting


class Syncs(TorchDispatchMode):
    """Counts how often a number leaves a tensor, and where."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
            torch.ops.aten.equal.default,
        ):
            self.count += 1
        return function(*args, **(kwargs or {}))


def test_no_step_waits_for_a_number(module, make_quiet, batch_of):
    """On a GPU each of these would stop the host until the device has caught up."""
    one = module("llava", optimizer=partial(torch.optim.SGD, lr=0.1))
    batch = batch_of(one)
    with Syncs() as own:  # transformers checks the number of image tokens, and looks for padding
        one.model.model(**batch.inputs, use_cache=False)
    counts = []

    class Watch(Callback):
        mode: Syncs

        def on_train_batch_start(self, *_):
            self.mode = Syncs()
            self.mode.__enter__()

        def on_train_batch_end(self, *_):
            self.mode.__exit__(None, None, None)
            counts.append(self.mode.count)

    make_quiet(max_epochs=1, log_every_n_steps=100, callbacks=[Watch()]).fit(one, data(size=6))
    assert len(counts) == 3
    assert max(counts) <= own.count  # workers find some of what the forward alone would ask for
    with Syncs() as mode:
        torch.ones(1).item()
    assert mode.count == 1


def test_the_log_has_the_loss_of_each_step(module, make_quiet, tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    make_quiet(max_epochs=1, logger=logger).fit(module("llava"), data())
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [bool(row["train/grad_norm"]) for row in rows] == [True, True]
