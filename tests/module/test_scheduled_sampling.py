"""What a step learns from when answers hold the model's own words, against two passes by hand."""

import csv

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import CSVLogger
from tokenizers import AddedToken
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_vlm import VLMDataModule
from lightning_vlm.callbacks.scheduled_sampling import ScheduledSampling, never_written
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.kinds import Kind
from tests.support import tiny

FAMILIES = tuple(tiny.FAMILIES)
PLAN = {"projector": "full", "language": {"lora": {"r": 2, "dropout": 0.2}}}


class Steps(Callback):
    """The inputs and losses of each batch; and how often the model has run."""

    def __init__(self):
        self.inputs, self.kept, self.batches, self.losses, self.modes = [], [], [], [], []
        self.passes = 0

    def on_train_start(self, trainer, pl_module):
        def count(*_):
            self.passes += 1

        pl_module.model.get_decoder().register_forward_pre_hook(count)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.inputs.append({name: value.clone() for name, value in batch.inputs.items()})
        self.kept.append(dict(batch.inputs))
        self.batches.append(batch)
        self.modes.append([one.training for one in pl_module.modules()])

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.losses.append(outputs["loss"].clone())


def fit(one, make_quiet, source, sampling=None, ckpt=None, more=(), batch_size=1, **options):
    """What each batch was before sampling and after it, and the weights at the end."""
    before, after = Steps(), Steps()
    seed_everything(1)
    callbacks = [before, *([sampling] if sampling else []), after, *more]
    trainer = make_quiet(callbacks=callbacks, **{"max_epochs": 1, **options})
    data = VLMDataModule(train=source, batch_size=batch_size, shuffle=False)
    trainer.fit(one, data, ckpt_path=ckpt, weights_only=True)
    return before, after, {name: p.detach().clone() for name, p in one.named_parameters() if p.requires_grad}


def awake(one):
    """Weights that don't all say the same."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in one.model.get_decoder().parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return one


def inside(kinds):
    """Which tokens of a row are of an answer and not its last."""
    answer = [kind >= Kind.RESPONSE for kind in kinds.tolist()]
    return [place > 0 and all(answer[place : place + 2]) for place in range(len(answer) - 1)] + [False]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_from_its_own_words(module, make_quiet, batch_of, listed, family):
    """At probability 1 the inputs are the likeliest tokens of a first pass, shifted; only inside answers. The
    loss is that of the family's own logits on these inputs, against the right tokens."""
    one = awake(module(family, adapt={"language": {"lora": {"r": 2}}}))
    source = listed(list(Drawn("train", size=9))[3:6])
    gold = batch_of(one, source)
    state = {name: value.clone() for name, value in one.model.state_dict().items()}
    one.model.eval()
    with torch.no_grad():
        predicted = one.model(**gold.inputs, use_cache=False).logits.argmax(2)
    never = set(never_written(one.processor, 0).nonzero()[:, 0].tolist())
    expected, count = gold.inputs["input_ids"].clone(), 0
    for row in range(3):
        for place, hit in enumerate(inside(gold.kinds[row].where(gold.factors[row] > 0, Kind.SPECIAL))):
            token = predicted[row, place - 1].item()
            if hit and token not in never:
                count += expected[row, place] != token
                expected[row, place] = token
    assert count > 10

    before, after, _ = fit(one, make_quiet, source, ScheduledSampling(1.0, "constant"), batch_size=3)
    assert torch.equal(before.inputs[0]["input_ids"], gold.inputs["input_ids"])
    assert torch.equal(after.inputs[0].pop("input_ids"), expected)
    after.inputs[0].pop("position_ids", None)  # which workers find where they know the model
    assert after.inputs[0].keys() == gold.inputs.keys() - {"input_ids"}
    for name, value in after.inputs[0].items():
        assert torch.equal(value, gold.inputs[name]), name
    assert before.modes == after.modes
    assert after.passes in (2, 4)  # two of each batch; a template that makes more samples has two batches

    one.model.load_state_dict(state)
    one.model.eval()
    with torch.no_grad():
        logits = one.model(**{**gold.inputs, "input_ids": expected}, use_cache=False).logits
    weights = torch.tensor([0, 0, 0, 0, 1.0, 2.0, 1.5])[gold.kinds.long()][:, 1:]
    weights *= gold.factors[:, 1:]
    labels = gold.inputs["input_ids"][:, 1:]
    labels = labels.where(labels < logits.shape[-1], 0)  # Mllama's head doesn't know the picture's token
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels, reduction="none")
    torch.testing.assert_close(after.losses[0] * 1024, (losses * weights).sum(), rtol=1e-4, atol=0)


