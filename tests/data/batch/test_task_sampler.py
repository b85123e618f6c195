"""Draws of tasks: probabilities against their closed form, draws against probabilities, splits, resume."""

import itertools
import math
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare
from torch.utils.data import Dataset

from lightning_vlm.data.batch.loader import ResumableLoader
from lightning_vlm.data.batch.sampler import PAD_INDEX
from lightning_vlm.data.batch.task_sampler import TaskBatchSampler
from lightning_vlm.data.batch.task_sampling import LossShares, TaskSampling
from lightning_vlm.data.conversation import TaskTable
from lightning_vlm.errors import UserError

SIZES = {"caption": 60, "vqa": 30, "ocr": 10}
TABLE = TaskTable.of_samples(task for task, size in SIZES.items() for _ in range(size))
TASK_OF = [TABLE.names[number] for number in TABLE.of]


def make(sampling=None, batch_size=8, rank=0, world=1, seed=0, shuffle=True, table=TABLE):
    return TaskBatchSampler(table, sampling or TaskSampling(), batch_size, shuffle, seed, rank, world)


class Echo(Dataset):
    def __getitem__(self, indices):
        return torch.tensor(indices)


def loader(sampling=None, workers=0, **options):
    batches = make(sampling, **options)
    return ResumableLoader(Echo(), sampler=batches, batch_size=None, num_workers=workers)


def epoch(loader, number):
    loader.sampler.set_epoch(number)
    return [batch.tolist() for batch in loader]


def is_sample(index):
    return index != PAD_INDEX


def tasks_of(batch):
    return [TASK_OF[index] for index in batch if is_sample(index)]


# Probabilities


def test_low_temperatures_favour_the_highest_score_and_high_ones_make_tasks_alike():
    """P ∝ score^(1/T): of T → 0 the highest score alone, of 1 the scores themselves, of ∞ all alike."""
    losses = [0.9, 0.6, 0.3]
    at = {t: TaskSampling("hard", temperature=t).probabilities(losses) for t in (0, 1e-3, 1, 1e6, math.inf)}
    assert at[0].tolist() == [1, 0, 0]
    torch.testing.assert_close(at[1e-3], at[0])
    torch.testing.assert_close(at[1], torch.tensor(losses, dtype=torch.float64) / 1.8)
    torch.testing.assert_close(at[1e6], at[math.inf], rtol=1e-5, atol=0)
    assert at[math.inf].tolist() == [1 / 3] * 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1 / 0.3, 20.0])
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_probabilities_follow_the_closed_form(temperature, floor):
    scores = [50.0, 3.0, 0.2]
    powers = [score ** (1 / temperature) for score in scores]
    expected = [(1 - floor) * power / sum(powers) + floor / 3 for power in powers]
    found = TaskSampling(temperature=temperature, floor=floor).probabilities(scores)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_scores_are_sizes_limited_sizes_or_the_given_weights():
    assert TaskSampling().scores(TABLE) == [60, 30, 10]
    assert TaskSampling(limit=20).scores(TABLE) == [20, 20, 10]
    weights = {"ocr": 3.0, "vqa": 0.0, "caption": 1.0}
    assert TaskSampling("weights", weights=weights).scores(TABLE) == [1.0, 0.0, 3.0]
    assert TaskSampling(floor=0.5, temperature=0).probabilities([2, 2, 1, 0]).tolist() == pytest.approx(
        [0.25 + 0.5 / 3, 0.25 + 0.5 / 3, 0.5 / 3, 0]
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"score": "hardest"}, "sampling.score: found 'hardest'; expected one of size, hard, easy, weights"),
        ({"score": "weights"}, "go together"),
        ({"weights": {"vqa": 1.0}}, "go together"),
        ({"temperature": -1.0}, "sampling.temperature: found -1.0"),
        ({"temperature": math.nan}, "sampling.temperature: found nan"),
        ({"floor": 1.5}, "sampling.floor: found 1.5"),
        ({"limit": 0}, "sampling.limit: found 0"),
        ({"limit": 5, "score": "hard"}, "sampling.limit: found 5"),
        ({"every_n_samples": 0}, "sampling.every_n_samples: found 0"),
        ({"score": "weights", "weights": {"ocr": -1.0}}, "sampling.weights.ocr: found -1.0"),
    ],
)
def test_bad_settings_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        TaskSampling(**options)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"ocrr": 1.0, "vqa": 1.0, "caption": 1.0}, "weights.ocrr: .*no such task.*did you mean 'ocr'"),
        ({"ocr": 1.0, "vqa": 1.0}, "found no weight for caption"),
        (dict.fromkeys(SIZES, 0.0), "found 0 for every task"),
    ],
)
def test_weights_that_do_not_fit_the_data_are_refused(weights, says):
    with pytest.raises(UserError, match=says):
        make(TaskSampling("weights", weights=weights))


