"""What a fresh process makes of an exported folder, with only transformers and PEFT.

It needs our package only for a folder with adapters that PEFT doesn't have.

`proof.py` runs this file as a script, `python prover.py JOBS ANSWERS`, and compares the answers. It calls the
same functions on the model that was trained.
"""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEPT = 64
"""Positions of a prompt whose logits are kept: the last ones, which see all before them."""


def answer(model: Any, inputs: Mapping[str, Any], new_tokens: int) -> dict[str, Any]:
    """A model's outputs for one prompt.

    Args:
        model: As from `AutoModelForImageTextToText`.
        inputs: What its forward takes, a batch of one.
        new_tokens: The most that it generates, greedily.
    Returns:
        `inputs`; `logits` of the prompt's last tokens, [at most KEPT, vocabulary]; `ids` that were generated,
        and `steps`, the logits of each, [generated, vocabulary].
    """
    import torch

    length = inputs["input_ids"].shape[1]
    with torch.inference_mode():
        logits = model(**inputs, use_cache=False).logits[0, -KEPT:]
        made = model.generate(
            **inputs,
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=True,
        )
    steps = torch.stack([step[0] for step in made.logits])
    return {
        "inputs": {name: value.clone() for name, value in inputs.items()},
        "logits": logits.float().clone(),
        "ids": made.sequences[0, length:].clone(),
        "steps": steps.float().clone(),
    }


def bits(model: Any) -> dict[str, int]:
    """A number for each weight and saved buffer that changes with any bit of it: the sum of its bytes' words.

    The order of the sum doesn't matter, so threads don't either.
    """
    import torch

    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {
        name: int(value.detach().contiguous().view(words[value.element_size()]).sum(dtype=torch.int64))
        for name, value in model.state_dict().items()
    }


def ties(model: Any) -> list[list[str]]:
    """Which names share a weight."""
    names: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    return sorted(sorted(same) for same in names.values() if len(same) > 1)


def settings(processor: Any) -> dict[str, str]:
    """How a processor treats pictures (their size, how many pixels at most, ...), and the chat template."""
    pictures = processor.image_processor.to_dict()
    pictures.pop("image_processor_type", None)
    shown = {f"image processor: {key}": repr(value) for key, value in sorted(pictures.items())}
    return {**shown, "chat template": str(processor.chat_template)}


def _load(job: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """The model of a folder, its weights in float32 after they were loaded in their own dtype, and what is
    wrong with the names in its files."""
    from transformers import AutoModelForImageTextToText

    options = {"dtype": job["dtype"], "trust_remote_code": job["trust_remote_code"]}
    auto: Any = AutoModelForImageTextToText
    if job["base"] is None:
        model, info = auto.from_pretrained(job["folder"], **options, output_loading_info=True)
        keys = ("missing_keys", "unexpected_keys", "mismatched_keys")
        wrong = [f"{key.replace('_', ' ')}: {sorted(map(str, info[key]))}" for key in keys if info[key]]
        return model.float(), wrong
    model = auto.from_pretrained(job["base"], **options, revision=job["revision"]).float()
    wrong = []
    if job["adapters"] != "ours":
        model, wrong = _with_peft(model, job["folder"])
    if job["adapters"]:
        from lightning_vlm.models.adapters import load_adapters

        load_adapters(model if job["adapters"] == "ours" else model.get_base_model(), Path(job["folder"]))
    return model, wrong


def _with_peft(model: Any, folder: str) -> tuple[Any, list[str]]:
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    model = PeftModel.from_pretrained(model, folder)
    saved = load_file(Path(folder, "adapter_model.safetensors"))
    own = get_peft_model_state_dict(model, save_embedding_layers=False)
    wrong = sorted(set(own) ^ set(saved)) or [name for name in own if not torch.equal(own[name], saved[name])]
    return model, [f"not as in adapter_model.safetensors: {wrong}"] if wrong else []


def _ask(job: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import AutoProcessor

    folder, remote = job["folder"], job["trust_remote_code"]
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=remote)
    model, wrong = _load(job)
    model.eval()
    answers = []
    for chat in job["chats"]:
        inputs = processor.apply_chat_template(
            _opened(chat), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        inputs.pop("labels", None)  # PaliGemma's processor makes some
        answers.append(answer(model, inputs, job["new_tokens"]))
    return {
        "answers": answers,
        "wrong": wrong,
        "settings": settings(processor),
        "ties": ties(model) if job["base"] is None else [],
        "bits": bits(model) if job["base"] is None else {},
    }


def _opened(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chat whose pictures are opened by Pillow; the processors would ask torchvision, which may not."""
    import PIL.Image

    def part(one: dict[str, Any]) -> dict[str, Any]:
        return {"type": "image", "image": PIL.Image.open(one["path"])} if "path" in one else one

    return [{**turn, "content": [part(one) for one in turn["content"]]} for turn in chat]


def _mend_torchvision(file: str) -> Any:
    """The published torchvision doesn't import beside a CPU-only torch. This fixes it there and
    changes nothing elsewhere. The fix is loaded as a single file, so that the rest of our package isn't."""
    spec = importlib.util.spec_from_file_location("torchvision_mend", file)
    assert spec is not None
    assert spec.loader is not None
    mend = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mend)
    mend.install()
    return mend


def main(jobs: str, answers: str) -> None:
    """Answer all jobs of a file into another; a job that fails has its `error` there instead."""
    import torch

    given = torch.load(jobs, weights_only=True)
    mend = _mend_torchvision(given["torchvision_mend"])
    found = []
    for job in given["jobs"]:
        try:
            found.append(_ask(job))
        except Exception as error:
            found.append({"error": f"{type(error).__name__}: {error}"})
    del mend
    if not any(job["adapters"] for job in given["jobs"]):
        assert "lightning_vlm" not in sys.modules
    torch.save(found, answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
