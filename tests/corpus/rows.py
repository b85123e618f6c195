"""Rows that are sound JSON and wrong: keys, types, roles, turns, pictures, weights, tasks, tools."""

from collections.abc import Callable
from typing import Any

import PIL.Image

from tests.corpus.case import GOOD, GOOD_TEXTS, Case, Right, row_of, texts_of, turns

take = texts_of

ASKED = ("user", "Hi?", "assistant", "Yes.")
SAME = Right([GOOD_TEXTS, GOOD_TEXTS])


def row(**more: Any) -> Callable[[], str]:
    """A good row with further keys."""
    return row_of(GOOD | more)


def talk(*given: Any, **more: Any) -> Callable[[], str]:
    """A row of these roles and contents."""
    return row_of(turns(*given, **more))


def seen(row: dict[str, Any]) -> Callable[[], str]:
    """A row beside which there are pictures `a.png` and `b.png`."""

    def make() -> str:
        for name in ("a.png", "b.png"):
            PIL.Image.new("RGB", (32, 32), "red").save(name)
        return row_of(row)()

    return make


def llava(value: Any, **more: Any) -> Callable[[], str]:
    """A row of LLaVA with this question."""
    asked = [{"from": "human", "value": value}, {"from": "gpt", "value": "Yes."}]
    return seen({"conversations": asked, **more})


def parts(*given: Any, answer: Any = "Yes.") -> Callable[[], str]:
    """A row whose question has these parts."""
    return seen(turns("user", list(given), "assistant", answer))


TEXT = {"type": "text", "text": "Hi?"}
IMAGE = {"type": "image", "path": "a.png"}