def test_by_hand_on_a_sample_of_words(module, make_quiet, listed, words):
    """Token by token, with nothing but the model: each prefix of the right tokens by itself."""
    one = awake(module("llava"))
    source = listed([words("Which one?", "The small one, I believe.")])
    before, after, _ = fit(one, make_quiet, source, ScheduledSampling(1.0, "constant"))
    gold, kinds = before.inputs[0]["input_ids"][0], before.batches[0].kinds[0]
    special = set(one.processor.tokenizer.all_special_ids)
    one = awake(module("llava"))
    one.model.eval()
    expected = gold.tolist()
    for place, hit in enumerate(inside(kinds)):
        if hit:
            with torch.no_grad():
                token = one.model(gold[None, :place]).logits[0, -1].argmax().item()
            expected[place] = expected[place] if token in special else token
    assert after.inputs[0]["input_ids"][0].tolist() == expected != gold.tolist()
    assert before.kept[0]["input_ids"][0].tolist() == expected, "as NonFiniteGuard keeps it"


@pytest.mark.parametrize("sampling", [ScheduledSampling(0.0), ScheduledSampling(1.0, start=0.9)])
def test_no_probability_is_the_ordinary_step_bit_for_bit(module, make_quiet, sampling):
    source = Drawn("train", size=6)
    one, other = module("llava", adapt=PLAN), module("llava", adapt=PLAN)
    _, ordinary, expected = fit(one, make_quiet, source, accumulate_grad_batches=2)
    _, found, weights = fit(other, make_quiet, source, sampling, accumulate_grad_batches=2)
    assert found.passes == ordinary.passes == 6
    assert found.losses == ordinary.losses
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name


