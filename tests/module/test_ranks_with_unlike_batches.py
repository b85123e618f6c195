"""Ranks whose batches reach different parameters, or none, wait for no gradient that doesn't come."""

from functools import partial

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.ddp import _register_ddp_comm_hook
from lightning_vlm_callbacks import StagedUnfreezing
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.fsdp import FSDPModule

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.optim import Constant
from tests.support.clips import EVERY_FRAME, clip, talk
from tests.support.dead import DEAD
from tests.support.packed import picture
from tests.support.ranks import call_on_ranks
from tests.support.sharded import sharded, whole_weights

LORA = {"projector": "full", "language": {"lora": {"r": 4}}, "vision.layers[0:2]": {"lora": {"r": 2}}}
FULL = {"vision": "full", "projector": "full", "language": "full"}
BATCHES = {
    "pictures on rank 0 alone": "PTPTPT",
    "text alone, then by turns": "TTPPTTP",
    "a rank without weight": "P0P00P00",
}
"""P is a sample with a picture, T one of text, 0 one without weight; ranks take them by turns."""
MEDIA = {"a video on rank 0, a picture on rank 1": "BPVPPVVV", "a text on rank 1": "BBVTPTVV"}
"""V is a sample with a video, B one with both."""


class HookOnAnyDevice(DDPStrategy):
    """Lightning registers a communication hook on GPUs only."""

    def _register_ddp_hooks(self):
        if self._ddp_comm_hook is not None:
            _register_ddp_comm_hook(self.model, ddp_comm_hook=self._ddp_comm_hook)


def sent_as_bfloat16(state, bucket):
    """torch refuses the hook of this name on gloo."""
    return bf16_compress_hook(state, bucket)


def samples(kinds, words):
    drawn = iter(Drawn("train", size=len(kinds), tasks=["vqa", "caption"], seed=3))
    shot = picture(64, 64, 9)
    made = {
        "P": lambda at: next(drawn),
        "T": lambda at: words(answer="Red. " * (1 + at)),
        "0": lambda at: words(weight=0.0),
        "V": lambda at: talk((clip(seed=at), "What moves?"), "A red square."),
        "B": lambda at: talk((clip(seed=at), "Like", shot, "?"), "Yes, it is."),
    }
    return [made[kind](at) for at, kind in enumerate(kinds)]


@pytest.fixture(scope="module")
def fit(module, make_quiet, listed, words):
    """Trains on this rank, and gives what it has trained."""

    def run(kinds, family="llava", strategy=None, accumulate=1, video=False, stages=None, **options):
        given = {
            "adapt": LORA,
            "optimizer": partial(torch.optim.SGD, lr=0.1),
            "schedule": Constant(),
            **options,
        }
        one = module(family, **given)
        validation = listed(samples("PTP", words)) if not video else None
        data = VLMDataModule(
            train=listed(samples(kinds, words)),
            val=validation,
            batch_size=1,
            shuffle=False,
            **({"video": EVERY_FRAME} if video else {}),
        )
        ranks = {} if strategy is None else {"strategy": strategy, "devices": 2}
        trainer = make_quiet(
            max_epochs=1,
            accumulate_grad_batches=accumulate,
            callbacks=[] if stages is None else [StagedUnfreezing(stages, "step")],
            **ranks,
        )
        trainer.fit(one, data)
        return whole_weights(one)

    return run


def apart(found, expected):
    """The relative distance of what two runs have trained."""
    assert found.keys() == expected.keys()
    squares = sum((found[name] - expected[name]).square().sum() for name in expected)
    return (squares / sum(one.square().sum() for one in expected.values())).sqrt().item()


def assert_ranks_agree(first, second):
    assert first.keys() == second.keys()
    for name, one in first.items():
        assert torch.equal(one, second[name]), name


def test_text_and_pictures(fit):
    """Validated, too, with one more sample on the first rank than on the second."""

    def on_rank():
        made = {}
        for window, (name, kinds) in enumerate(BATCHES.items()):
            found = fit(kinds, strategy="ddp", accumulate=1 + window % 2)
            made |= {f"{name} {key}": one for key, one in found.items()}
        return made

    assert_ranks_agree(*call_on_ranks(on_rank))


