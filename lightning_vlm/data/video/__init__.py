"""Videos: which frames are chosen, and how only those are decoded.

`load.py` is what others call; `sampling.py` has the settings, and `choice.py` chooses frames by them. A file
is read by `av_file.py`, a folder or a list of pictures by `pictures.py`.
"""
