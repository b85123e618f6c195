"""Liger's kernels in the places of what they compute.

The kernels themselves need a GPU. Here the functions of `liger_kernel` that are called are PyTorch's
arithmetic, in the kernels' manner: they write over what they are given where Liger's do. (The real ones were
run in Triton's interpreter on Qwen2.5-VL, which takes minutes: loss equal, gradients off by 2e-7.)
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, silu

from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.errors import UserError
from lightning_vlm.models import kernels
from lightning_vlm.models.loading.load import load_model
from tests.support import tiny

FOUND = {
    "llava": (5, 2, 2),
    "llava_next": (5, 2, 2),
    "llava_onevision": (5, 2, 2),
    "smolvlm": (5, 2, 2),
    "idefics3": (5, 2, 2),
    "qwen2_vl": (5, 2, 4),
    "qwen2_5_vl": (10, 4, 4),
    "qwen3_vl": (9, 2, 4),
    "paligemma": (9, 2, 2),
    "gemma3": (14, 2, 2),
    "internvl": (5, 2, 2),
    "pixtral": (10, 2, 4),
    "mistral3": (11, 2, 4),
    "mllama": (9, 3, 2),
    "paddleocr_vl": (5, 2, 4),
    "hunyuan_vl": (11, 2, 2),
    "video_llama_3": (5, 2, 4),
    "exaone4_5": (14, 4, 4),
    "glm4v": (15, 2, 2),
    "glm46v": (15, 2, 2),
    "glm_ocr": (18, 2, 2),
    "qwen3_5": (7, 2, 2),
    "gemma4": (43, 5, 0),
    "gemma4_31b": (25, 4, 0),
    "idefics2": (9, 4, 2),
    "granite4_vision": (11, 5, 5),
    "granite_docling": (5, 2, 2),
    "perception_lm": (5, 2, 2),
    "fast_vlm": (5, 2, 2),
    "gemma3n": (41, 0, 0),
    "vipllava": (5, 2, 2),
    "llava_next_video": (5, 2, 2),
    "video_llava": (5, 2, 2),
    "aya_vision": (0, 2, 0),
    "cohere2_vision": (0, 2, 0),
}
"""Norms, gated activations and rotary embeddings of each tiny model."""


def rms_norm(x, weight, eps, offset, casting_mode, in_place):
    assert (casting_mode, in_place) == ("gemma" if offset else "llama", False)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (offset + weight)


class Multiply(torch.autograd.Function):
    """As Liger's: the backward writes over what it has kept, where nothing notices."""

    act = None

    @classmethod
    def forward(cls, ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return cls.act(gate) * up

    @classmethod
    def backward(cls, ctx, gradient):
        saved = ctx.saved_tensors
        kept = [one.detach().clone().requires_grad_() for one in saved]
        with torch.enable_grad():
            found = torch.autograd.grad(cls.act(kept[0]) * kept[1], kept, gradient)
        for one, value in zip(saved, found, strict=True):
            one.data.copy_(value)
        return found


class MultiplySilu(Multiply):
    act = staticmethod(silu)


class MultiplyGelu(Multiply):
    act = staticmethod(lambda x: gelu(x, approximate="tanh"))


def rotate(q, k, cos, sin):
    """[batch, heads, length, dim]"""
    cos, sin = (one.reshape(-1, *one.shape[-2:])[:, None] for one in (cos, sin))
    half = q.shape[-1] // 2
    return [x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin for x in (q, k)]


def rotate_vision(q, k, cos, sin):
    """[length, heads, dim]"""
    found = rotate(*(one.transpose(0, 1)[None] for one in (q, k)), cos, sin)
    return [one[0].transpose(0, 1) for one in found]


@pytest.fixture
def liger(monkeypatch):
    """A package with the names that are used of Liger."""
    contents = {
        "liger_kernel": {},
        "liger_kernel.ops": {"LigerSiLUMulFunction": MultiplySilu, "LigerGELUMulFunction": MultiplyGelu},
        "liger_kernel.transformers": {},
        "liger_kernel.transformers.functional": {"liger_rms_norm": rms_norm},
        "liger_kernel.transformers.rope": {
            "liger_rotary_pos_emb": rotate,
            "liger_rotary_pos_emb_vision": rotate_vision,
        },
    }
    for name, attributes in contents.items():
        package = ModuleType(name)
        package.__path__, package.__spec__ = [], ModuleSpec(name, None)
        vars(package).update(attributes)
        monkeypatch.setitem(sys.modules, name, package)
    sys.modules["liger_kernel.transformers"].rope = sys.modules["liger_kernel.transformers.rope"]


def make(folder, family, **options):
    torch.manual_seed(0)
    template = None if tiny.FAMILIES[family].template else "plain"
    module = VLMModule(str(folder), chat_template=template, **options)
    module.configure_model()
    return module.train()


@pytest.mark.parametrize("family", FOUND)
def test_what_is_found(family, tiny_folder, liger):
    model = load_model(tiny_folder(family)).model
    names = list(model.state_dict())
    assert kernels.use_liger(model) == FOUND[family]
    assert list(model.state_dict()) == names
    with pytest.raises(UserError, match=f"nothing in {type(model).__name__} that Liger's kernels compute"):
        kernels.use_liger(model)  # a second time


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen2_5_vl", {"adapt": "lora"}),
        ("qwen2_5_vl", {"adapt": "full", "gradient_checkpointing": True}),
        ("gemma3", {"adapt": "full"}),
        ("pixtral", {"adapt": "full"}),
        ("mllama", {"adapt": "full"}),
        ("qwen3_5", {"adapt": "full"}),
        ("gemma4", {"adapt": {"vision": "full", "projector": "full", "language": "full"}}),
        ("gemma4_31b", {"adapt": "full"}),
        ("granite4_vision", {"adapt": {"projector": "full", "language": "full"}}),
    ],
)
def test_loss_and_gradients_are_the_same(family, options, tiny_folder, liger):
    plain = make(tiny_folder(family), family, **options)
    fused = make(tiny_folder(family), family, kernels="liger", **options)
    data = VLMDataModule(train=Drawn("train", size=2), batch_size=2, processor=plain.processor)
    batch = next(iter(data.train_dataloader()))
    losses = [one.loss_sums(batch).loss_sum for one in (plain, fused)]
    losses[0].backward()
    losses[1].backward(retain_graph=True)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    expected = {name: one.grad for name, one in plain.named_parameters() if one.grad is not None}
    found = {name: one.grad.clone() for name, one in fused.named_parameters() if one.grad is not None}
    atol = 1e-4 if family.startswith("gemma4") else 1e-5  # whose embeddings are scaled up
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)
    losses[1].backward()  # what the first one kept is still there
    for name, weight in fused.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, 2 * found[name], rtol=1e-5, atol=atol, msg=name)


