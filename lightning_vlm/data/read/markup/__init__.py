"""Boxes, points and regions that a text spells: in tags, as JSON, as location tokens, or as bare numbers.

`scan.py` finds them and makes parts of them. `numbers.py` reads what stands between tags, `json_boxes.py`
JSON such as Qwen's, `tokens.py` the tokens of PaliGemma, Florence-2 and Kosmos-2, and `shapes.py` says in
which unit they are. `objects.py` has the boxes of ms-swift, which stand beside the texts, and `names.py`
pictures with a name or a number.
"""
