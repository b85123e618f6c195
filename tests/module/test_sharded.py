"""A model cut into pieces over processes (FSDP2): the update is that of one process."""

import pytest

from tests.support.ranks import call_on_ranks
from tests.support.sharded import Fit, distance, run_fit

FULL = {"language": "full", "projector": "full"}


@pytest.mark.parametrize(("family", "adapt"), [("llava", "lora"), ("qwen2_vl", FULL)])
def test_the_update_is_that_of_one_process(folder, family, adapt):
    fit = Fit(folder(family), family, adapt)
    (alone,) = call_on_ranks(run_fit, 1, fit, ranks=1)
    for found in call_on_ranks(run_fit, 2, fit):
        assert distance(found["weights"], alone["weights"]) < 1e-6
        for name, value in alone["logged"].items():
            assert found["logged"][name].item() == pytest.approx(value.item(), rel=1e-5), name
