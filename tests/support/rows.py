"""Rows of data files that the tests of reading share."""

import json
from pathlib import Path

CAT, DOG = Path("cat.png"), Path("pictures/dog.png")
"""The pictures in the folder that the tests work in."""
QUESTION = {"role": "user", "content": "What is this?"}
ANSWER = {"role": "assistant", "content": "A cat."}
HUMAN = {"from": "human", "value": "What is this?"}
GPT = {"from": "gpt", "value": "A cat."}


def image_url(url, **more):
    """A picture as OpenAI writes it."""
    return {"type": "image_url", "image_url": {"url": url, **more}}


def change(record, path, value):
    """A copy of a record with one thing changed; `...` removes it."""
    record = json.loads(json.dumps(record))
    parent = record
    for key in path[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return record
