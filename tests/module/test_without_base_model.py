"""Models that have no base model inside: the head gives back what it gets."""

import torch
from lightning_vlm_callbacks.modes import set_modes

from lightning_vlm.losses.batch_loss import last_hidden_states


def test_texts_alone_have_the_hidden_states_of_the_logits(module, batch_of, listed, words):
    """Llama 4 takes batches without a picture, and learns from them."""
    one = module("llama4", adapt={"language": "full"})
    set_modes(one.model)
    batch = batch_of(one, listed([words("Hello, who is there?", "It is me."), words("Who?", "I.")]))
    assert "pixel_values" not in batch.inputs
    hidden = last_hidden_states(one.model, batch)
    expected = one.model(**batch.inputs, use_cache=False).logits
    torch.testing.assert_close(one.model.get_output_embeddings()(hidden), expected)
    one.loss_sums(batch).loss_sum.backward()
    names = {name for name, weight in one.model.named_parameters() if weight.requires_grad}
    assert names == {name for name, weight in one.model.named_parameters() if weight.grad is not None}
