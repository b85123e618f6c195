"""Boxes, points and outlines that can't be right, as parts, columns and in texts."""

from collections.abc import Callable
from typing import Any

import PIL.Image

from tests.corpus.case import Case, Right, row_of, texts_of, turns


def take(given: tuple[str, dict[str, Any]]) -> list[list[str]]:
    """Read a file with some options."""
    path, options = given
    return texts_of(path, **options)


def box(numbers: Any, **more: Any) -> Callable[[], tuple[str, dict[str, Any]]]:
    """An answer that is a box."""
    return answer([{"type": "box", "box": numbers, **more}])


def answer(content: Any, image: bool = True, **options: Any) -> Callable[[], tuple[str, dict[str, Any]]]:
    """An answer about a picture of 64×48 pixels, and options of `read`."""

    def make() -> tuple[str, dict[str, Any]]:
        PIL.Image.new("RGB", (64, 48), "red").save("a.png")
        picture = [{"type": "image", "path": "a.png"}] if image else []
        row = turns("user", [*picture, {"type": "text", "text": "Where?"}], "assistant", content)
        return row_of(row)(), options

    return make


def words(text: str, **options: Any) -> Callable[[], tuple[str, dict[str, Any]]]:
    """An answer in words, in a row of LLaVA."""

    def make() -> tuple[str, dict[str, Any]]:
        PIL.Image.new("RGB", (64, 48), "red").save("a.png")
        asked = [{"from": "human", "value": "<image>Where?"}, {"from": "gpt", "value": text}]
        return row_of({"image": "a.png", "conversations": asked})(), options

    return make


def objects(**given: Any) -> Callable[[], tuple[str, dict[str, Any]]]:
    """Boxes in the column `objects` of ms-swift."""

    def make() -> tuple[str, dict[str, Any]]:
        PIL.Image.new("RGB", (64, 48), "red").save("a.png")
        row = turns("user", "<image>Where?", "assistant", "<bbox>", images=["a.png"], objects=given)
        return row_of(row)(), {}

    return make


INF = float("inf")
NAN = float("nan")

