"""Validation on two processes gives the loss, the perplexity and the answers' scores of one."""

import pytest

from lightning_vlm import VLMDataModule
from lightning_vlm.data.drawn import Drawn
from tests.support.ranks import DDP, call_on_ranks


@pytest.mark.parametrize(("samples", "size"), [(5, 2), (3, 1), (1, 2)], ids=str)
def test_scores_are_those_of_one_process(module, make_quiet, listed, words, samples, size):
    """Also where one process has fewer samples, a smaller last batch or none at all."""
    talk = words("Why?", "a b c " * 9, weight=3.0, task="talk")
    source = [talk, *Drawn("val", size=4)][:samples]

    def scores(**options):
        one = module(token_weights={"response": 2.0})
        (found,) = make_quiet(**options).validate(
            one, VLMDataModule(val=listed(source), batch_size=size), verbose=False
        )
        return {name: float(value) for name, value in found.items()}

    alone = scores()
    assert {"val/loss", "val/perplexity"} <= alone.keys()
    for rank in call_on_ranks(lambda: scores(**DDP)):
        assert rank == pytest.approx(alone, rel=1e-6)
