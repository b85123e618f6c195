"""From the rows of any data file to conversations.

The path of a row: `readers.py` opens a file or folder (`folders.py`, `hf_dataset.py`). `json_layout.py` and
`csv_layout.py` find the place of each row in its file (`data_file.py`). `source.py` checks every row at the
start and reads it again when it is needed. `dialects.py` is the table of formats; it says which turns a row
makes (`turns.py`). `rows.py` joins these with the pictures of the row (`parts.py`, `pictures.py`,
`row_media.py`) to a `Conversation`. `own_format.py` reads our own, strict format, and `faults.py` reports
all that is bad at once.
"""
