"""Questions on which an export is tried, for templates that take the contents of some roles as texts."""

import pytest

from lightning_vlm.data.conversation import Conversation, Message, Text
from lightning_vlm.export.fresh_process import with_media
from lightning_vlm.export.probe_samples import probe_samples
from tests.support.clips import PICTURE


@pytest.mark.parametrize("model", ["glm4v", "perception_lm"])
def test_a_system_turn_is_a_text_where_parts_would_be_written_as_python_shows_them(
    processor_of, tmp_path, model
):
    processor = processor_of(model)
    system = Message("system", (Text("Be short."),))
    asked = Message("user", (PICTURE, Text("What is it?")))
    (sample,) = probe_samples(processor, [Conversation((system, asked))], 1, tmp_path)
    opened, _ = with_media(sample.chat)
    theirs = processor.apply_chat_template(
        opened, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    assert "Be short." in processor.decode(theirs["input_ids"][0])
    assert sample.inputs["input_ids"].tolist() == theirs["input_ids"].tolist()
