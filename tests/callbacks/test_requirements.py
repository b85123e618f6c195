"""Which strategies keep a whole model on each rank; callbacks refuse the others by this check."""

import pytest
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning_vlm_callbacks.requirements import require_known_strategy, require_whole_model


@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_split_a_model(strategy):
    message = f"^Mine: found trainer.strategy {strategy.__name__}, .*; choose ddp or one device$"
    with pytest.raises(MisconfigurationException, match=message):
        require_whole_model("Mine", strategy.__new__(strategy))


def test_the_reason_against_fsdp2():
    message = "^Mine: found .* state. Mine cuts weights; choose ddp or one device$"
    with pytest.raises(MisconfigurationException, match=message):
        require_whole_model("Mine", ModelParallelStrategy(), "cuts weights")


@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, FSDPStrategy])
def test_strategies_whose_pieces_cannot_be_read(strategy):
    message = f"^Mine: found trainer.strategy {strategy.__name__}, .*; choose ModelParallelStrategy"
    with pytest.raises(MisconfigurationException, match=message):
        require_known_strategy("Mine", strategy.__new__(strategy))


@pytest.mark.parametrize("strategy", [SingleDeviceStrategy, DDPStrategy])
def test_strategies_that_do_not(strategy):
    require_whole_model("Mine", strategy())
    require_known_strategy("Mine", strategy())
    require_known_strategy("Mine", ModelParallelStrategy())