# Draws


@pytest.mark.parametrize(
    ("sampling", "share"),
    [
        (TaskSampling(), {"caption": 0.6, "vqa": 0.3, "ocr": 0.1}),
        (TaskSampling(temperature=math.inf), dict.fromkeys(SIZES, 1 / 3)),
        (TaskSampling("weights", weights={"caption": 1, "vqa": 0, "ocr": 3}), {"caption": 0.25, "ocr": 0.75}),
        (TaskSampling(limit=10, grouped=True), dict.fromkeys(SIZES, 1 / 3)),
    ],
)
def test_draws_have_the_probabilities(sampling, share):
    drawing = loader(sampling, batch_size=5)
    counts = Counter()
    for number in range(60):
        for batch in epoch(drawing, number):
            tasks = [TASK_OF[index] for index in batch]
            counts.update(tasks[:1] if sampling.grouped else tasks)
            assert not sampling.grouped or len(set(tasks)) == 1
    assert counts.keys() == share.keys()
    total = sum(counts.values())
    assert chisquare([counts[task] for task in share], [total * p for p in share.values()]).pvalue > 0.01


@pytest.mark.parametrize("grouped", [False, True])
def test_within_a_task_no_sample_comes_again_before_all_others_across_epochs(grouped):
    drawing = loader(TaskSampling(every_n_samples=7, grouped=grouped), batch_size=3)
    drawn = {task: [] for task in SIZES}
    for number in range(12):
        drawing.sampler.set_epoch(number)
        batches = list(itertools.islice(drawing, 20 if number % 3 else None))  # some epochs are cut short
        for index in filter(is_sample, torch.cat(batches).tolist()):
            drawn[TASK_OF[index]].append(index)
    for task, indices in drawn.items():
        passes = [indices[i : i + SIZES[task]] for i in range(0, len(indices), SIZES[task])]
        assert len(passes) > 5
        assert all(len(set(drawing)) == len(drawing) for drawing in passes)
        assert passes[0] != passes[1]
    counts = {task: len(indices) for task, indices in drawn.items()}
    assert drawing.sampler.samples(drawing.passed) == counts
    assert drawing.sampler.epochs(drawing.passed) == {task: counts[task] / SIZES[task] for task in SIZES}


def test_a_task_smaller_than_a_batch_goes_round():
    table = TaskTable.of_samples(["rare", *["often"] * 9])
    sampling = TaskSampling("weights", weights={"rare": 1.0, "often": 0.0})
    drawing = loader(sampling, batch_size=4, table=table)
    assert epoch(drawing, 0) == [[0] * 4, [0] * 4, [0, 0, PAD_INDEX, PAD_INDEX]]
    assert drawing.sampler.epochs(drawing.passed) == {"rare": 10.0, "often": 0.0}


def test_without_shuffling_samples_of_a_task_come_in_order():
    drawing = loader(TaskSampling(), shuffle=False)
    indices = [index for batch in epoch(drawing, 0) for index in batch if is_sample(index)]
    for task in SIZES:
        own = [index for index in indices if TASK_OF[index] == task]
        first = TASK_OF.index(task)
        assert own == [first + at % SIZES[task] for at in range(len(own))]


# Splits