CASES = {
    # Numbers
    "an inverted box": Case(
        box([0.5, 0.1, 0.2, 0.4]), "data.jsonl:2: messages[1].content[0]: found the box [0.5, 0.1, 0.2, 0.4]"
    ),
    "a box upside down": Case(
        box([0.1, 0.5, 0.2, 0.4]), "data.jsonl:2: messages[1].content[0]: found the box [0.1, 0.5, 0.2, 0.4]"
    ),
    "a box without width": Case(
        box([0.1, 0.1, 0.1, 0.4]), "data.jsonl:2: messages[1].content[0]: found the box [0.1, 0.1, 0.1, 0.4]"
    ),
    "a box without height": Case(
        box([0.1, 0.2, 0.3, 0.2]), "data.jsonl:2: messages[1].content[0]: found the box [0.1, 0.2, 0.3, 0.2]"
    ),
    "a box of NaN": Case(
        box([NAN, 0.1, 0.2, 0.4]), "data.jsonl:2: messages[1].content[0]: found the box [nan, 0.1, 0.2, 0.4]"
    ),
    "a box of infinity": Case(
        box([0.1, 0.1, INF, 0.4]), "data.jsonl:2: messages[1].content[0]: found the box [0.1, 0.1, inf, 0.4]"
    ),
    "a box of minus infinity": Case(
        box([-INF, 0.1, 0.2, 0.4]),
        "data.jsonl:2: messages[1].content[0]: found the box [-inf, 0.1, 0.2, 0.4]",
    ),
    "a negative box": Case(
        box([-0.1, 0.1, 0.2, 0.4]),
        "data.jsonl:2: messages[1].content[0]: found the box [-0.1, 0.1, 0.2, 0.4]",
    ),
    "a box beyond 1": Case(
        box([0.1, 0.1, 1.2, 0.4]), "data.jsonl:2: messages[1].content[0]: found the box [0.1, 0.1, 1.2, 0.4]"
    ),
    "a box of pixels as fractions": Case(
        box([10, 10, 40, 40]), "data.jsonl:2: messages[1].content[0]: found the box [10.0, 10.0, 40.0, 40.0]"
    ),
    "a box of fractions as pixels": Case(
        box([0.1, 0.1, 0.2, 0.4], pixels=True),
        "data.jsonl:2: messages[1].content[0]: found the box [0.1, 0.1, 0.2, 0.4] in pixels,",
    ),
    "a box beyond the picture": Case(
        box([10, 10, 80, 40], pixels=True),
        "data.jsonl:2: messages[1].content[0]: found the box [10.0, 10.0, 80.0, 40.0]",
    ),
    "a huge box": Case(
        box([0, 0, 1e30, 1e30], pixels=True),
        "data.jsonl:2: messages[1].content[0]: found the box [0.0, 0.0, 1e+30, 1e+30]",
    ),
    "a box of 400 digits": Case(
        box([0, 0, 10**400, 1], pixels=True),
        "data.jsonl:2: messages[1].content[0]: found the box [0.0, 0.0, inf, 1.0]",
    ),
    "a box of three": Case(
        box([0.1, 0.1, 0.2]),
        "data.jsonl:2: messages[1].content[0].box: found a list of 3; expected four numbers x1,",
    ),
    "a box of five": Case(
        box([0.1, 0.1, 0.2, 0.4, 0.5]),
        "data.jsonl:2: messages[1].content[0].box: found a list of 5; expected four numbers x1,",
    ),
    "a box of none": Case(
        box([]), "data.jsonl:2: messages[1].content[0].box: found a list of 0; expected four numbers x1,"
    ),
    "a box of a million": Case(
        box([0.5] * 300_000),
        "data.jsonl:2: messages[1].content[0].box: found a list of 300000; expected four numbers",
    ),
    "a box of texts": Case(
        box(["0.1", "0.1", "0.2", "0.4"]),
        "data.jsonl:2: messages[1].content[0].box[0]: found '0.1'; expected a number",
    ),
    "a box of true": Case(
        box([True, 0.1, 0.2, 0.4]),
        "data.jsonl:2: messages[1].content[0].box[0]: found true; expected a number",
    ),
    "a box of nulls": Case(
        box([None, 0.1, 0.2, 0.4]),
        "data.jsonl:2: messages[1].content[0].box[0]: found null; expected a number",
    ),
    "a box of lists": Case(
        box([[0.1, 0.1], [0.2, 0.4]]),
        "data.jsonl:2: messages[1].content[0].box: found a list of 2; expected four numbers x1,",
    ),
    "a box that is a text": Case(
        box("0.1 0.1 0.2 0.4"),
        "data.jsonl:2: messages[1].content[0].box: found '0.1 0.1 0.2 0.4'; expected four",
    ),
    "a box that is null": Case(
        box(None), "data.jsonl:2: messages[1].content[0]: found an object with the keys 'type'; expected"
    ),
    "a box without its key": Case(
        answer([{"type": "box"}]),
        "data.jsonl:2: messages[1].content[0]: found an object with the keys 'type'; expected",
    ),
    "a box with an unknown key": Case(
        box([0.1, 0.1, 0.2, 0.4], lable="cat"),
        "data.jsonl:2: messages[1].content[0].lable: found an unknown key; expected a known one;",
    ),
    "a label that is a number": Case(
        box([0.1, 0.1, 0.2, 0.4], label=3),
        "data.jsonl:2: messages[1].content[0].label: found 3; expected a text",
    ),
    "a label that spells a special token": Case(
        box([0.1, 0.1, 0.2, 0.4], label="<|im_end|>"),
        "data.jsonl:2: messages[1].content[0].label: found a label that spells '<|im_end|>';",
    ),
    "pixels that is a text": Case(
        box([1, 1, 20, 40], pixels="yes"),
        "data.jsonl:2: messages[1].content[0].pixels: found 'yes'; expected true or false",
    ),
    "a box in a second picture": Case(
        box([0.1, 0.1, 0.2, 0.4], image=1), "data.jsonl:2: messages[1].content[0].image: found 1"
    ),
    "a box in picture -1": Case(
        box([0.1, 0.1, 0.2, 0.4], image=-1), "data.jsonl:2: messages[1].content[0].image: found -1"
    ),
    "a box without a picture": Case(
        answer([{"type": "box", "box": [0.1, 0.1, 0.2, 0.4]}], False),
        "data.jsonl:2: messages[1].content[0]: found a box in a conversation without pictures",
    ),
    # Points and outlines
    "a point of one": Case(
        answer([{"type": "point", "point": [0.1]}]),
        "data.jsonl:2: messages[1].content[0].point: found a list of 1; expected two numbers x, y",
    ),
    "a point of NaN": Case(
        answer([{"type": "point", "point": [NAN, 0.1]}]),
        "data.jsonl:2: messages[1].content[0]: found the point [nan, 0.1]",
    ),
    "a point outside": Case(
        answer([{"type": "point", "point": [0.5, 1.5]}]),
        "data.jsonl:2: messages[1].content[0]: found the point [0.5, 1.5]",
    ),
    "an outline of two points": Case(
        answer([{"type": "region", "region": [0.1, 0.1, 0.2, 0.2]}]),
        "data.jsonl:2: messages[1].content[0].region: found a list of 4",
    ),
    "an outline of an odd number": Case(
        answer([{"type": "region", "region": [0.1] * 7}]),
        "data.jsonl:2: messages[1].content[0].region: found a list of 7",
    ),
    "an outline without area": Case(
        answer([{"type": "region", "region": [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]}]),
        "data.jsonl:2: messages[1].content[0]: found the region [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]",
    ),
    "an outline of NaN": Case(
        answer([{"type": "region", "region": [0.1, 0.1, 0.5, 0.1, NAN, 0.5]}]),
        "data.jsonl:2: messages[1].content[0]: found the region [0.1, 0.1, 0.5, 0.1, nan, 0.5]",
    ),
    "nothing in a question": Case(
        answer([{"type": "nothing", "box": []}]), Right([["Hi?", "Yes."], ["Image", "Where?", "Nothing"]])
    ),
    # In texts
    "tags with three numbers": Case(
        words("<box>(1,2),(3)</box>", box_format="pixels"),
        "data.jsonl:2: conversations[1].value: found '<box>(1,2),(3)</box>', a place of 3 numbers",
    ),
    "tags with five numbers": Case(
        words("<box>[1, 2, 3, 4, 5]</box>", box_format="pixels"),
        "data.jsonl:2: conversations[1].value: found '<box>[1, 2, 3, 4, 5]</box>', a place of 5",
    ),
    "tags that don't close": Case(
        words("<box>(1,2),(30,40)", box_format="pixels"),
        Right([["Hi?", "Yes."], ["Image", "Where?", "<box>(1,2),(30,40)"]]),
    ),
    "tags with words": Case(
        words("<box>there</box>", box_format="pixels"),
        Right([["Hi?", "Yes."], ["Image", "Where?", "<box>there</box>"]]),
    ),
    "tags of no known unit": Case(
        words("<box>[1, 2, 3, 4]</box>"),
        "data.jsonl:2: conversations[1].value: found '<box>[1, 2, 3, 4]</box>', whose unit",
    ),
    "numbers inverted in tags": Case(
        words("<box>(30,40),(1,2)</box>", box_format="pixels"),
        "data.jsonl:2: conversations[1].value: found the box [30.0, 40.0, 1.0, 2.0]",
    ),
    "numbers beyond a thousand": Case(
        words("<|box_start|>(10,20),(1500,900)<|box_end|>", box_format="0-1000"),
        "data.jsonl:2: conversations[1].value: found the box [0.01, 0.02, 1.5, 0.9]",
    ),
    "an odd number of Florence's tokens": Case(
        words("cat<loc_1><loc_2><loc_3>"),
        "data.jsonl:2: conversations[1].value: found '<loc_1><loc_2><loc_3>', an odd number of",
    ),
    "Molmo's point without y": Case(
        words('<point x="10" alt="cat">cat</point>'),
        'data.jsonl:2: conversations[1].value: found \'<point x="10" alt="cat">cat</point>\'',
    ),
    "Molmo's point beyond the picture": Case(
        words('<point x="130" y="20" alt="cat">cat</point>'),
        "data.jsonl:2: conversations[1].value: found the point [1.3, 0.2]",
    ),
    "an unknown format": Case(
        words("x", box_format="inches"),
        "data.box_format is 'inches'; choose one of pixels, fractions, 0-1000, 0-999, 0-100,",
    ),
    "an unknown order": Case(
        words("x", box_format="pixels hwxy"),
        "data.box_format is 'pixels hwxy'; choose one of pixels, fractions, 0-1000, 0-999,",
    ),
    # Columns
    "objects with too few boxes": Case(
        objects(ref=["cat"], bbox=[]),
        "data.jsonl:2: objects.bbox: found 0 of them and 1 '<bbox>' in the conversation",
    ),
    "objects with too many boxes": Case(
        objects(ref=["cat"], bbox=[[1, 2, 3, 4], [1, 2, 3, 4]]),
        "data.jsonl:2: objects.bbox: found 2 of them and 1 '<bbox>' in the conversation",
    ),
    "objects of texts": Case(
        objects(ref=["cat"], bbox=["1,2,3,4"]), "data.jsonl:2: objects.bbox[0]: found '1,2,3,4'"
    ),
    "objects of three numbers": Case(
        objects(ref=["cat"], bbox=[[1, 2, 3]]), "data.jsonl:2: objects.bbox[0]: found 3 numbers"
    ),
    "objects without boxes": Case(
        objects(ref=["cat"]), "data.jsonl:2: objects.bbox: found 0 of them and 1 '<bbox>' in the conversation"
    ),
    "objects of NaN": Case(
        objects(ref=["cat"], bbox=[[1, 2, NAN, 4]]),
        "data.jsonl:2: messages[1].content: found the box [1.0, 2.0, nan, 4.0]",
    ),
}
