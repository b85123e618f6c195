"""Configs of other tools as configs of ours: `lightning-vlm migrate`.

`reading.py` opens what people have: `shell.py` and `shell_words.py` take scripts apart, `python_calls.py`
those in Python, and `others.py` knows what isn't read. `tools.py` knows each tool's keys and their defaults
from `keys.yaml`, `kinds.py` their kinds, `theirs.py` answers what a run has there. `trainer.py` and
`records.py` turn the settings that all tools have into ours; `trl.py`, `llama_factory.py` and `ms_swift.py`
the others. `ours.py` is what comes out, `config_text.py` writes it, and `terminal.py` says what became of
each key.
"""