CASES = {
    # Keys
    "no keys": Case(row_of({}), "data.jsonl:2: found a row without keys"),
    "unknown keys only": Case(
        row_of({"frage": "Hi?", "antwort": "Yes."}),
        "data.jsonl:2: found a row with the keys 'frage', 'antwort'",
    ),
    "a misspelt weight": Case(
        row(wieght=2),
        "data.jsonl:2: wieght: found an unknown key; expected a known one; did you mean 'weight'?",
    ),
    "a misspelt weight, a letter too few": Case(
        row(weigt=2),
        "data.jsonl:2: weigt: found an unknown key; expected a known one; did you mean 'weight'?",
    ),
    "a misspelt dialect": Case(
        row_of({"mesages": GOOD["messages"]}),
        "data.jsonl:2: mesages: found an unknown key; expected a known one; did you mean",
    ),
    "a key of a million letters": Case(
        row(**{"k" * 1_000_000: 1}), Right([["Hi?", "Yes."], ["Hi?", "Yes."]])
    ),
    "an empty key": Case(row(**{"": 1}), SAME),
    "two dialects": Case(row(conversations=[]), Right([["Hi?", "Yes."], ["Hi?", "Yes."]])),
    "sound": Case(row(audio="a.wav"), "data.jsonl:2: audio: found 'a.wav'"),
    "a key of turns that is unknown": Case(
        row_of({"messages": [{"role": "user", "content": "Hi?", "weigth": 2}, GOOD["messages"][1]]}),
        "data.jsonl:2: messages[0].weigth: found an unknown key; expected a known one; did you",
    ),
    # Types
    "messages are a text": Case(
        row_of({"messages": "Hi?"}), "data.jsonl:2: messages: found 'Hi?'; expected a list of turns"
    ),
    "messages are a number": Case(
        row_of({"messages": 3}), "data.jsonl:2: messages: found 3; expected a list of turns"
    ),
    "messages are an object": Case(
        row_of({"messages": {"role": "user"}}),
        "data.jsonl:2: messages: found an object with the keys 'role'; expected a list of turns",
    ),
    "messages are empty": Case(
        row_of({"messages": []}),
        "data.jsonl:2: messages: found an empty list; expected at least one user turn",
    ),
    "a turn is null": Case(row_of({"messages": [None]}), "data.jsonl:2: messages[0]: found null"),
    "a turn is a text": Case(row_of({"messages": ["Hi?", "Yes."]}), "data.jsonl:2: messages[0]: found 'Hi?'"),
    "a turn is a list": Case(
        row_of({"messages": [["user", "Hi?"]]}), "data.jsonl:2: messages[0]: found a list of 2"
    ),
    "a role is a number": Case(
        talk(1, "Hi?", "assistant", "Yes."), "data.jsonl:2: messages[0].role: found 1"
    ),
    "a role is a list": Case(
        talk(["user"], "Hi?", "assistant", "Yes."), "data.jsonl:2: messages[0].role: found a list of 1"
    ),
    "a role in capitals": Case(
        talk("User", "Hi?", "assistant", "Yes."), Right([["Hi?", "Yes."], ["Hi?", "Yes."]])
    ),
    "a role with a space": Case(
        talk("user ", "Hi?", "assistant", "Yes."), "data.jsonl:2: messages[0].role: found 'user '"
    ),
    "a content is a number": Case(
        talk("user", 3, "assistant", "Yes."),
        "data.jsonl:2: messages[0].content: found 3; expected a text or a list of parts",
    ),
    "a content is true": Case(
        talk("user", True, "assistant", "Yes."),
        "data.jsonl:2: messages[0].content: found true; expected a text or a list of parts",
    ),
    "a content is null": Case(
        talk("user", None, "assistant", "Yes."),
        "data.jsonl:2: messages[0]: found an object with the keys 'role'; expected the key",
    ),
    "an answer is null": Case(
        talk("user", "Hi?", "assistant", None),
        "data.jsonl:2: messages[1]: found an object with the keys 'role'; expected the key",
    ),
    "an answer is a list of lists": Case(
        talk("user", "Hi?", "assistant", [["Yes."]]),
        "data.jsonl:2: messages[1].content[0]: found a list of 1; expected an object with the",
    ),
    "a turn without content": Case(
        row_of({"messages": [{"role": "user"}, GOOD["messages"][1]]}),
        "data.jsonl:2: messages[0]: found an object with the keys 'role'; expected the key",
    ),
    "a turn without role": Case(
        row_of({"messages": [{"content": "Hi?"}, GOOD["messages"][1]]}),
        "data.jsonl:2: messages[0]: found an object with the keys 'content'; expected the key",
    ),
    # Turns
    "an empty answer": Case(talk("user", "Hi?", "assistant", ""), Right([["Hi?", "Yes."], ["Hi?", ""]])),
    "an empty question": Case(talk("user", "", "assistant", "Yes."), Right([["Hi?", "Yes."], ["", "Yes."]])),
    "an empty list of parts": Case(talk("user", [], "assistant", "Yes."), Right([["Hi?", "Yes."], ["Yes."]])),
    "an answer of white space": Case(
        talk("user", "Hi?", "assistant", " \n "), Right([["Hi?", "Yes."], ["Hi?", " \n "]])
    ),
    "no answer": Case(talk("user", "Hi?"), "data.jsonl:2: messages: found no assistant turn"),
    "only an answer": Case(talk("assistant", "Yes."), Right([["Hi?", "Yes."], ["Yes."]])),
    "only the system": Case(
        talk("system", "Be kind."),
        "data.jsonl:2: messages: found only a system turn; expected at least one user turn",
    ),
    "the system last": Case(talk(*ASKED, "system", "Be kind."), Right([["Hi?", "Yes."], ["Hi?", "Yes."]])),
    "the system in the middle": Case(
        talk("user", "Hi?", "system", "Be kind.", "assistant", "Yes."),
        Right([["Hi?", "Yes."], ["Hi?", "Be kind.", "Yes."]]),
    ),
    "two system turns": Case(
        talk("system", "a", "system", "b", *ASKED), Right([["Hi?", "Yes."], ["a", "b", "Hi?", "Yes."]])
    ),
    "a question last": Case(talk(*ASKED, "user", "Ho?"), SAME),
    "two answers in a row": Case(
        talk(*ASKED, "assistant", "No."), Right([["Hi?", "Yes."], ["Hi?", "Yes.", "No."]])
    ),
    "1,200 turns": Case(talk(*(600 * ASKED)), Right([GOOD_TEXTS, 256 * GOOD_TEXTS])),  # as many as fit
    # Pictures
    "a picture too few": Case(
        llava("<image><image>Hi?", image="a.png"),
        "data.jsonl:2: image: found 1 picture and 2 places for them in the conversation",
    ),
    "a picture too many": Case(
        llava("<image>Hi?", image=["a.png", "b.png"]),
        "data.jsonl:2: image: found 2 pictures and 1 place for them in the conversation",
    ),
    "a place without a picture": Case(
        llava("<image>Hi?"),
        "data.jsonl:2: image: found 0 pictures and 1 place for them in the conversation",
    ),
    "an empty path": Case(
        llava("<image>Hi?", image=""),
        "data.jsonl:2: image: found 0 pictures and 1 place for them in the conversation",
    ),
    "a path that is a number": Case(
        llava("<image>Hi?", image=7),
        "data.jsonl:2: image: found 7; expected the path of a picture, as a text",
    ),
    "a path that is an object": Case(
        llava("<image>Hi?", image={"file": "a.png"}),
        "data.jsonl:2: image: found an object with the keys 'file'; expected the path of a",
    ),
    "a path with a null byte": Case(
        llava("<image>Hi?", image="a\0.png"),
        "data.jsonl:2: image: found 'a\\x00.png' (embedded null byte); expected the path of a",
    ),
    "a path of 5,000 letters": Case(llava("<image>Hi?", image="a" * 5000), "data.jsonl:2: image: found"),
    "a path to a folder": Case(
        llava("<image>Hi?", image="."), "data.jsonl:2: image: found '.', which is not a file (looked for '"
    ),
    "a path with another case": Case(
        llava("<image>Hi?", image="A.PNG"),
        "data.jsonl:2: image: found 'A.PNG', which does not exist (looked for '",
    ),
    "a list with null": Case(
        llava("<image><image>Hi?", image=["a.png", None]),
        "data.jsonl:2: image: found 1 picture and 2 places for them in the conversation",
    ),
    "a picture in an answer": Case(
        parts(TEXT, answer=[IMAGE]),
        "data.jsonl:2: messages[1].content[0]: found a picture in an assistant turn",
    ),
    "a picture of broken base64": Case(
        parts({"type": "image", "base64": "§§§"}, TEXT),
        "data.jsonl:2: messages[0].content[0].base64: found '§§§' (string argument should",
    ),
    "a picture of empty base64": Case(
        parts({"type": "image", "base64": ""}, TEXT),
        "data.jsonl:2: messages[0].content[0]: found 0 bytes, which is not a picture (an empty",
    ),
    "a picture by path and bytes": Case(
        parts(IMAGE | {"base64": "AAAA"}, TEXT),
        "data.jsonl:2: messages[0].content[0]: found a picture with 'path' and 'base64';",
    ),
    "a picture without a path": Case(
        parts({"type": "image"}, TEXT),
        "data.jsonl:2: image: found 0 pictures and 1 place for them in the conversation",
    ),
    "5,000 pictures": Case(
        parts(*(5000 * [IMAGE]), TEXT),
        "data.jsonl:2: messages: found 5,000 pictures and videos in one sample",
    ),
    "parts without a type": Case(parts({"text": "Hi?"}), Right([["Hi?", "Yes."], ["Hi?", "Yes."]])),
    "parts of an unknown type": Case(
        parts({"type": "txet", "text": "Hi?"}), "data.jsonl:2: messages[0].content[0].type: found 'txet'"
    ),
    "a text part that is a number": Case(
        parts({"type": "text", "text": 3}),
        "data.jsonl:2: messages[0].content[0].text: found 3; expected a text",
    ),
    # Weights, tasks, ids
    "a negative weight": Case(
        row(weight=-1), "data.jsonl:2: weight: found -1.0; expected a finite number >= 0"
    ),
    "a weight that is a text": Case(row(weight="2"), "data.jsonl:2: weight: found '2'; expected a number"),
    "a weight that is true": Case(row(weight=True), "data.jsonl:2: weight: found true; expected a number"),
    "a weight that is a list": Case(
        row(weight=[1]), "data.jsonl:2: weight: found a list of 1; expected a number"
    ),
    "a huge weight": Case(
        row(weight=1e30),
        "data.jsonl:2: weight: found 1e+30; expected at most 1,000,000: sums of weights are kept",
    ),
    "a negative weight of a turn": Case(
        row_of({"messages": [GOOD["messages"][0], GOOD["messages"][1] | {"weight": -2}]}),
        "data.jsonl:2: messages[1].weight: found -2.0; expected a finite number >= 0",
    ),
    "a task that is a number": Case(row(task=3), "data.jsonl:2: task: found 3; expected a text"),
    "an empty task": Case(
        row(task=""), "data.jsonl:2: task: found an empty text; expected the name of a task"
    ),
    "a task that is a list": Case(
        row(task=["vqa"]), "data.jsonl:2: task: found a list of 1; expected a text"
    ),
    "a task with half a surrogate pair": Case(
        row(task="\ud83d"),
        "data.jsonl:2: task: found half a surrogate pair in '\\ud83d'; expected text that UTF-8",
    ),
    "an id that is an object": Case(row(id={"a": 1}), Right([["Hi?", "Yes."], ["Hi?", "Yes."]])),
    "the same id twice": Case(row_of(GOOD | {"id": "a"}), SAME),
}
