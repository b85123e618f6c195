"""Ready chat templates, for models that come without one.

Each turn begins with a line of its own for its role. In `Assistant: red` a tokenizer would join the space and
the first word of the answer to one token, half template and half answer, that no mask can divide.
"""

import PIL.Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from lightning_vlm.data.render.front_pictures import picture_habits
from lightning_vlm.data.render.media import nested
from lightning_vlm.errors import UserError
from lightning_vlm.nearest import did_you_mean

STEPS = (
    "Look at the images in turn and think step by step. Begin each step on a new line with its number, as in "
    "'Step 1: ', and call the images by their numbers. End with a line that begins with 'Conclusion: '."
)
"""What `step-by-step` tells the model unless a system turn says something else."""

START_OF_TURN = "<|im_start|>"


def _template(*, chatml: bool = False, numbered: bool = False, system: str | None = None) -> str:
    """A Jinja template over `image_token`, `video_token`, `eos_token` and `bos_token`."""
    if chatml:
        opening, closing = f"'{START_OF_TURN}' + role + '\\n'", "eos_token + '\\n'"
    else:
        opening, closing = "role | capitalize + ':\\n'", "'\\n'"
    number = "{% set images.seen = images.seen + 1 %}{{ 'Image ' ~ images.seen ~ ': ' }}" if numbered else ""
    built_in = ""
    if system:
        turn = f"{{{{ open('system') + {system!r} + {closing} }}}}"
        built_in = f"{{% if messages[0]['role'] != 'system' %}}{turn}{{% endif %}}"
    return (
        "{% set images = namespace(seen=0) %}"
        f"{{% macro open(role) %}}{{{{ {opening} }}}}{{% endmacro %}}"
        "{% macro words(content) %}"
        "{% if content is string %}{{ content }}{% else %}{% for part in content %}"
        f"{{% if part['type'] == 'image' %}}{number}{{{{ image_token }}}}"
        "{% elif part['type'] == 'video' and video_token %}{{ video_token }}"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}"
        "{% else %}{{ raise_exception('this template knows text and image parts, not ' ~ part['type']) }}"
        "{% endif %}{% endfor %}{% endif %}"
        "{% endmacro %}"
        "{{ bos_token }}" + built_in + "{% for message in messages %}"
        "{{ open(message['role']) }}"
        # The generation block must stay outside macros: transformers counts characters at the top level only.
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ words(message['content']) + eos_token }}{% endgeneration %}{{ '\\n' }}"
        f"{{% else %}}{{{{ words(message['content']) + {closing} }}}}{{% endif %}}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ open('assistant') }}{% endif %}"
    )


TEMPLATES: dict[str, str] = {
    "plain": _template(),
    "chatml": _template(chatml=True),
    "numbered-images": _template(numbered=True),
    "step-by-step": _template(numbered=True, system=STEPS),
}
"""Jinja templates, to be filled in by `chat_template`. All take one or many turns, any number of images and
an optional system turn; all mark each answer and its end-of-turn token with `{% generation %}`. They are:

- `plain`: role names as words; for any tokenizer.
- `chatml`: role names after `<|im_start|>`, which words can't forge; for a tokenizer that has this token.
- `numbered-images`: `plain` with `Image 1: ` before the first image and so on through the conversation, so
  that questions and answers can say which image they mean.
- `step-by-step`: `numbered-images` with a built-in system turn that asks for numbered steps and a conclusion,
  for reasoning over several images; a system turn of your own replaces it.
"""

_MARKS = {
    "<|image_pad|>": ("<|vision_start|>", "<|vision_end|>"),
    "<|video_pad|>": ("<|vision_start|>", "<|vision_end|>"),
    "<|IMAGE_PLACEHOLDER|>": ("<|IMAGE_START|>", "<|IMAGE_END|>"),
    "<｜hy_place▁holder▁no▁102｜>": ("<｜hy_place▁holder▁no▁100｜>", "<｜hy_place▁holder▁no▁101｜>"),
}
"""Placeholders that belong between two marks, which the processor leaves to the template (Qwen-VL,
PaddleOCR-VL, HunYuan-VL)."""


def chat_template(name: str, processor: ProcessorMixin) -> str:
    """A chat template made for one processor: with its image, end-of-turn and begin-of-sequence tokens.

    Args:
        name: One of `TEMPLATES`.
        processor: Its `image_token` (or its tokenizer's) stands for an image, its tokenizer's `eos_token`
            ends an answer. The `bos_token` comes first, if there is one that the tokenizer doesn't add.
    Returns:
        A Jinja template, for `processor.chat_template` or `apply_chat_template(chat_template=...)`.

    Raises:
        UserError: No such template; a processor without tokenizer, image token or end-of-sequence token;
            `chatml` for a tokenizer without `<|im_start|>`.
    """
    if name not in TEMPLATES:
        near = did_you_mean(name, TEMPLATES, quoted=True)
        raise UserError(f"there is no chat template {name!r}, only {', '.join(TEMPLATES)}{near}")
    kind = type(processor).__name__
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise UserError(f"chat template '{name}': {kind} has no tokenizer; give the model's whole processor")
    image = getattr(processor, "image_token", None) or getattr(tokenizer, "image_token", None)
    if picture_habits(processor).in_front:
        image = ""
    if image is None:
        raise UserError(
            f"chat template '{name}': neither {kind} nor its tokenizer has an image_token; set "
            "processor.image_token to the placeholder that the model reads images at"
        )
    if tokenizer.eos_token is None:
        raise UserError(
            f"chat template '{name}': the tokenizer of {kind} has no eos_token, so an answer would have "
            "no end; set processor.tokenizer.eos_token to the token that ends a turn"
        )
    if name == "chatml" and START_OF_TURN not in tokenizer.get_vocab():
        raise UserError(
            f"chat template 'chatml': the tokenizer of {kind} has no {START_OF_TURN} token; use 'plain', "
            "or add the token and resize the model's embeddings"
        )
    video = ""
    if getattr(processor, "video_processor", None) is not None:
        video = str(getattr(processor, "video_token", None) or "")
    tokens = {
        "image_token": _marked_off(str(image), tokenizer),
        "video_token": _marked_off(video, tokenizer),
        "eos_token": str(tokenizer.eos_token),
        "bos_token": _begin(name, processor, _marked_off(str(image), tokenizer)),
    }
    # Python's and Jinja's string literals escape alike.
    return "".join(f"{{% set {key} = {token!r} %}}" for key, token in tokens.items()) + TEMPLATES[name]


def _marked_off(placeholder: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A placeholder between its marks, if it has some that the tokenizer knows."""
    marks = _MARKS.get(placeholder)
    if marks is None or not tokenizer.get_vocab().keys() >= set(marks):
        return placeholder
    return f"{marks[0]}{placeholder}{marks[1]}"


def _begin(name: str, processor: ProcessorMixin, image: str) -> str:
    """The token that the template must write before everything else, or nothing.

    Llama's processor writes one where there is none, and its tokenizer another; PaliGemma's always
    writes one behind the pictures. So this looks at what the processor makes of a text without one.
    """
    begin = processor.tokenizer.bos_token
    if begin is None or (name == "chatml" and begin == START_OF_TURN):
        return ""
    picture = PIL.Image.new("RGB", (64, 64))
    ids = processor(text=[f"{image}x"], images=nested(processor, [picture]), return_tensors="pt")[
        "input_ids"
    ][0]
    return "" if ids.tolist().count(processor.tokenizer.bos_token_id) == 1 else str(begin)
