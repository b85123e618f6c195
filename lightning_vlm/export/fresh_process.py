"""Loads an exported folder with only transformers and PEFT, and compares it with the trained model.

`verification.py` runs this file as a script, `python fresh_process.py JOBS RESULTS`. Before that the same
functions have described the model that was trained. Our package is needed only for a folder with adapters
that PEFT doesn't have.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

TOLERANCE = 1e-5
"""How far outputs in float32 may be off, as a share of the largest."""
NEW_TOKENS = 16
"""The most tokens that each answer has."""
KEPT = 64
"""Positions of a prompt whose logits are kept: the last ones, which see all before them."""
_OPTIONAL_INPUTS = ("attention_mask", "token_type_ids", "mm_token_type_ids")
"""What a processor may add or leave out."""


def answer(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A model's outputs for one prompt.

    Args:
        model: As from `AutoModelForImageTextToText`.
        inputs: What its forward takes, a batch of one.
    Returns:
        `inputs`; `logits` of the prompt's last tokens, [at most KEPT, vocabulary]; `ids` that were generated
        greedily, and `steps`, the logits of each, [generated, vocabulary].
    """
    prompt_length = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        output = model(**inputs, use_cache=False)
        generated = model.generate(
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=True,
        )
    logits = output.logits[0, -KEPT:]
    ids = generated.sequences[0, prompt_length:]
    steps = torch.stack([step[0] for step in generated.logits])
    return {
        "inputs": {name: value.clone() for name, value in inputs.items()},
        "logits": logits.float().clone(),
        "ids": ids.clone(),
        "steps": steps.float().clone(),
    }


def bits(model: Any) -> dict[str, int]:
    """A number for each weight and saved buffer that changes with any bit of it: the sum of its bytes' words.

    The order of the sum doesn't matter, so threads don't either.
    """
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = {}
    for name, value in model.state_dict().items():
        integers = value.detach().contiguous().view(words[value.element_size()])
        sums[name] = int(integers.sum(dtype=torch.int64))
    return sums


def describe(processor: Any, model: Any = None) -> dict[str, str]:
    """What must be the same in an export, by name.

    Args:
        processor: How it treats pictures and videos (their size, how many pixels at most, which frames, ...),
            and the chat template.
        model: Which weights are tied, and a checksum of each.
    """
    pictures = processor.image_processor.to_dict()
    pictures.pop("image_processor_type", None)
    described = {"chat template": str(processor.chat_template)}
    for key, value in pictures.items():
        described[f"image processor's {key}"] = repr(value)
    videos = getattr(processor, "video_processor", None)
    for key, value in (videos.to_dict() if videos is not None else {}).items():
        described[f"video processor's {key}"] = repr(value)
    if model is None:
        return described
    first_names: dict[int, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        first = first_names.setdefault(id(weight), name)
        if first != name:
            described[f"weight tied to {name}"] = first
    for name, number in bits(model).items():
        described[f"checksum of {name}"] = f"{number:x}"
    return described


def compare_answers(
    expected: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]
) -> tuple[list[str], float]:
    """Compare answers to the same prompts.

    Args:
        expected: As from `answer`.
        found: Those of another model, in the same form.
    Returns:
        Problems, a few words each; and how far logits are off at most, as a share of the largest. Where two
        tokens are equally likely up to rounding, either is right, and the answer is not compared further.
    """
    problems = []
    largest = 0.0
    for number, (ours, theirs) in enumerate(zip(expected, found, strict=True), 1):
        our_ids = ours["ids"].tolist()
        their_ids = theirs["ids"].tolist()
        same = _same_at_the_start(our_ids, their_ids)
        is_different = same < min(len(our_ids), len(their_ids))
        # The first token that is another is still chosen from the same text.
        compared = same + 1 if is_different else same
        off_at_prompt = _difference(ours["logits"], theirs["logits"])
        off_in_answer = _difference(ours["steps"][:compared], theirs["steps"][:compared])
        off = max(off_at_prompt, off_in_answer)
        largest = max(largest, off)
        if not off <= TOLERANCE:  # NaN too
            problems.append(f"sample {number}: logits differ by {off:.1e} of the largest")
        elif not is_different and len(our_ids) != len(their_ids):
            problems.append(f"sample {number}: its answer has another length")
    return problems, largest


