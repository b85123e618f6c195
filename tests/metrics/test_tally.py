import json

import pytest
import torch
import torch.distributed

from lightning_vlm.metrics.tally import TaskTally


def test_tensors_and_numbers_add_up_and_reset_forgets():
    tally = TaskTally()
    tally.update("vqa", loss=torch.tensor([1.5]), count=2)
    tally.update("caption", count=torch.tensor(7))
    tally.update("vqa", loss=2, count=torch.tensor(3, dtype=torch.int64))
    totals = tally.totals()
    assert totals == {"caption": {"count": 7.0}, "vqa": {"count": 5.0, "loss": 3.5}}
    assert list(totals) == ["caption", "vqa"]
    assert all(type(value) is float for sums in totals.values() for value in sums.values())
    assert tally.totals() == totals, "asking twice changes nothing"
    tally.reset()
    assert tally.totals() == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_counts_beyond_what_float32_holds(dtype):
    tally = TaskTally()
    tally.update("vqa", count=torch.tensor(2**24, dtype=dtype))
    for _ in range(3):
        tally.update("vqa", count=torch.tensor(1, dtype=dtype))
    assert tally.totals() == {"vqa": {"count": 2**24 + 3}}


def test_tensors_stay_on_their_device():
    """The meta device has no numbers: whatever would read one fails."""
    tally = TaskTally()
    for _ in range(2):
        tally.update("vqa", loss=torch.ones((), device="meta", requires_grad=True))
    value = tally._sums["vqa"]["loss"]
    assert (value.device.type, value.dtype, value.requires_grad) == ("meta", torch.float64, False)


def test_the_callers_tensor_is_neither_changed_nor_kept():
    tally, loss = TaskTally(), torch.tensor(1.0, dtype=torch.float64)
    tally.update("vqa", loss=loss)
    tally.update("vqa", loss=loss)
    assert loss == 1
    loss.fill_(100)
    assert tally.totals() == {"vqa": {"loss": 2}}


def test_more_than_one_number_is_refused():
    with pytest.raises(RuntimeError):
        TaskTally().update("vqa", loss=torch.ones(2))


def totals_of_ranks():
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    tally = TaskTally()
    tally.update("vqa", count=torch.tensor(2**24 + rank), loss=0.1)
    if rank == 0:
        tally.update("grounding", count=5)
    else:
        tally.update("ocr", right=1)
        tally.update("vqa", only_here=1)
    answers = [tally.totals()]
    tally.reset()
    if rank == 1:
        tally.update("ocr", right=2)
    answers.append(tally.totals())
    torch.distributed.destroy_process_group()
    return json.dumps(answers)


def test_ranks_that_know_different_tasks(on_two_ranks):
    first, second = on_two_ranks(totals_of_ranks)
    assert first == second
    assert json.loads(first) == [
        {
            "grounding": {"count": 5},
            "ocr": {"right": 1},
            "vqa": {"count": 2**25 + 1, "loss": 0.2, "only_here": 1},
        },
        {"ocr": {"right": 2}},
    ]
