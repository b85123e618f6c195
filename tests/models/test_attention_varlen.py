"""The attention function: loop and kernel against softmax by hand, and what is refused."""

import pytest
import torch

from lightning_vlm.errors import UserError
from lightning_vlm.models.attention import varlen

LENGTHS = torch.tensor([3, 1, 5])
ENDS = torch.cat((torch.zeros(1, dtype=torch.int64), LENGTHS.cumsum(0))).int()


class Layer(torch.nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.is_causal = causal


def draw(key_heads=4, dim=8, value_dim=None):
    torch.manual_seed(0)
    query = torch.randn(1, 4, 9, dim, dtype=torch.float64, requires_grad=True)
    key = torch.randn(1, key_heads, 9, dim, dtype=torch.float64, requires_grad=True)
    value = torch.randn(1, key_heads, 9, value_dim or dim, dtype=torch.float64, requires_grad=True)
    return query, key, value


def by_hand(query, key, value, ends, causal, window, scaling):
    """Softmax with a mask of blocks, for tensors of shape [heads, tokens, dim]."""
    lengths = ends.diff().long()
    block = torch.arange(len(lengths)).repeat_interleave(lengths)
    seen = block[:, None] == block[None]
    place = torch.arange(len(block))
    behind = place[:, None] - place[None]
    if causal:
        seen = seen & (behind >= 0)
    if window is not None:
        seen = seen & (behind < window)
    repeats = query.shape[0] // key.shape[0]
    scores = scaling * query @ key.repeat_interleave(repeats, 0).transpose(-1, -2)
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value.repeat_interleave(repeats, 0)


def kernel(query, key, value, ends, key_ends, longest, longest_key, *, scale, window_size, enable_gqa=False):
    """What PyTorch's kernel computes, as its documentation says."""
    assert ends is key_ends
    assert longest == longest_key >= ends.diff().max()
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert query.shape[-1] % 8 == 0
    assert enable_gqa or query.shape[1] == key.shape[1]
    left, right = window_size
    assert right in (-1, 0)
    heads_first = [tensor.transpose(0, 1) for tensor in (query, key, value)]
    out = by_hand(*heads_first, ends, right == 0, None if left < 0 else left + 1, scale)
    return out.transpose(0, 1)


def attend(tensors, causal, ends=ENDS, **options):
    return varlen.attend(Layer(causal), *tensors, None, cu_seq_lens_q=ends, **options)[0]


@pytest.fixture(params=["loop", "kernel", "kernel that groups heads"])
def way(request, monkeypatch):
    if request.param != "loop":
        monkeypatch.setattr(varlen, "kernel_takes", lambda *_: True)
        monkeypatch.setattr(varlen, "varlen_attn", kernel)
        monkeypatch.setattr(varlen, "_KERNEL_GROUPS_HEADS", "groups" in request.param)
    return request.param


@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, None), (True, 2), (True, 1), (True, 9)])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("scaling", [0.3, None])
def test_each_sequence_sees_itself_alone(way, causal, window, key_heads, scaling):
    """Against softmax by hand in float64, with gradients."""
    tensors = draw(key_heads)
    found = attend(tensors, causal, scaling=scaling, sliding_window=window)
    expected = by_hand(*(tensor[0] for tensor in tensors), ENDS, causal, window, scaling or 8**-0.5)
    torch.testing.assert_close(found, expected.transpose(0, 1)[None])
    weights = torch.randn_like(found)
    gradients = torch.autograd.grad((found * weights).sum(), tensors)
    wanted = torch.autograd.grad((expected.transpose(0, 1)[None] * weights).sum(), tensors)
    for gradient, expected_gradient in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize(("dim", "value_dim"), [(12, 12), (16, 8), (12, 5)])
def test_heads_of_other_widths(way, dim, value_dim):
    tensors = draw(2, dim, value_dim)
    found = attend(tensors, True)
    expected = by_hand(*(tensor[0] for tensor in tensors), ENDS, True, None, dim**-0.5)
    assert found.shape == (1, 9, 4, value_dim)
    torch.testing.assert_close(found, expected.transpose(0, 1)[None])