def test_dropout_is_that_of_the_ordinary_step(module, make_quiet):
    """A first pass that predicts what is there already changes nothing: it draws from no other chance."""
    source, gold = Drawn("train", size=3), []

    class Undo(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            batch.inputs["input_ids"] = gold[batch_idx]

    before, _, expected = fit(module("llava", adapt=PLAN), make_quiet, source)
    gold += [inputs["input_ids"] for inputs in before.inputs]
    one = module("llava", adapt=PLAN)
    sampling = ScheduledSampling(1.0, "constant", predictions="drawn")
    _, _, found = fit(one, make_quiet, source, sampling, more=[Undo()])
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


def changed(before, after):
    """Which of the tokens inside answers each batch has replaced."""
    masks = []
    for old, new, batch in zip(before.inputs, after.inputs, before.batches, strict=True):
        differs = old["input_ids"] != new["input_ids"]
        within = torch.tensor([inside(row) for row in batch.kinds])
        assert not (differs & ~within).any()
        masks.append(differs[within])
    return masks


def test_the_probability_rises_by_steps_and_is_logged(module, make_quiet, tmp_path):
    """Two epochs of 5 batches, in steps of 2, 2, 1. A drawn token, one of 400, is rarely the right one."""
    one = awake(module("llava", optimizer=lambda groups: torch.optim.SGD(groups, lr=1e-30), adapt=PLAN))
    sampling = ScheduledSampling(0.9, predictions="drawn")
    source = Drawn("train", size=150)
    options = {"max_epochs": 2, "accumulate_grad_batches": 2, "logger": CSVLogger(tmp_path)}
    before, after, _ = fit(one, make_quiet, source, sampling, batch_size=30, **options)
    masks = changed(before, after)
    steps = [[0, 1], [2, 3], [4], [5, 6], [7, 8], [9]]
    for step, batches in enumerate(steps):
        mask = torch.cat([masks[batch] for batch in batches])
        share, expected = mask.float().mean().item(), 0.9 * step / 6
        assert len(mask) > 300
        assert share == pytest.approx(expected, abs=0.06), step
    (path,) = tmp_path.rglob("metrics.csv")
    rows = [row for row in csv.DictReader(path.open()) if row["scheduled_sampling"]]
    found = {int(row["step"]): float(row["scheduled_sampling"]) for row in rows}
    assert found == pytest.approx({step: 0.9 * step / 6 for step in range(6)})
    assert len(rows) == 6


class Save(Callback):
    def __init__(self, path, batches):
        self.path, self.batches = path, batches

    def on_train_batch_end(self, trainer, *_):
        self.batches -= 1
        if not self.batches:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("predictions", ["likeliest", "drawn"])
@pytest.mark.parametrize("batches", [2, 6, 8])
def test_a_resumed_run_is_the_uninterrupted_one(module, make_quiet, tmp_path, batches, predictions):
    options = {"max_epochs": 2, "accumulate_grad_batches": 2}

    def run(**more):
        one, sampling = module("llava", adapt=PLAN), ScheduledSampling(0.6, predictions=predictions)
        return fit(one, make_quiet, Drawn("train", size=6), sampling, **options, **more)

    path = tmp_path / "saved.ckpt"
    _, whole, expected = run(more=[Save(path, batches)])
    torch.rand(5)
    _, resumed, found = run(ckpt=path)
    for old, new in zip(whole.inputs[batches:], resumed.inputs, strict=True):
        assert torch.equal(old["input_ids"], new["input_ids"])
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


def test_two_ranks(module, make_quiet, on_two_ranks, listed, words):
    """Each draws for itself, replicas stay equal, and a rank without anything to replace waits for nobody."""
    same = [
        words(source=str(count), answer="It is red, I think, or so it seems to me.") for count in range(7)
    ]

    def on_rank():
        one, sampling = awake(module("llava", adapt=PLAN)), ScheduledSampling(0.5, "constant")
        options = {"strategy": "ddp", "devices": 2, "batch_size": 1, "max_epochs": 1}
        before, after, weights = fit(one, make_quiet, listed(same), sampling, **options)
        seeds = [one.callbacks.run_state.seed_of(one.trainer, 0, use) for use in ("", " scheduled sampling")]
        return {
            "changed": changed(before, after),
            "weights": weights,
            "passes": after.passes,
            "seeds": seeds,
        }

    first, second = on_two_ranks(on_rank)
    assert [len(mask) for mask in second["changed"]] == [*[len(first["changed"][0])] * 3, 0]
    assert any(map(torch.Tensor.any, first["changed"]))
    masks = [*first["changed"], *second["changed"][:3]]
    assert len({tuple(mask.tolist()) for mask in masks}) == 7, "other ones in each batch of each rank"
    assert len({*first["seeds"], *second["seeds"]}) == 4
    assert (first["passes"], second["passes"]) == (8, 7)
    for name, weight in first["weights"].items():
        assert torch.equal(second["weights"][name], weight), name


def test_under_autocast_and_gradient_checkpointing(module, make_quiet):
    """The first pass is in the precision of the step, without gradients and without dropout."""
    seen, dropouts = [], []
    one = awake(module("qwen2_5_vl", adapt=PLAN, gradient_checkpointing=True))
    one.model.get_decoder().layers[0].mlp.down_proj.register_forward_hook(
        lambda part, inputs, output: seen.append((output.dtype, torch.is_grad_enabled()))
    )
    dropout = next(part for part in one.modules() if isinstance(part, torch.nn.Dropout) and part.p)
    dropout.register_forward_hook(lambda part, *_: dropouts.append(part.training))
    sampling = ScheduledSampling(1.0, "constant")
    fit(one, make_quiet, Drawn("train", size=1), sampling, precision="bf16-mixed")
    assert seen[0] == (torch.bfloat16, False)
    assert {dtype for dtype, _ in seen} == {torch.bfloat16}
    assert dropouts[0] is False
    assert dropouts[1:]
    assert all(dropouts[1:])


class Syncs(TorchDispatchMode):
    """Counts how often a number leaves a tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        aten = torch.ops.aten
        waits = (aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default)
        self.count += function in waits or "unique" in str(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("predictions", ["likeliest", "drawn"])
def test_the_host_waits_for_nothing_but_the_models_own_checks(module, make_quiet, batch_of, predictions):
    one, mode = module("llava", adapt=PLAN), Syncs()
    batch = batch_of(one)
    with Syncs() as own:
        one.model.model(**batch.inputs, use_cache=False)

    class Watch(ScheduledSampling):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            with mode:
                super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    source = Drawn("train", size=3)
    fit(one, make_quiet, source, Watch(1.0, "constant", predictions=predictions), batch_size=3)
    assert mode.count <= own.count  # in a fit workers find some of what the model would ask for


def test_what_no_answer_has_inside(processor_of):
    processor = processor_of("smolvlm")
    vocabulary = processor.tokenizer.get_vocab()
    never = never_written(processor, 10_000)
    assert len(never) == 10_000
    for token in ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<|im_start|>"):
        assert never[vocabulary[token]], token
    assert never.sum() < 50
    tokenizer = processor.tokenizer
    tokenizer.add_tokens(["<loc_1>"])
    tokenizer.add_tokens([AddedToken("<mark>", special=True)])
    assert tokenizer.convert_tokens_to_ids("<mark>") not in tokenizer.all_special_ids
    processor.image_token, tokenizer.eos_token = "a", "b"  # ordinary ones, named as such
    never = never_written(processor, 10_000)
    assert not never[tokenizer.convert_tokens_to_ids("<loc_1>")]
    assert never[tokenizer.convert_tokens_to_ids(["<mark>", "a", "b"])].tolist() == [True] * 3
    assert not never[tokenizer.convert_tokens_to_ids("c")]


def test_what_is_refused(module, make_quiet):
    data = VLMDataModule(train=Drawn("train", size=2))
    with pytest.raises(UserError, match="needs an end"):
        make_quiet(max_epochs=-1, callbacks=[ScheduledSampling(0.1)]).fit(module("llava"), data)
