"""docs/boxes.md lists each codec as it is."""

import re
from pathlib import Path

import pytest

from lightning_vlm.data.boxes.codecs import CODECS
from lightning_vlm.data.parts import Box, Point, Region
from lightning_vlm.published import families

TEXT = (Path(__file__).parent.parent / "docs" / "boxes.md").read_text("utf-8")
ROW = re.compile(r"^\| `(\w+)` \| (.*) \| `(.*)` \| (.*) \| (.*) \| (.*) \|$", re.MULTILINE)
ROWS = {row[0]: row[1:] for row in ROW.findall(TEXT)}


@pytest.mark.parametrize("codec", CODECS.values())
def test_the_table_is_right(codec):
    models, form, scale, kinds, links = ROWS[codec.name]
    using = [family.name for family in families().values() if family.codec == codec.name]
    assert models == (", ".join(using) or "-")
    assert form.replace("\\|", "|") == codec.form
    assert scale == codec.scale
    names = {"boxes": Box, "points": Point, "regions": Region}
    assert [names[kind.split()[0]] for kind in kinds.split(", ")] == list(codec.writes)
    for link in re.findall(r"\((\S+)\)", links):
        assert link in type(codec).__doc__


def test_no_codec_is_missing():
    assert list(ROWS) == list(CODECS)
