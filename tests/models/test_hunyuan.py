"""HunYuan-VL: positions that don't depend on neighbours, whoever finds them."""

import torch
from transformers import AutoProcessor

from lightning_vlm.models.loading.load import load_model
from tests.support.packed import SAMPLES, batch_of


class Loaded:
    """A model and its processor, as `batch_of` takes them."""

    def __init__(self, folder):
        self.model = load_model(folder).model.double()
        self.processor = AutoProcessor.from_pretrained(folder)

    def targets(self, batch):
        return None


def test_a_sample_has_the_same_logits_in_any_batch(tiny_folder):
    """Pictures are numbered in each sample, in training and where the model finds positions itself."""
    one = Loaded(tiny_folder("hunyuan_vl"))
    together = batch_of(one, SAMPLES, pack=False).inputs
    without_positions = {name: value for name, value in together.items() if name != "position_ids"}
    with torch.no_grad():
        found = one.model(**together, use_cache=False).logits
        found_itself = one.model(**without_positions, use_cache=False).logits
        for row, sample in enumerate(SAMPLES):
            alone = one.model(**batch_of(one, [sample], pack=False).inputs, use_cache=False).logits[0]
            torch.testing.assert_close(found[row, : len(alone)], alone, rtol=0, atol=1e-6)
            torch.testing.assert_close(found_itself[row, : len(alone)], alone, rtol=0, atol=1e-6)
