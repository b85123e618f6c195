"""What LLaMA-Factory learns of each case, by its own template. Usage: python llama_factory.py FOLDER"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import lightning_vlm_callbacks  # noqa: F401  # makes torchvision importable beside a CPU-only torch
import torch
from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_model, load_tokenizer

folder = Path(sys.argv[1])
for line in (folder / "cases.jsonl").read_text().splitlines():
    case = json.loads(line)
    result = {"name": case["name"], "version": version("llamafactory")}
    try:
        data = folder / "llama_factory"
        data.mkdir(exist_ok=True)
        (data / "case.json").write_text(
            json.dumps([{"messages": case["messages"], "images": case["images"]}])
        )
        tags = {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
        }
        columns = {"messages": "messages", **({"images": "images"} if case["images"] else {})}
        info = {"file_name": "case.json", "formatting": "sharegpt", "columns": columns}
        info["tags"] = {**tags, "system_tag": "system"}
        (data / "dataset_info.json").write_text(json.dumps({"case": info}))
        arguments = {
            "model_name_or_path": str(folder),
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "full",
            "template": "qwen2_vl",
            "dataset": "case",
            "dataset_dir": str(data),
            "output_dir": str(folder / "llama_factory_out"),
            "overwrite_cache": True,
            "cutoff_len": case["max_length"] or 2048,
            "use_cpu": True,
            "report_to": "none",
        }
        model_args, data_args, training_args, finetuning_args, _ = get_train_args(arguments)
        module = load_tokenizer(model_args)
        template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
        dataset = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)[
            "train_dataset"
        ]
        model = load_model(module["tokenizer"], model_args, finetuning_args)
        collate = SFTDataCollatorWith4DAttentionMask(
            template=template, model=model, pad_to_multiple_of=1, label_pad_token_id=-100, **module
        )
        batch = collate([dataset[0]])
        seen = batch["attention_mask"][0].bool()  # it adds a picture that nobody sees to samples without one
        result["ids"] = batch["input_ids"][0][seen].tolist()
        result["labels"] = batch["labels"][0][seen].tolist()
        batch.pop("fake_input", None)
        with torch.no_grad():
            model(**batch)
    except (Exception, SystemExit) as error:
        result["error"] = f"{type(error).__name__}: {error}"[:300]
    print("RESULT " + json.dumps(result), flush=True)
