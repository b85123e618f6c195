"""From rows of any data file to conversations.

`dialects.py` is the table of formats, `rows.py` turns one row into a `Conversation`, `parts.py` and
`pictures.py` read what stands in a turn, `json_places.py`, `csv_places.py` and `folders.py` find the rows.
"""