class DoubledRMSNorm(nn.Module):
    """Named as one that is known, but computes something else."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x):
        return 2 * nn.functional.rms_norm(x, (8,), self.weight, self.eps) + 1


class DroppingMLP(nn.Module):
    """Gated, but with a square instead of an activation that has a kernel."""

    def __init__(self):
        super().__init__()
        self.act_fn = torch.square

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    """Turns neighbours against each other, as Cohere's models do."""
    turned = [torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) for x in (q, k)]
    return [x * cos + y * sin for x, y in zip((q, k), turned, strict=True)]


class Neighbours(nn.Module):
    def forward(self, q, k, cos, sin):
        return apply_rotary_pos_emb(q, k, cos, sin)


def test_what_only_looks_alike_is_left_alone():
    assert kernels.norm_offset(DoubledRMSNorm()) is None
    assert kernels.gated_activation(DroppingMLP()) is None
    assert kernels.rotation_name(Neighbours()) is None


def test_refusals(tiny_folder, monkeypatch):
    folder = str(tiny_folder("llava"))
    with pytest.raises(UserError, match=r"model\.kernels: found model\.compile too"):
        VLMModule(folder, kernels="liger", compile=True)
    with pytest.raises(UserError, match="found 'triton'; expected liger"):
        VLMModule(folder, kernels="triton")
    monkeypatch.setattr(kernels, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="found no liger-kernel; pip install"):
        VLMModule(folder, kernels="liger").configure_model()
    with pytest.raises(UserError, match="liger needs a GPU"):
        kernels.refuse_without_gpu(torch.device("cpu"))
    kernels.refuse_without_gpu(torch.device("cuda"))
