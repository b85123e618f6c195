import copy

import pytest
import torch
from torch import nn

from lightning_vlm.errors import UserError
from lightning_vlm.optim import clip_gradients, clip_groups


def model(scale=1.0):
    """Three parts with gradients, in two dtypes; `unused` has none and `frozen` is."""
    torch.manual_seed(0)
    parts = nn.ModuleDict(
        {name: nn.Linear(5, 7) for name in ("vision", "projector", "language", "unused", "frozen")}
    )
    parts["language"].to(torch.bfloat16)
    parts["frozen"].requires_grad_(False)
    for name in ("vision", "projector", "language"):
        for parameter in parts[name].parameters():
            parameter.grad = torch.randn_like(parameter) * scale
    return parts


def same_gradients(one, other):
    return all(
        (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)
        for p, q in zip(one.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_one_limit_is_clip_grad_norm(scale):
    ours, theirs = model(scale), model(scale)
    norms = clip_gradients(*clip_groups(ours, 1.0))
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    assert list(norms) == ["all"]
    assert torch.equal(norms["all"], expected)
    assert same_gradients(ours, theirs)


def test_each_part_is_clipped_by_itself_as_clip_grad_norm_does():
    ours, theirs = model(), model()
    norms = clip_gradients(*clip_groups(ours, {"vision": 0.5, "language": 1e6, "rest": 0.25}))
    expected = {
        "vision": nn.utils.clip_grad_norm_(theirs["vision"].parameters(), 0.5),
        "language": nn.utils.clip_grad_norm_(theirs["language"].parameters(), 1e6),
        "rest": nn.utils.clip_grad_norm_(theirs["projector"].parameters(), 0.25),
    }
    assert norms == expected
    assert same_gradients(ours, theirs)
    assert all(norm.shape == () for norm in norms.values())

    # one factor for a part: its gradient keeps its direction, which clipping tensor by tensor would turn
    before = torch.cat([p.grad.flatten() for p in model()["vision"].parameters()])
    after = torch.cat([p.grad.flatten() for p in ours["vision"].parameters()])
    assert after.norm() == pytest.approx(0.5, rel=1e-5)
    assert torch.cosine_similarity(before, after, dim=0) == pytest.approx(1.0, abs=1e-6)


def test_without_rest_the_others_are_left_alone():
    ours, untouched = model(), model()
    norms = clip_gradients(*clip_groups(ours, {"vision": 0.5}))
    assert list(norms) == ["vision"]
    assert not same_gradients(ours["vision"], untouched["vision"])
    assert same_gradients(ours["projector"], untouched["projector"])


def test_parameters_without_a_gradient_are_passed_over():
    ours = model()
    norms = clip_gradients(*clip_groups(ours, {"unused": 1.0}))
    assert torch.equal(norms["unused"], torch.tensor(0.0))
    assert all(parameter.grad is None for parameter in ours["unused"].parameters())


def test_one_nan_shows_in_its_own_group_only():
    ours = model()
    ours["vision"].bias.grad[0] = torch.nan
    norms = clip_gradients(*clip_groups(ours, {"vision": 1.0, "projector": 1.0}))
    assert norms["vision"].isnan()
    assert norms["projector"].isfinite()
    assert ours["projector"].weight.grad.isfinite().all()


def test_norms_stay_on_the_device():
    ours = copy.deepcopy(model()).to("meta")  # where reading a value is an error
    for name in ("vision", "projector", "language"):
        for parameter in ours[name].parameters():
            parameter.grad = torch.empty_like(parameter)
    norms = clip_gradients(*clip_groups(ours, {"vision": 0.5, "unused": 1.0, "rest": 0.25}))
    assert {norm.device.type for norm in norms.values()} == {"meta"}


def test_groups_hold_each_trainable_parameter_once():
    tied = nn.ModuleDict({"embedding": nn.Linear(3, 3), "head": nn.Linear(3, 3, bias=False)})
    tied["head"].weight = tied["embedding"].weight
    groups, limits = clip_groups(tied, {"head": 1, "rest": 2})
    assert limits == {"head": 1, "rest": 2}
    assert [list(map(id, group)) for group in groups.values()] == [
        [id(tied["embedding"].weight)],
        [id(tied["embedding"].bias)],
    ]
    groups, limits = clip_groups(model(), 0.5)
    assert limits == {"all": 0.5}
    assert len(groups["all"]) == 8


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (0.0, r"clip: found 0\.0; expected a number > 0"),
        ({"vision": float("inf")}, "clip: found vision: inf"),
        (
            {"vision": 1.0, "*.bias": 1.0},
            r"'vision\.bias' is taken by two selectors, 'vision' and '\*\.bias'",
        ),
        ({"frozen": 1.0}, r"selector 'frozen': all 2 parameters .* frozen"),
        ({"visoin": 1.0}, r"selector 'visoin'.*nearest: vision"),
        ({"*": 1.0, "rest": 1.0}, 'clip: found "rest", but the other selectors take all'),
    ],
)
def test_bad_limits_are_refused(clip, message):
    with pytest.raises(UserError, match=message):
        clip_groups(model(), clip)


def test_nothing_to_clip_is_refused():
    with pytest.raises(UserError, match="nothing to train"):
        clip_groups(model().requires_grad_(False), 1.0)
