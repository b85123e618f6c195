"""Pictures that texts give a name or a number, and boxes in the one of several that is named before them."""

import re
from pathlib import Path

import pytest

from lightning_vlm.data.conversation import Box, Image
from lightning_vlm.data.read.readers import read
from lightning_vlm.errors import DataError

pytestmark = pytest.mark.usefixtures("folder")
CAT, DOG = Image(Path("cat.png"), root=Path(".")), Image(Path("pictures/dog.png"), root=Path("."))
FILES = ["cat.png", "pictures/dog.png"]


def row(*texts, images=FILES):
    roles = ("user", "assistant")
    turns = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    return {"messages": turns} | ({} if images is None else {"images": images})


def shown(source):
    """Each turn as its words and pictures."""
    return [[getattr(part, "text", part) for part in turn.parts] for turn in source[0].messages]


def test_names_as_the_chapter_has_them(write):
    chat = ("<image id='img1'> 描述第一张图", "一只猫", "<image id='img2'> 比较img1和img2的差异", "b")
    source = read(write(row(*chat)))
    assert shown(source) == [
        ["img1: ", CAT, " 描述第一张图"],
        ["一只猫"],
        ["img2: ", DOG, " 比较img1和img2的差异"],
        ["b"],
    ]
    assert source.notes[0].startswith("pictures with a name or a number have it written before them")
    by_name = row(*chat, images={"img2": "cat.png", "img1": "pictures/dog.png"})
    assert shown(read(write(by_name)))[0][1] == DOG


@pytest.mark.parametrize(
    ("texts", "images", "expected"),
    [
        (("<image 1> What?", "a"), FILES[:1], [CAT, " What?"]),
        (("<image 2> or <image_1>?", "a"), FILES, ["Picture 2: ", DOG, " or Picture 1: ", CAT, "?"]),
        (("<image 2> <image 1>", "a"), '["cat.png", "cat.png"]', ["Picture 2: ", CAT, " Picture 1: ", CAT]),
        (("Picture 1: <image 1>\nIn <image 1>?", "a"), FILES[:1], ["Picture 1: ", CAT, "In Picture 1?"]),
        (('<image id="a"/> <image id=a>', "a"), FILES[:1], ["a: ", CAT, " a"]),
        (([{"type": "text", "text": "<image 1>x"}], "a"), FILES[:1], [CAT, "x"]),
        (("Picture 1: <img>cat.png</img>\nWhat?", "a"), None, ["Picture 1: ", CAT, "What?"]),
        (("Say <image 1>", "a"), None, ["Say <image 1>"]),
        (("Say <img> and </img>", "a"), None, ["Say <img> and </img>"]),
    ],
)
def test_places(texts, images, expected, write):
    assert shown(read(write(row(*texts, images=images))))[0] == expected


@pytest.mark.parametrize(
    ("texts", "images", "key", "message"),
    [
        (("<image 3> <image 1>", "a"), FILES, "images", "'<image 3>', but 2 pictures"),
        (("<image 2>", "a"), "cat.png", "images", "'<image 2>', but 1 picture"),
        (("<image 0> <image 1>", "a"), FILES, "images", "from 1"),
        (("<image 1> a", "a"), FILES, "images", "2 pictures and 1 place"),
        (("<image 1> <image>", "a"), FILES, "", "both '<image 1>' and '<image>'"),
        (("<image id=a>", "a"), {"a": "cat.png", "b": "cat.png"}, "images", "not 'a' alone"),
        (("<img>dog.png</img>", "a"), None, "images[0]", "does not exist"),
    ],
)
def test_wrong_places(texts, images, key, message, write):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read(write(row(*texts, images=images)))
    assert caught.value.key == key


def test_boxes_lie_in_the_picture_that_is_named_before_them(write):
    first, second = "<box>[[0,0,500,500]]</box>", "<box>[[0,0,250,250]]</box>"
    answer = f"Here: Picture 1: {first}{first}\nPicture 2: {second} and {first}"
    source = read(write(row("<image><image>Where?", answer)), box_format="0-1000")
    half, quarter = (0.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.25, 0.25)
    assert [getattr(part, "text", part) for part in source[0].messages[1].parts] == [
        "Here: ",
        Box(half, image=0),
        Box(half, image=0),
        Box(quarter, image=1),
        " and ",
        Box(half),
    ]
    one = read(write(row("<image>Where?", f"Picture 1: {first}", images=FILES[:1])), box_format="0-1000")
    assert one[0].messages[1].parts[0].text == "Picture 1: "
