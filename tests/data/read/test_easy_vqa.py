import PIL.Image
import pytest

from lightning_vlm.data.read import easy_vqa as module
from lightning_vlm.data.read.easy_vqa import EasyVQA
from lightning_vlm.errors import UserError

package = pytest.importorskip("easy_vqa")


@pytest.mark.parametrize("split", ["train", "test"])
def test_it_gives_what_the_package_gives(split):
    source = EasyVQA(split)
    train = split == "train"
    texts, answers, ids = package.get_train_questions() if train else package.get_test_questions()
    paths = package.get_train_image_paths() if train else package.get_test_image_paths()
    assert len(source) == len(texts) == (38_575 if train else 9_673)
    for index in (0, 1, 777, len(texts) - 1):
        conversation = source[index]
        user, assistant = conversation.messages
        image = user.parts[0]
        assert user.parts[1].text == texts[index]
        assert assistant.parts[0].text == answers[index]
        assert (image.root / image.path).samefile(paths[ids[index]])
        assert PIL.Image.open(image.root / image.path).size == (64, 64)
        assert conversation.task == "vqa"
        assert conversation.source == f"easy_vqa/{split}/questions.json:{index}"


def test_it_ends():
    with pytest.raises(IndexError):
        EasyVQA("test")[9_673]


def test_unknown_split():
    with pytest.raises(UserError, match="'val'"):
        EasyVQA("val")


def test_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install easy-vqa"):
        EasyVQA()
