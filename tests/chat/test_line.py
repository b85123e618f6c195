"""Lines as people type them, and as terminals write them where a file is dropped."""

from pathlib import Path

import PIL.Image
import pytest

from lightning_vlm.chat.line import paths, pieces


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat.png", "two words.jpg", "it's.png"):
        PIL.Image.new("RGB", (8, 8)).save(name)
    return tmp_path


def test_pictures_stand_where_they_were_typed(files):
    dropped = f"file://{files}/two%20words.jpg"
    for line in (
        "cat.png what is in it?",
        f"{files}/cat.png what is in it?",
        "'cat.png' what is in it?",
        r"two\ words.jpg what is in it?",
        '"two words.jpg" what is in it?',
        f"{dropped} what is in it?",
    ):
        first, second = pieces(line)
        assert first.path is not None
        assert first.path.exists(), line
        assert second.text == "what is in it?"
    before, cat, between, other, mark = pieces("Is cat.png like 'two words.jpg'?")
    assert [before.text, between.text, mark.text] == ["Is", "like", "?"]
    assert [cat.path, other.path] == [Path("cat.png"), Path("two words.jpg")]


@pytest.mark.parametrize("line", ["what is it?", "version 1.5 or 2.0", "e.g. this", "it's a cat, isn't it?"])
def test_other_words_are_words(line):
    assert pieces(line) == [(line, None, False)]


def test_what_is_not_there_is_named():
    assert [piece.is_missing for piece in pieces("is gone.png red?")] == [False, True, False]


def test_a_command_takes_several_paths_or_one_with_spaces():
    assert paths("two words.jpg") == [Path("two words.jpg")]
    assert paths("it's.png") == [Path("it's.png")]
    assert paths(r"cat.png two\ words.jpg 'cat.png'") == [
        Path("cat.png"),
        Path("two words.jpg"),
        Path("cat.png"),
    ]
