"""Every source says the task of each of its samples, as the samples themselves do."""

import json
from array import array

import pytest

from lightning_vlm.data.conversation import Chain, Conversations, Slice, TaskTable
from lightning_vlm.data.drawn import Drawn
from lightning_vlm.data.read.easy_vqa import EasyVQA
from lightning_vlm.data.read.readers import read
from lightning_vlm.errors import UserError


def listed(source):
    return [source[index].task for index in range(len(source))]


@pytest.fixture
def file(tmp_path):
    lines = [
        {"task": task, "messages": [{"role": "user", "content": "?"}, {"role": who, "content": "!"}]}
        for task, who in (
            ("b", "assistant"),
            ("a", "nobody"),
            ("a", "assistant"),
            ("b", "assistant"),
        )
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return read(str(path), on_bad_sample="skip")


class Plain(Conversations):
    """A source that says nothing by itself."""

    def __init__(self, of):
        self._of = of

    def __len__(self):
        return len(self._of)

    def __getitem__(self, index):
        return self._of[index]


def test_a_source_and_its_samples_name_the_same_tasks(file):
    drawn = Drawn(size=30, seed=5)
    assert listed(file) == ["b", "a", "b"]
    for source in (
        file,
        drawn,
        Plain(drawn),
        Slice(drawn, 3, 20),
        Chain([drawn, file, Slice(file, 1)]),
        Slice(EasyVQA(), 0, 5),
    ):
        names, of = source.task_table()
        assert [names[number] for number in of] == listed(source)
        assert list(dict.fromkeys(listed(source))) == list(names)


def test_more_than_65536_tasks_are_refused():
    many = TaskTable.of_samples(str(number) for number in range(65536))
    assert many.of[-1] == 65535
    assert isinstance(many.of, array)
    with pytest.raises(UserError, match="65,536 tasks, the last '65536'"):
        TaskTable.of_samples(str(number) for number in range(65537))