@pytest.mark.parametrize("grouped", [False, True])
def test_two_ranks_of_four_are_one_of_eight(grouped):
    sampling = TaskSampling(grouped=grouped, every_n_samples=20)
    whole = list(make(sampling))
    ranks = [list(make(sampling, 4, rank, 2)) for rank in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == whole
    if not grouped:
        parts = list(itertools.chain(*make(sampling, 4)))
        assert parts[:96] == list(itertools.chain(*whole))[:96]


def test_what_is_drawn_depends_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = epoch(loader(), 0)
    torch.manual_seed(2)
    assert epoch(loader(), 0) == first
    assert epoch(loader(seed=1), 0) != first
    assert epoch(loader(), 1) != first


def test_alone_it_draws_what_a_loader_draws():
    assert list(make()) == epoch(loader(), 0)


# By loss


def feed(drawing, number, workers=0, seen=None, stop=None):
    """An epoch in which each batch tells a loss: caption's falls to a tenth, vqa's to a half, ocr's stays."""
    drawing.sampler.set_epoch(number)
    batches = [] if seen is None else seen
    resumed = drawing._resume and drawing._resume["epoch"] == number
    done = drawing._resume["position"] // 8 if resumed else 0
    for at, batch in enumerate(drawing, done):
        batches.append(batch.tolist())
        tasks = tasks_of(batch.tolist())
        counts = torch.tensor([tasks.count(task) for task in SIZES]).float()
        progress = 1 - math.exp(-(number * len(drawing) + at) / 5)
        losses = torch.tensor([2.0, 3.0, 1.0]) * (1 - progress * torch.tensor([0.9, 0.5, 0.0]))
        drawing.sampler.end_step(losses * counts, counts, 8 * (at + 1))
        if len(batches) == stop:
            break
    return batches


@pytest.mark.parametrize("score", ["hard", "easy"])
def test_tasks_are_drawn_by_how_much_of_their_loss_is_left(score):
    """Late in training the shares are 0.1, 0.5 and 1, but for L(0) being a mean of first losses."""
    drawing = loader(TaskSampling(score, every_n_samples=24))
    for number in range(20):
        feed(drawing, number)
    known = torch.as_tensor(drawing.sampler._loss_shares[-1])
    left = known if score == "hard" else 1 / known
    assert (left.sort(descending=score == "easy").values == left).all()
    counts = Counter()
    for number in range(20, 120):
        counts.update(task for batch in feed(drawing, number) for task in tasks_of(batch))
    total = sum(counts.values())
    expected = [total * share for share in (left / left.sum()).tolist()]
    assert [counts[task] / total for task in SIZES] == pytest.approx([x / total for x in expected], abs=0.02)


def test_a_round_is_drawn_by_the_losses_of_one_round_earlier():
    """At temperature 0 only the task with the most of its loss left is drawn, so each round shows it."""
    drawing = loader(TaskSampling("hard", temperature=0, every_n_samples=16))
    drawing.sampler.set_epoch(0)
    generator = torch.Generator().manual_seed(1705)
    shares = LossShares(3)
    highest = []  # when each round ended
    counts = torch.ones(3)
    for step, batch in enumerate(drawing):
        number = step // 2
        if number > 2:  # the first round ends when all tasks have lost equally much
            assert set(tasks_of(batch.tolist())) == {TABLE.names[highest[number - 2]]}
        if step % 2:
            highest.append(int(shares.now().argmax()))
        losses = 10 ** (2 * torch.rand(3, generator=generator))
        shares.add(losses, counts)
        drawing.sampler.end_step(losses, counts, 8 * (step + 1))
    assert all(before != after for before, after in itertools.pairwise(highest))


def test_a_loss_share_is_the_mean_of_late_losses_over_that_of_first_ones():
    shares = LossShares(2)
    sums = torch.rand(30, 2, generator=torch.Generator().manual_seed(0)) + 0.5
    late = sums[0].clone()
    for at, losses in enumerate(sums):
        shares.add(2 * losses, torch.tensor([2.0, 2.0]))
        late = losses if at == 0 else 0.9 * late + 0.1 * losses
    torch.testing.assert_close(shares.now(), late / sums[:10].mean(0))
    before = shares.now()
    shares.add(torch.tensor([torch.nan, 5.0]), torch.tensor([1.0, 0.0]))
    assert torch.equal(shares.now(), before)
    never = LossShares(2)
    never.add(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 0.0]))
    assert never.now().tolist() == [1, 1]


