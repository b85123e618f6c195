"""The box loss through heads of all kinds, against logits of the whole vocabulary; what a user may choose."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_vlm.errors import UserError
from lightning_vlm.losses import box_loss
from lightning_vlm.losses.box_loss import BoxLoss, box_losses
from lightning_vlm.losses.coordinates import soft_targets
from lightning_vlm.losses.language import linear_cross_entropy
from lightning_vlm.models.logits import LogitOptions
from tests.support.numbers import BINS, DIGITS, THREES, targets_of

BOXES = [(0.399, 0.1, 0.5, 0.731), (0.005, 0.05), (0.25, 0.5, 0.999, 1.0)] * 30
PLAIN = LogitOptions(None, 1.0)
KINDS = ("soft", "wasserstein", "iou")


class OfParts(nn.Module):
    """A head that is more than its weight."""

    def __init__(self, plain, extra):
        super().__init__()
        self.plain, self.extra = plain, extra

    def forward(self, hidden):
        return self.plain(hidden) + self.extra(hidden)


def made(tokens=DIGITS, size=1, vocabulary=2100, dtype=torch.float64):
    torch.manual_seed(0)
    numbers, candidates = targets_of(BOXES, tokens, size=size, whole=1024 if 0 in tokens else 1000)
    hidden = torch.randn(len(numbers.values), 8, dtype=dtype, requires_grad=True)
    return numbers, candidates, hidden, nn.Linear(8, vocabulary, dtype=dtype)


def results(losses, hidden, head):
    """Values, and gradients of a weighted sum."""
    weights = torch.linspace(0.5, 2, len(hidden), dtype=losses.added.dtype)
    learned = [hidden, *head.parameters()]
    grads = torch.autograd.grad((losses.added * weights).sum(), learned)
    return [losses.added, losses.losses, *grads]


def expected_soft(numbers, candidates, logits):
    """By the definition: cross-entropy against probabilities of the whole vocabulary, less the usual one."""
    everywhere = torch.zeros_like(logits)
    everywhere[:, candidates.ids] = soft_targets(numbers, candidates, 1.0).to(logits.dtype)
    right = torch.zeros_like(logits)
    same = (candidates.values == numbers.values[:, None]) & (candidates.digits == numbers.digits[:, None])
    right[:, candidates.ids] = same.to(logits.dtype)
    return F.cross_entropy(logits, everywhere, reduction="none") - F.cross_entropy(
        logits, right, reduction="none"
    )


@pytest.mark.parametrize(
    "options", [PLAIN, LogitOptions(2.0, 1.0), LogitOptions(None, 0.25), LogitOptions(3.0, 4.0)]
)
@pytest.mark.parametrize(("tokens", "size"), [(DIGITS, 1), (THREES, 3), (BINS, 1)])
def test_only_rows_of_candidates_give_what_the_whole_vocabulary_gives(tokens, size, options):
    numbers, candidates, hidden, head = made(tokens, size)
    logits = options.logit_scale * head(hidden)
    if options.softcap:
        logits = options.softcap * torch.tanh(logits / options.softcap)
    losses = box_losses(hidden, head, numbers, candidates, BoxLoss("soft"), options)
    expected = expected_soft(numbers, candidates, logits)
    torch.testing.assert_close(losses.added, expected, rtol=1e-6, atol=1e-6)
    weights = torch.linspace(0.5, 2, len(hidden), dtype=torch.float64)
    learned = [hidden, head.weight, head.bias]
    ours = torch.autograd.grad((losses.added * weights).sum(), learned)
    theirs = torch.autograd.grad((expected * weights).sum(), learned)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tokens", "size"), [(THREES, 3), (BINS, 1)])
def test_chunks_and_other_heads_make_no_difference(monkeypatch, kind, tokens, size):
    numbers, candidates, hidden, head = made(tokens, size)
    whole = results(box_losses(hidden, head, numbers, candidates, BoxLoss(kind), PLAIN), hidden, head)
    monkeypatch.setattr(box_loss, "_CHUNK", 1)  # 64 tokens at a time
    assert len(hidden) > 3 * 64
    pieces = results(box_losses(hidden, head, numbers, candidates, BoxLoss(kind), PLAIN), hidden, head)
    for one, other in zip(pieces, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)

    extra = nn.Linear(8, head.out_features, dtype=torch.float64)
    merged = nn.Linear(8, head.out_features, dtype=torch.float64)
    merged.weight.data = head.weight.data + extra.weight.data
    merged.bias.data = head.bias.data + extra.bias.data
    parts = OfParts(head, extra)
    found = results(box_losses(hidden, parts, numbers, candidates, BoxLoss(kind), PLAIN), hidden, parts)
    other = results(box_losses(hidden, merged, numbers, candidates, BoxLoss(kind), PLAIN), hidden, merged)
    for one, two in zip([*found[:5], *found[3:5]], [*other, *other[3:]], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_halves_are_multiplied_as_halves_and_counted_in_float32(kind):
    numbers, candidates, hidden, head = made()
    exact = box_losses(hidden, head, numbers, candidates, BoxLoss(kind), PLAIN)
    halves = hidden.detach().bfloat16().requires_grad_()
    found = box_losses(halves, head.bfloat16(), numbers, candidates, BoxLoss(kind), PLAIN)
    assert found.added.dtype == found.losses.dtype == torch.float32
    torch.testing.assert_close(found.added.double(), exact.added, rtol=0.05, atol=0.05)
    found.added.sum().backward()
    assert halves.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_is_a_factor_and_shares_are_of_a_box(kind):
    numbers, candidates, hidden, head = made()
    one = box_losses(hidden, head, numbers, candidates, BoxLoss(kind, weight=0.25), PLAIN)
    other = box_losses(hidden, head, numbers, candidates, BoxLoss(kind, weight=0.5), PLAIN)
    torch.testing.assert_close(2 * one.added, other.added)
    assert torch.equal(one.losses, other.losses)
    of_item = torch.zeros(len(BOXES), dtype=torch.float64).index_add(
        0, numbers.axes // 4, one.shares.double()
    )
    if kind == "iou":
        torch.testing.assert_close(of_item, torch.ones_like(of_item))
        torch.testing.assert_close(one.added, 0.25 * one.shares * one.losses)
    else:
        assert set(one.shares.tolist()) == {1.0}


def free_logits(numbers):
    """Hidden states that are logits themselves."""
    head = nn.Linear(60, 60, bias=False, dtype=torch.float64).requires_grad_(False)
    head.weight.copy_(torch.eye(60))
    hidden = torch.randn(len(numbers.values), 60, dtype=torch.float64, requires_grad=True)
    return hidden, head, torch.optim.Adam([hidden], lr=0.3)


@pytest.mark.parametrize("kind", ["wasserstein", "iou"])
def test_descent_moves_the_expected_box_to_the_right_one(kind):
    """By the loss alone, without cross-entropy."""
    numbers, candidates, _, _ = made()
    hidden, head, optimizer = free_logits(numbers)
    before = box_losses(hidden, head, numbers, candidates, BoxLoss("iou"), PLAIN).losses
    for _ in range(200):
        losses = box_losses(hidden, head, numbers, candidates, BoxLoss(kind), PLAIN)
        optimizer.zero_grad()
        losses.added.sum().backward()
        optimizer.step()
    after = box_losses(hidden, head, numbers, candidates, BoxLoss("iou"), PLAIN).losses
    assert before.mean() > 1
    assert after.mean() < 0.1


def test_cross_entropy_and_soft_targets_together_are_at_least_their_entropy():
    """Descent on both reaches the soft targets, and no less."""
    numbers, candidates, _, _ = made()
    hidden, head, optimizer = free_logits(numbers)
    labels = candidates.ids[(candidates.values == numbers.values[:, None]).int().argmax(1)]
    soft = soft_targets(numbers, candidates, 1.0).double()
    entropy = -torch.xlogy(soft, soft).sum().item()
    for _ in range(200):
        losses = box_losses(hidden, head, numbers, candidates, BoxLoss("soft"), PLAIN)
        total = linear_cross_entropy(hidden, head.weight, labels).loss_sum + losses.added.sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        assert total.item() > entropy
    assert total.item() < entropy + 1
    assert losses.losses.max() < 0.02


def test_what_is_read():
    assert BoxLoss.read(None) is None
    assert BoxLoss.read("iou") == BoxLoss.read({"kind": "iou"}) == BoxLoss.read(BoxLoss("iou"))
    assert [BoxLoss(kind).in_force for kind in KINDS] == [1.0, 0.3, 2.0]
    assert BoxLoss("iou", weight=0.5).in_force == 0.5
    assert [BoxLoss("iou", l1=l1).l1 for l1 in (0, 0.5)] == [0, 0.5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("wassersteen", "box_loss.kind: found 'wassersteen'; expected one of .*; did you mean wasserstein"),
        ({"kind": "soft", "sigm": 2}, "box_loss: there is no sigm; did you mean sigma?"),
        ({"weight": 2.0}, "box_loss: found no kind; expected one of soft, wasserstein, iou"),
        ({"kind": "iou", "iou": "gio"}, "box_loss.iou: found 'gio'; expected one of .*; did you mean giou?"),
        ({"kind": "iou", "sigma": 2.0}, "box_loss.sigma: found it with kind iou; it belongs to soft"),
        ({"kind": "soft", "l1": 2.0}, "box_loss.l1: found it with kind soft; it belongs to iou"),
        (
            {"kind": "soft", "weight": 1.5},
            "box_loss.weight: found 1.5; expected a finite number > 0, at most 1",
        ),
        ({"kind": "iou", "weight": 0}, "box_loss.weight: found 0; expected a finite number > 0"),
        ({"kind": "soft", "sigma": float("nan")}, "box_loss.sigma: found nan; expected a finite number > 0"),
        ({"kind": "iou", "l1": -1.0}, "box_loss.l1: found -1.0; expected a finite number >= 0"),
        ({"kind": "soft", "shape": True}, "box_loss.shape: found True; expected one of gaussian, triangular"),
    ],
)
def test_mistakes_are_told(given, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        BoxLoss.read(given)
