import PIL.Image
import pytest
from tokenizers import Tokenizer, models, processors
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from lightning_vlm.data.render.templates import STEPS, TEMPLATES, chat_template
from lightning_vlm.errors import UserError
from tools import shipped

PICTURE = {"type": "image", "image": PIL.Image.new("RGB", (64, 64), "red")}


def text(words):
    return {"type": "text", "text": words}


TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [PICTURE, text("What is "), text("this?")]},
    {"role": "assistant", "content": [text("red")]},
    {"role": "user", "content": [text("Like"), PICTURE, PICTURE]},
    {"role": "assistant", "content": " Two\nlines. "},
]
TOKENS = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
ANSWERS = "red<|im_end|> Two\nlines. <|im_end|>"

PLAIN = (
    "User:\n<image>What is this?\nAssistant:\nred<|im_end|>\n"
    "User:\nLike<image><image>\nAssistant:\n Two\nlines. <|im_end|>\n"
)
NUMBERED = (
    "User:\nImage 1: <image>What is this?\nAssistant:\nred<|im_end|>\n"
    "User:\nLikeImage 2: <image>Image 3: <image>\nAssistant:\n Two\nlines. <|im_end|>\n"
)
CHATML = (
    "<|im_start|>user\n<image>What is this?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
    "<|im_start|>user\nLike<image><image><|im_end|>\n<|im_start|>assistant\n Two\nlines. <|im_end|>\n"
)
EXPECTED = {
    "plain": ("System:\nBe brief.\n" + PLAIN, PLAIN, "Assistant:\n"),
    "chatml": ("<|im_start|>system\nBe brief.<|im_end|>\n" + CHATML, CHATML, "<|im_start|>assistant\n"),
    "numbered-images": ("System:\nBe brief.\n" + NUMBERED, NUMBERED, "Assistant:\n"),
    "step-by-step": ("System:\nBe brief.\n" + NUMBERED, f"System:\n{STEPS}\n{NUMBERED}", "Assistant:\n"),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return shipped.create(tmp_path_factory.mktemp("base"))


@pytest.fixture
def processor(base):
    return AutoProcessor.from_pretrained(base)


def render(processor, name, messages, **options):
    return processor.apply_chat_template(messages, chat_template=chat_template(name, processor), **options)


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_template_writes_its_own_text(processor, name):
    with_system, without, prompt = EXPECTED[name]
    assert render(processor, name, TALK) == with_system
    assert render(processor, name, TALK[1:]) == without
    question = TALK[:2]
    asked = render(processor, name, question, add_generation_prompt=True)
    assert asked.endswith(prompt)
    assert render(processor, name, TALK[:3]).startswith(asked + "red<|im_end|>")


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_mask_of_transformers_holds_the_answers_and_their_ends(processor, name):
    batch = render(processor, name, TALK, return_assistant_tokens_mask=True, **TOKENS)
    ids, mask = batch["input_ids"][0], batch["assistant_masks"][0].bool()
    assert processor.decode(ids[mask]) == ANSWERS
    assert (ids == processor.image_token_id).sum() == 3 * 16


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("answer", ["red", "[1, 2, 3, 4]", "(a)", "42", "漢字", "'s", "A cat."])
def test_no_token_is_half_template_and_half_answer(processor, name, answer):
    """What the model has read before its answer is what it has read at inference, token by token."""
    talk = [*TALK[:2], {"role": "assistant", "content": answer}]
    asked = render(processor, name, talk[:2], add_generation_prompt=True, **TOKENS)["input_ids"][0]
    learned = render(processor, name, talk, **TOKENS)["input_ids"][0]
    assert learned[: len(asked)].tolist() == asked.tolist()
    assert processor.decode(learned[len(asked) :]) == f"{answer}<|im_end|>\n"


def test_saved_with_the_processor_it_loads_again(processor, tmp_path):
    processor.chat_template = chat_template("plain", processor)
    processor.save_pretrained(tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).apply_chat_template(TALK) == EXPECTED["plain"][0]


def test_begin_of_sequence_comes_once(processor):
    tokenizer = processor.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert render(processor, "plain", TALK[1:]) == "<s>" + PLAIN

    begin = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    assert render(processor, "plain", TALK[1:]) == PLAIN
    assert (render(processor, "plain", TALK[1:], **TOKENS)["input_ids"] == begin).sum() == 1


def test_chatml_writes_no_begin_of_sequence_that_is_its_own_start_of_turn(processor):
    processor.tokenizer.bos_token = "<|im_start|>"  # as SmolVLM has it
    assert render(processor, "chatml", TALK[1:]) == CHATML
    assert render(processor, "plain", TALK[1:]) == "<|im_start|>" + PLAIN


def test_tokens_may_hold_quotes_braces_and_backslashes(processor):
    odd = "<'\"{{\\n}}🙂é>"
    processor.tokenizer.add_special_tokens({"eos_token": odd})
    assert render(processor, "plain", TALK[1:]) == PLAIN.replace("<|im_end|>", odd)


def test_images_of_qwen_stand_between_its_marks(processor):
    tokenizer = processor.tokenizer
    marks = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    qwen = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor())
    marked = PLAIN.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    assert render(qwen, "plain", TALK[1:]) == marked


def test_parts_other_than_texts_and_images_are_refused(processor):
    video = [{"role": "user", "content": [{"type": "video"}]}]
    with pytest.raises(Exception, match="text and image parts, not video"):
        render(processor, "plain", video)


def test_templates_that_cannot_be_made_are_refused(processor):
    with pytest.raises(UserError, match=r"'chatlm', only plain, .*; did you mean 'chatml'\?"):
        chat_template("chatlm", processor)
    with pytest.raises(UserError, match="there is no chat template 'zzz', only plain, chatml, "):
        chat_template("zzz", processor)
    with pytest.raises(UserError, match="has no tokenizer"):
        chat_template("plain", processor.image_processor)
    with pytest.raises(UserError, match="neither CLIPProcessor nor its tokenizer has an image_token"):
        chat_template("plain", CLIPProcessor(CLIPImageProcessor(), processor.tokenizer))
    processor.tokenizer.eos_token = None
    with pytest.raises(UserError, match="no eos_token"):
        chat_template("plain", processor)


def test_chatml_needs_its_token(processor):
    words = Tokenizer(models.WordLevel({"</s>": 0, "x": 1}, unk_token="x"))
    processor.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    assert chat_template("plain", processor)
    with pytest.raises(UserError, match="no <\\|im_start\\|> token; use 'plain'"):
        chat_template("chatml", processor)
