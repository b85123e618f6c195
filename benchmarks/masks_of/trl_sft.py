"""What TRL's SFTTrainer learns of each case, with `assistant_only_loss`. Usage: python trl_sft.py FOLDER

TRL finds answers in those chat templates that it has a copy of, so the model gets the published template that
comes with TRL.
"""

import json
import sys
from pathlib import Path

import datasets
import lightning_vlm_callbacks  # noqa: F401  # makes torchvision importable beside a CPU-only torch
import PIL.Image
import trl
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = Path(sys.argv[1])
processor = AutoProcessor.from_pretrained(folder)
template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5_vl.jinja"
processor.chat_template = processor.tokenizer.chat_template = template.read_text("utf-8")
model = AutoModelForImageTextToText.from_pretrained(folder)


def parts(text: str) -> list[dict]:
    if not text.startswith("<image>"):
        return [{"type": "text", "text": text}]
    return [{"type": "image", "text": None}, {"type": "text", "text": text.removeprefix("<image>")}]


for line in (folder / "cases.jsonl").read_text().splitlines():
    case = json.loads(line)
    messages = [{"role": turn["role"], "content": parts(turn["content"])} for turn in case["messages"]]
    images = [PIL.Image.open(path) for path in case["images"]]
    result = {"name": case["name"], "version": trl.__version__}
    try:
        data = datasets.Dataset.from_list([{"messages": messages, "images": images}])
        arguments = trl.SFTConfig(
            output_dir=str(folder / "trl"),
            assistant_only_loss=True,
            max_length=case["max_length"],
            per_device_train_batch_size=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
        )
        trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=processor)
        (batch,) = trainer.get_train_dataloader()
        result["ids"] = batch["input_ids"][0].tolist()
        result["labels"] = batch["labels"][0].tolist()
        model(**batch)
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"[:300]
    print("RESULT " + json.dumps(result), flush=True)
