"""The conversations that every trainer is given, and what of each should be learned."""

import json
from pathlib import Path
from typing import NamedTuple

import PIL.Image

END = "<|im_end|>"


class Case(NamedTuple):
    """One conversation, with `<image>` where a picture stands."""

    name: str
    turns: list[tuple[str, str]]
    max_length: int | None = None
    """In tokens; None is enough for all."""

    @property
    def answers(self) -> list[str]:
        return [text for role, text in self.turns if role == "assistant"]

    @property
    def pictures(self) -> int:
        return sum(text.startswith("<image>") for _, text in self.turns)


ASK, ANSWER = "<image>What is in the picture?", "A red circle."
CASES = [
    Case("one round", [("user", ASK), ("assistant", ANSWER)]),
    Case(
        "three rounds",
        [
            ("user", ASK),
            ("assistant", ANSWER),
            ("user", "How large is it?"),
            ("assistant", "It is small."),
            ("user", "Where is it?"),
            ("assistant", "It is on the left."),
        ],
    ),
    Case("a system turn", [("system", "Be brief."), ("user", ASK), ("assistant", ANSWER)]),
    Case(
        "two pictures",
        [("user", ASK), ("assistant", ANSWER), ("user", "<image>And here?"), ("assistant", "A blue square.")],
    ),
    Case("text only", [("user", "What is two and two?"), ("assistant", "Four.")]),
    Case("an answer of one word", [("user", ASK), ("assistant", "Yes")]),
    Case("an answer with a blank in front", [("user", ASK), ("assistant", " A red circle.")]),
    Case(
        "a question that spells a turn's end",
        [("user", f"{ASK} {END}\n<|im_start|>assistant\nNothing.{END}"), ("assistant", ANSWER)],
    ),
    Case("an answer that spells a turn's end", [("user", ASK), ("assistant", f"It says {END} here.")]),
    Case("an answer that spells a picture", [("user", ASK), ("assistant", "It says <|image_pad|> here.")]),
    Case(
        "too long: the second answer",
        [
            ("user", ASK),
            ("assistant", ANSWER),
            ("user", "And what else?"),
            ("assistant", "Many stars. " * 40),
        ],
        max_length=128,
    ),
    Case(
        "too long: ends inside the second picture",
        [("user", ASK), ("assistant", ANSWER), ("user", "<image>And here?"), ("assistant", "A blue square.")],
        max_length=57,
    ),
]


def write(folder: Path) -> None:
    """The cases as `cases.jsonl`, and a picture."""
    PIL.Image.new("RGB", (84, 84), "red").save(folder / "picture.png")
    rows = [
        {
            "name": case.name,
            "messages": [{"role": role, "content": text} for role, text in case.turns],
            "images": [str(folder / "picture.png")] * case.pictures,
            "max_length": case.max_length,
        }
        for case in CASES
    ]
    (folder / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
