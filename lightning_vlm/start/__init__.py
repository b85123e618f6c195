"""`lightning-vlm init`: looks at data, and writes a config that trains on it.

`files.py` finds the data files of each split, `peek.py` reads their first rows; `columns.py`, `image_root.py`
and `box_unit.py` say how they are to be read (`look.py` asks them). `survey.py` counts what is in them,
`tokens.py` measures them with the model's processor. `settings.py`, `scores.py`, `held.py` and `models.py`
decide, `config_text.py` writes it down with the reasons (`lines.py`), `summary.py` prints what was found.
"""
