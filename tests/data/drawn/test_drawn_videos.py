"""Drawn videos: their answers are what their frames show, and no frame alone shows them."""

import io
import itertools
import json
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import PIL.Image
import pytest

from lightning_vlm.data.conversation import Conversation, Text
from lightning_vlm.data.drawn import DrawnVideos
from lightning_vlm.data.drawn.motion import HAPPEN
from lightning_vlm.data.read.readers import Messages
from lightning_vlm.data.video.load import load_video
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.baselines import blind_baselines


def frames_of(conversation: Conversation) -> list[np.ndarray]:
    """The pixels of each frame."""
    (video,) = conversation.videos
    return [np.asarray(PIL.Image.open(io.BytesIO(frame.data or b"")), np.int16) for frame in video.frames]


def answer_of(conversation: Conversation) -> str:
    """The answer."""
    (part,) = conversation.messages[1].parts
    assert isinstance(part, Text)
    return part.text


def centre(frame: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Where a frame differs from others: row and column."""
    return np.argwhere(np.abs(frame - ground).sum(-1) > 30).mean(0)


def test_what_moves_moves_as_the_answer_says() -> None:
    steps = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    source = DrawnVideos(size=40, tasks=["direction"])
    for conversation in (source[index] for index in range(40)):
        frames = frames_of(conversation)
        first, last = frames[0], frames[-1]
        # The median of all frames shows the ground, but for what a large thing always covers.
        ground = np.median(np.stack(frames), 0)
        moved = centre(last, ground) - centre(first, ground)
        wanted = np.array(steps[answer_of(conversation)])
        assert moved @ wanted > 4
        assert np.abs(moved @ wanted[::-1]) < 1.5


def test_what_is_there_for_half_the_video_is_there_in_that_half() -> None:
    source = DrawnVideos(size=30, tasks=["when"])
    for conversation in (source[index] for index in range(30)):
        frames = frames_of(conversation)
        assert all((frame == frames[0]).all() for frame in frames[:4])
        assert all((frame == frames[7]).all() for frame in frames[4:])
        assert (frames[0] != frames[7]).any()
        # The half without it is nearer to its background: fewer colours.
        colours = [len(np.unique(frame.reshape(-1, 3), axis=0)) for frame in (frames[0], frames[7])]
        is_first = answer_of(conversation) == "first"
        assert (colours[0] > colours[1]) == is_first


def test_as_many_things_as_the_answer_says() -> None:
    source = DrawnVideos(size=30, tasks=["count"])
    for conversation in (source[index] for index in range(30)):
        frames = frames_of(conversation)
        changes = sum((one != other).any() for one, other in itertools.pairwise(frames))
        assert answer_of(conversation) == ("one", "two", "three", "four")[changes]


def test_items_are_the_same_each_time_and_differ_between_splits_and_seeds() -> None:
    one, same = DrawnVideos("val", 20), DrawnVideos("val", 20)
    assert [one[index] for index in range(20)] == [same[index] for index in range(20)]
    others = [DrawnVideos("test", 20), DrawnVideos("val", 20, seed=1)]
    assert all(one[3].videos != other[3].videos for other in others)
    names, of = one.task_table()
    assert [one[index].task for index in range(20)] == [names[number] for number in of]
    assert one[-1] == one[19]


def test_answers_are_balanced_so_that_a_blind_guess_is_a_poor_one() -> None:
    rng = Random(0)
    for task, chance in (("direction", 1 / 4), ("when", 1 / 2), ("count", 1 / 4)):
        answers = Counter(HAPPEN[task](rng, "train", 8).answer for _ in range(600))
        assert len(answers) == round(1 / chance)
        assert max(answers.values()) / 600 < chance + 0.08
    scores = blind_baselines(DrawnVideos("train", 600), DrawnVideos("test", 300))
    assert max(scores.values()) < 0.5


def test_videos_written_as_files_are_read_as_they_were_drawn(tmp_path: Path) -> None:
    drawn = DrawnVideos("val", size=3, image_size=64)
    source = Messages(str(drawn.write(tmp_path)))
    for index, conversation in enumerate(source[index] for index in range(3)):
        assert (conversation.task, answer_of(conversation)) == (drawn[index].task, answer_of(drawn[index]))
        clip = load_video(conversation.videos[0], "v:1", "video")
        wanted = np.stack(frames_of(drawn[index])).transpose(0, 3, 1, 2)
        assert clip.metadata.fps == 2
        assert np.abs(clip.frames.numpy().astype(int) - wanted).mean() < 12
    first = json.loads((tmp_path / "val.jsonl").read_text().splitlines()[0])
    assert first["messages"][0]["content"][0] == {"type": "video", "path": "val_0.mp4"}


WRONG = {
    "tasks has sides; choose among direction, when, count": {"tasks": ["sides"]},
    "DrawnVideos: tasks has an empty list": {"tasks": []},
    "there is no split 'tran'": {"split": "tran"},
    "frames 3 and fps 2.0 must be at least 4": {"frames": 3},
    "size 0 and image_size 64 must be": {"size": 0},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_refused(message: str) -> None:
    with pytest.raises(UserError, match=message):
        DrawnVideos(**WRONG[message])  # type: ignore[arg-type]