def _same_at_the_start(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens are the same before the first that is another."""
    count = 0
    for our_token, their_token in zip(ours, theirs, strict=False):
        if our_token != their_token:
            break
        count += 1
    return count


def _difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    off = (expected - found).abs().max()
    return float(off / expected.abs().max())


def _compare_inputs(expected: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted(expected.keys() | found.keys()):
        if name in expected and name in found:
            theirs = found[name]
            ours = expected[name].to(theirs.dtype)
            if name.startswith("pixel_values") and ours.numel() == theirs.numel():
                # Some processors keep the tiles of a picture together; batches have one after the other.
                ours = ours.reshape(theirs.shape)
            if ours.shape != theirs.shape or not (ours == theirs).all():
                yield f"its processor makes other {name}"
        elif name not in _OPTIONAL_INPUTS:
            makes = "no" if name in expected else "also"
            yield f"its processor makes {makes} {name}"


def _compare_descriptions(expected: Mapping[str, str], found: Mapping[str, str]) -> Iterator[str]:
    for key in sorted(expected.keys() | found.keys()):
        ours = expected.get(key)
        theirs = found.get(key)
        if ours != theirs:
            difference = f"the {key} is {theirs}, not {ours}"
            yield difference[:300]


def _compare_adapters(folder: str, model: Any) -> Iterator[str]:
    """PEFT's part of a folder of adapters: each of its weights has found its place, and no place is empty."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(Path(folder, "adapter_model.safetensors"))
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    for name in sorted(loaded.keys() | saved.keys()):
        is_in_both = name in loaded and name in saved
        if not is_in_both or not torch.equal(loaded[name], saved[name]):
            yield f"{name} isn't as in adapter_model.safetensors"


def with_media(chat: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A chat whose pictures are opened by Pillow (the processors would ask torchvision, which may not), and
    what a processor gets to know of its videos, whose frames are chosen already."""
    import numpy as np
    import PIL.Image

    opened = []
    metadata = []
    for turn in chat:
        if isinstance(turn["content"], str):
            opened.append(turn)
            continue
        content = []
        for part in turn["content"]:
            if "path" in part:
                image = PIL.Image.open(part["path"])
                content.append({"type": "image", "image": image})
            elif "frames" in part:
                frames = [np.asarray(PIL.Image.open(path)) for path in part["frames"]]
                video = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
                content.append({"type": "video", "video": video})
                metadata.append(part["metadata"])
            else:
                content.append(part)
        opened.append({**turn, "content": content})
    of_videos = {"video_metadata": metadata, "do_sample_frames": False} if metadata else {}
    return opened, of_videos


def _inputs(processor: Any, chat: list[dict[str, Any]], of_videos: Mapping[str, Any]) -> Any:
    """What a processor makes of a chat and the prompt for its answer."""
    if type(processor).__name__ == "GotOcr2Processor":  # refuses the lists of its own apply_chat_template
        pictures = [part["image"] for turn in chat for part in turn["content"] if "image" in part]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        adds = not text.startswith(processor.tokenizer.bos_token)
        return processor(images=pictures, text=[text], add_special_tokens=adds, return_tensors="pt")
    return processor.apply_chat_template(
        chat,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=dict(of_videos),
    )


def _verify(job: Mapping[str, Any]) -> dict[str, Any]:
    scope: dict[str, Any] = {}
    exec("\n".join(job["lines"]), scope)
    processor = scope["processor"]
    model = scope["model"].float().eval()
    described = describe(processor, model if job["is_whole"] else None)
    problems = list(_compare_descriptions(job["description"], described))
    if hasattr(model, "get_base_model"):
        problems += _compare_adapters(job["folder"], model)
    answers = []
    for chat, expected in zip(job["chats"], job["answers"], strict=True):
        opened, of_videos = with_media(chat)
        inputs = _inputs(processor, opened, of_videos)
        inputs.pop("labels", None)  # PaliGemma's processor makes some
        problems += _compare_inputs(expected["inputs"], inputs)
        for name, value in inputs.items():
            if value.is_floating_point():  # Llama 4's processor gives pixels in bfloat16
                inputs[name] = value.float()
        answers.append(answer(model, inputs))
    different_answers, off = compare_answers(job["answers"], answers)
    return {"problems": problems + different_answers, "off": off}


def main(jobs: str, results: str) -> None:
    """Verify all folders of a file and write what came out into another."""
    found = []
    needs_us = False
    for job in torch.load(jobs, weights_only=True):
        if any("lightning_vlm." in line for line in job["lines"]):
            needs_us = True
        try:
            found.append(_verify(job))
        except Exception as error:
            problem = f"it doesn't load and run: {type(error).__name__}: {error}"
            found.append({"problems": [problem], "off": 0.0})
    assert needs_us or "lightning_vlm" not in sys.modules
    torch.save(found, results)


if __name__ == "__main__":
    main(*sys.argv[1:])
