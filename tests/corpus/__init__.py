"""Malformed input of all kinds, made by functions: `case.py` says how, `test_corpus.py` tries each.

A module is a kind of input. It has `CASES` (name -> a function that makes the input in the working
directory and gives what is to be opened, and what is expected), and
`take`, which opens it as a user's run would.
"""