def test_pictures_and_videos_that_reach_different_parameters(fit, folder):
    """A newline between rows of pictures, and a tower for videos of their own."""
    kins = ("llava_next_video", "video_llava")
    for kin in kins:
        folder(kin)  # made before there are ranks

    def on_rank():
        made = {}
        for kin in kins:
            for name, kinds in MEDIA.items():
                options = {"adapt": FULL, "no_gradient_needed": DEAD[kin], "video": True}
                found = fit(kinds, kin, "ddp", **options)
                made |= {f"{kin} {name} {key}": one for key, one in found.items()}
        newline = {"projector": "full", "language": {"lora": {"r": 2}}}
        made |= fit(MEDIA["a text on rank 1"], "llava_next_video", "ddp", adapt=newline, video=True)
        return made

    assert_ranks_agree(*call_on_ranks(on_rank))


def test_a_model_in_pieces(fit, folder, monkeypatch):
    """FSDP2 with the same batches: no process waits for another, and the update is that of DDP.

    The models are loaded before there is a strategy that cuts them. Before torch 2.13 FSDP2 doesn't know the
    option by which it sends zeros.
    """
    kin = "video_llava"
    folder(kin)
    options = {"adapt": FULL, "no_gradient_needed": DEAD[kin], "family": kin, "video": True}
    runs = {
        "text": {"kinds": BATCHES["text alone, then by turns"], "accumulate": 2},
        "nothing": {"kinds": BATCHES["a rank without weight"]},
        "media": {"kinds": MEDIA["a video on rank 0, a picture on rank 1"], **options},
    }

    def on_rank():
        made = {}
        for name, options in runs.items():
            pieces = fit(**options, strategy=sharded(2)["strategy"])
            whole = fit(**options, strategy="ddp")
            made[name] = torch.tensor(apart(pieces, whole))
        with monkeypatch.context() as torch_before:
            torch_before.delattr(FSDPModule, "set_reduce_scatter_unused_params", raising=False)
            before = fit(**runs["media"], strategy=sharded(2)["strategy"])
        return {**made, "media, an older torch": torch.tensor(apart(before, whole))}

    for rank in call_on_ranks(on_rank):
        assert max(off.item() for off in rank.values()) < 1e-6, rank


def test_options_of_ddp_change_no_update(fit, make_quiet):
    """Against plain DDP: bit for bit, but where gradients are sent in bfloat16, to its rounding."""
    views, static = {"gradient_as_bucket_view": True}, {"static_graph": True}
    stages = [{"at": 0, "train": {"projector": 1.0}}, {"at": 1, "train": {"*": 1.0}}]
    full = {"adapt": FULL, "no_gradient_needed": DEAD["llava"], "gradient_checkpointing": True}
    runs = {
        "LoRA": ({}, views, {**views, **static}),
        "LoRA, accumulated": ({"accumulate": 2}, views),
        "full": (full, {**views, "find_unused_parameters": True}),
        "stages": ({"stages": stages}, {**views, **static}),
    }

    def on_rank():
        made = {}
        for name, (options, *others) in runs.items():
            plain = fit("PTTP", strategy=DDPStrategy(), **options)
            for other in others:
                found = fit("PTTP", strategy=DDPStrategy(**other), **options)
                made[f"{name} {other}"] = torch.tensor(apart(found, plain))
        hook = HookOnAnyDevice(ddp_comm_hook=sent_as_bfloat16)
        made["hook"] = torch.tensor(apart(fit("PTTP", strategy=hook), fit("PTTP", strategy="ddp")))
        return made

    for rank in call_on_ranks(on_rank):
        hooked = rank.pop("hook")
        assert 0 < hooked < 2**-9
        assert {name: off.item() for name, off in rank.items()} == dict.fromkeys(rank, 0.0)


def refused(fit, **options):
    strategy = DDPStrategy(**options.pop("strategy"))

    def on_rank():
        with pytest.raises(UserError) as caught:
            fit("PPPP", strategy=strategy, **options)
        return str(caught.value)

    return call_on_ranks(on_rank)[0]


def test_refuses_a_static_graph_that_is_none(fit):
    static = {"strategy": {"static_graph": True}}
    assert "leave static_graph out, or set accumulation to 1" in refused(fit, accumulate=2, **static)
    excused = refused(fit, adapt=FULL, no_gradient_needed=DEAD["llava"], **static)
    assert "static_graph with model.no_gradient_needed" in excused
    state = powerSGD_hook.PowerSGDState(None)
    sent = {"ddp_comm_hook": powerSGD_hook.powerSGD_hook, "ddp_comm_state": state}
    assert "ddp_comm_state PowerSGDState; a hook with a state of its own can't be resumed" in refused(
        fit, strategy=sent
    )