def test_batches_drawn_ahead_change_nothing():
    """With workers the sampler is several batches ahead of the losses."""
    sampling = TaskSampling("hard", every_n_samples=48)
    alone, ahead = loader(sampling), loader(sampling, workers=2)
    for number in range(3):
        assert feed(alone, number) == feed(ahead, number)
    assert alone.sampler._loss_shares[0] != [1.0, 1.0, 1.0]


def test_rounds_too_short_for_what_is_drawn_ahead_are_refused():
    with pytest.raises(UserError, match="every_n_samples: found 24; expected 48 or more"):
        make(TaskSampling("hard", every_n_samples=24)).check_ahead(6)
    make(TaskSampling(every_n_samples=24)).check_ahead(6)
    make(TaskSampling("hard", every_n_samples=48)).check_ahead(6)


def test_a_run_without_losses_of_tasks_is_refused():
    with pytest.raises(UserError, match=r"sampling\.score hard: no losses of tasks were reported"):
        list(make(TaskSampling("hard", every_n_samples=8)))


# Resume


@pytest.mark.parametrize("score", ["size", "hard"])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("seen", [0, 1, 6, 9, 13])
def test_resumed_it_draws_exactly_the_rest(score, workers, seen):
    sampling = TaskSampling(score, every_n_samples=32)
    whole = loader(sampling)
    expected = [feed(whole, number) for number in range(4)]
    first = loader(sampling, workers=workers)
    for number in range(2):
        feed(first, number)
    before = []
    if seen:
        feed(first, 2, seen=before, stop=seen)
    state = first.state_dict()
    second = loader(sampling, workers=workers)
    second.load_state_dict(torch_saved(state))
    after = feed(second, 2) if seen < 13 else []
    assert before + after == expected[2]
    assert feed(second, 3) == expected[3]
    assert second.sampler.samples(second.passed) == whole.sampler.samples(whole.passed)


def test_a_state_that_an_earlier_version_saved_still_loads():
    sampling = TaskSampling("hard", every_n_samples=32)
    whole = loader(sampling)
    expected = feed(whole, 0)
    first = loader(sampling)
    feed(first, 0, stop=6)
    state = first.state_dict()
    assert state["order"].keys() == {"epoch", "first", "known", "losses"}
    assert (state["order"]["epoch"], state["order"]["first"]) == (0, [0, 0, 0])
    assert all(isinstance(shares, list) for shares in state["order"]["known"])
    second = loader(sampling)
    second.load_state_dict({**state, "order": dict(state["order"])})
    assert feed(second, 0) == expected[6:]


def torch_saved(state):
    """As it comes back out of a checkpoint that holds no code."""
    import io

    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def test_another_sampling_is_refused_in_the_middle_of_an_epoch_only():
    first = loader(TaskSampling())
    feed(first, 0, stop=3)
    for changed in (TaskSampling(temperature=2.0), TaskSampling(grouped=True)):
        with pytest.raises(
            UserError, match="middle of an epoch with other batches: sampling was TaskSampling"
        ):
            loader(changed).load_state_dict(first.state_dict())
    whole = loader(TaskSampling())
    epoch(whole, 0)
    other = loader(TaskSampling(temperature=2.0))
    other.load_state_dict(whole.state_dict())
    assert epoch(other, 1) == epoch(loader(TaskSampling(temperature=2.0)), 1)


def test_words_are_read_strictly():
    assert TaskSampling.read("uniform") == TaskSampling(temperature=math.inf)
    assert TaskSampling.read("grouped") == TaskSampling(grouped=True)
    assert TaskSampling(every_n_samples=1).every_n_samples == 1
    with pytest.raises(UserError, match="sampling: found 'unifrom'; expected uniform, grouped"):
        TaskSampling.read("unifrom")


def test_keys_from_python_are_read_strictly():
    assert TaskSampling.read({"score": "size", "temperature": 3}) == TaskSampling(temperature=3)
    with pytest.raises(UserError, match="there is no key temprature; did you mean temperature"):
        TaskSampling.read({"temprature": 3})
