"""From a conversation to token ids and the kind of each token, through the processor's own chat template.

`renderer.py` is where a mask is made.
"""
