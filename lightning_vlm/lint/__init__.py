"""`lint`: everything that is wrong with data, in one run; `kinds.py` is the table of what it finds."""
