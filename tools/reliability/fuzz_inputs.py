"""Inputs that `tools.reliability.fuzz_targets` are fed with: pieces that code looks for, in any order."""

import json
from typing import Any

from hypothesis import strategies as st


def any_of(pieces: str, *more: str) -> st.SearchStrategy[str]:
    """One of some pieces, which are divided by spaces, or of those that hold spaces."""
    return st.sampled_from([*pieces.split(), *more])


def soup(pieces: str, *more: str, most: int = 25, letters: bool = True) -> st.SearchStrategy[str]:
    """Texts of some pieces in any order, and of any letters between them.

    Args:
        pieces: Divided by spaces.
        more: Pieces that hold spaces.
        most: How many at most.
        letters: Whether there are any letters between them.
    """
    known = any_of(pieces, *more)
    piece = st.one_of(known, LETTERS) if letters else known
    return st.lists(piece, max_size=most).map("".join)


LETTERS = st.text(st.characters(exclude_categories=()), max_size=30)
"""Any characters, also halves of surrogate pairs."""
WORDS = any_of(
    "user assistant system tool text image box a.png <image> <video> <bbox> NaN true null "
    "<box>(1,2),(3,4)</box> <|box_start|> <|im_end|> <|im_start|>assistant \ud83d \x00 \ue000",
    *("", "[[0.1, 0.2, 0.5, 0.9]]", '{"bbox_2d": [1, 2, 30, 40]}'),
)
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([0, 1, -1, 1e308, 2**63, 10**400]))
KEYS = any_of(
    "messages conversations role content from value type text image images box question answer "
    "task weight id tools tool_calls objects bbox ref videos path label pixels references system "
    "point region base64 wieght"
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(WORDS, LETTERS, NUMBERS, st.none(), st.booleans()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(KEYS, LETTERS), inner, max_size=4)
    ),
    max_leaves=12,
)

_TALK = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Yes."}]
_BOX = {"type": "box", "box": [1, 2, 30, 40], "pixels": True, "label": "cat"}
_CALL = {"role": "assistant", "content": "", "tool_calls": [{"name": "a", "arguments": {}}]}
_SOUND = [
    {"messages": _TALK, "task": "vqa", "weight": 2.0, "id": 3},
    {"messages": [_TALK[0], {"role": "assistant", "content": [{"type": "text", "text": "a"}, _BOX]}]},
    {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}], "system": "x"},
    {"question": "Hi?", "answer": "Yes.", "answers": ["Yes.", "No."]},
    {"messages": _TALK, "objects": {"ref": ["cat"], "bbox": [[1, 2, 3, 4]]}},
    {"messages": [_TALK[0], _CALL]},
]


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A sound row, some of whose values are replaced by any others."""
    row = json.loads(json.dumps(draw(st.sampled_from(_SOUND))))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = row
        while place:
            key = draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            place[key] = draw(VALUES)
            break
        if isinstance(place, dict) and draw(st.booleans()):
            place[draw(st.one_of(KEYS, LETTERS))] = draw(VALUES)
    return row


BOXES = soup(
    "<box> </box> <|box_start|> <|box_end|> <loc0001> <loc_1> [[ ]] [ ] ( ) <ref> </ref> > </point> } 1 2.5 "
    '999 -3 , ; " <patch_index_0001> <object> </object> <|det|> <|/det|> <seg001> 1e999 nan é x="1" y="2" '
    "<delimiter_of_multi_objects/> </delimiter_of_multi_objects/>",
    *("<point ", "<points ", '{"bbox_2d": ', " "),
)
SELECTORS = soup("language . layers [ ] : -1 0 999999999999999999999 * ? head lora_A !", most=10)
YAML = soup(
    "model: data: trainer: { } [ ] *a x ' \" # --- ... 1",
    *(
        "\n",
        "\n  ",
        "- ",
        ": ",
        ", ",
        "&a ",
        "<<: ",
        "!!python/object:os.system ",
        "!!set ",
        "? ",
        "| ",
        "> ",
    ),
)
JINJA = soup(
    "endfor else endif m.role m['content'] messages [0] [1:] ( ) + * ** ~ 9999999 'a' namespace() x f() "
    "range(9999) endmacro raise_exception('no') loop.index __class__ strftime_now('%Y') |upper |join(',') "
    "|length |random |tojson |replace('a','b') generation endgeneration",
    *("{{ ", " }}", "{% ", " %}", "for m in messages", "if m", "set x=", "macro f()", " "),
    letters=False,
)
MARKUP = st.one_of(
    LETTERS, soup("<script> </script> <img onerror=1 &lt; \" ' > --> ]]> <|im_end|> javascript:")
)
TALK = st.lists(
    st.tuples(st.one_of(LETTERS, WORDS, BOXES), st.one_of(LETTERS, WORDS, BOXES)), min_size=1, max_size=3
)
