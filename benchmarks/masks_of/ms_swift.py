"""What ms-swift learns of each case, with its template of the family. Usage: python ms_swift.py FOLDER"""

import json
import sys
from pathlib import Path

import lightning_vlm_callbacks  # noqa: F401  # makes torchvision importable beside a CPU-only torch
import swift
import torch
from swift.model import get_model_processor
from swift.template import get_template

folder = Path(sys.argv[1])
model, processor = get_model_processor(str(folder), model_type="qwen2_5_vl", torch_dtype=torch.float32)
for line in (folder / "cases.jsonl").read_text().splitlines():
    case = json.loads(line)
    result = {"name": case["name"], "version": swift.__version__}
    try:
        # Its training leaves out by default what is too long.
        template = get_template(
            processor, template_type="qwen2_5_vl", max_length=case["max_length"], truncation_strategy="raise"
        )
        template.set_mode("train")
        template.model = model
        encoded = template.encode({"messages": case["messages"], "images": case["images"]})
        result["ids"], result["labels"] = list(encoded["input_ids"]), list(encoded["labels"])
        batch = template.data_collator([encoded])
        with torch.no_grad():
            model(**template._post_encode(model, batch))
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"[:300]
    print("RESULT " + json.dumps(result), flush=True)
