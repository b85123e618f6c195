"""What Lightning VLM learns of each case. Usage: python lightning_vlm_fit.py FOLDER"""

import json
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

import lightning_vlm
from lightning_vlm import VLMDataModule, VLMModule
from lightning_vlm.kinds import Kind


class Keep(Callback):
    """Remembers the batch that is trained on."""

    batch: Any = None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember it."""
        self.batch = batch


folder = Path(sys.argv[1])
for line in (folder / "cases.jsonl").read_text().splitlines():
    case = json.loads(line)
    result = {"name": case["name"], "version": lightning_vlm.__version__}
    file = folder / "case.jsonl"
    file.write_text(json.dumps({key: case[key] for key in ("messages", "images")}) + "\n")
    keep = Keep()
    try:
        data = VLMDataModule(train=str(file), batch_size=1, max_length=case["max_length"], num_workers=0)
        trainer = Trainer(
            max_steps=1, accelerator="cpu", logger=False, callbacks=[keep], enable_checkpointing=False
        )
        trainer.fit(VLMModule(str(folder), adapt={"language": "full"}), data)
        ids, kinds = keep.batch.inputs["input_ids"][0], keep.batch.kinds[0]
        result["ids"], result["labels"] = ids.tolist(), ids.masked_fill(kinds < Kind.RESPONSE, -100).tolist()
    except Exception as error:
        result["error"] = f"{type(error).__name__}: {error}"[:300]
    print("RESULT " + json.dumps(result), flush=True)