def test_rows_are_laid_end_to_end(way):
    """[2, 6] with a sequence of padding at the end of the first row."""
    torch.manual_seed(0)
    tensors = torch.randn(3, 2, 4, 6, 8, dtype=torch.float64).unbind()
    ends = torch.tensor([0, 4, 6, 12]).int()
    found, _ = varlen.attend(Layer(True), *tensors, None, cu_seq_lens_q=ends, max_length_q=6)
    for row, size in ((0, 4), (1, 6)):
        alone = [tensor[row, :, :size] for tensor in tensors]
        expected = by_hand(*alone, torch.tensor([0, size]), True, None, 8**-0.5)
        torch.testing.assert_close(found[row, :size], expected.transpose(0, 1))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"softcap": 50.0}, "softcap"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"position_bias": torch.zeros(1, 4, 9, 9)}, "position_bias"),
        ({"sliding_window": 3, "is_causal": False}, "sliding_window in both directions"),
    ],
)
def test_what_cant_be_exact_is_refused(way, options, named):
    with pytest.raises(UserError, match=f"can't attend exactly with {named}; set model.attn_implementation"):
        attend(draw(), True, **options)


def test_a_cache_is_refused(way):
    query, key, value = draw()
    with pytest.raises(UserError, match="9 keys for 2 queries"):
        attend((query[:, :, :2], key, value), True)


@pytest.mark.parametrize("name", ["softcap", "s_aux"])
def test_what_sdpa_may_ignore_is_refused_without_lengths_too(name):
    with pytest.raises(UserError, match=f"can't attend exactly with {name}"):
        varlen.attend(Layer(True), *draw(), None, **{name: 50.0})


def test_what_the_kernel_takes(monkeypatch):
    half = torch.zeros(9, 4, 8, dtype=torch.bfloat16)
    wide = torch.zeros(9, 4, 288, dtype=torch.bfloat16)
    assert not varlen.kernel_takes(half, half, 0)  # on a CPU
    monkeypatch.setattr(varlen, "kernel_runs_on", lambda device: True)
    assert varlen.kernel_takes(half, half, 0)
    assert not varlen.kernel_takes(half, half, 0.1)
    assert not varlen.kernel_takes(half.float(), half.float(), 0)
    assert not varlen.kernel_takes(wide, wide, 0)


@pytest.mark.parametrize(("capability", "runs"), [((8, 0), True), ((9, 0), True), ((7, 5), False)])
def test_where_the_kernel_runs(capability, runs, monkeypatch):
    """A T4, of compute capability 7.5, has none; nor has a PyTorch that was built without."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    for built in (True, False):
        monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda built=built: built)
        assert varlen.kernel_runs_on(torch.device("cuda")) == (runs and built)
    assert not varlen.kernel_runs_on(torch.device("cpu"))


def test_dropout_leaves_scores_out():
    dropped = attend(draw(), True, dropout=0.5)
    assert not torch.equal(dropped, attend(draw(), True))


def test_the_device_is_asked_once_for_all_layers(way, monkeypatch):
    """Where transformers gives the length of the longest sequence as a tensor, or not at all."""
    questions = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: questions.append(self) or tolist(self))
    longest = []
    if way != "loop":
        monkeypatch.setattr(varlen, "varlen_attn", lambda *args, **_: longest.append(args[5]) or args[0] * 1)
    ends, tensors = ENDS.clone(), draw()
    device_max = ends.diff().max()
    monkeypatch.setattr(torch.Tensor, "__int__", None)
    for given in (device_max, None, device_max):
        attend(tensors, True, ends, max_length_q=given)
    assert len(questions) == 1
    attend(tensors, True, ends + 0, max_length_q=7)
    assert len(questions) == (2 if way == "loop" else 1)
    assert way == "loop" or longest == [5, 5, 5, 7]
