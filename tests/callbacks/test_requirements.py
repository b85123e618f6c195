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
from lightning_vlm_callbacks.requirements import require_whole_model


@pytest.mark.parametrize("strategy", [DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy])
def test_strategies_that_split_a_model(strategy):
    message = f"^Mine: found trainer.strategy {strategy.__name__}, .*; choose ddp or one device$"
    with pytest.raises(MisconfigurationException, match=message):
        require_whole_model("Mine", strategy.__new__(strategy))


@pytest.mark.parametrize("strategy", [SingleDeviceStrategy, DDPStrategy])
def test_strategies_that_do_not(strategy):
    require_whole_model("Mine", strategy())
