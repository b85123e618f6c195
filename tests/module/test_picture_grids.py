"""The tokens of a picture are a grid: what is drawn in a cell changes the token of that cell most."""

import io

import PIL.Image
import PIL.ImageDraw
import pytest
import torch

from lightning_vlm import VLMModule
from lightning_vlm.data.batch.collate import Item, collate
from lightning_vlm.data.conversation import Conversation, Image, Message, Region, Text
from lightning_vlm.data.render.picture_grids import refuse_without_grid
from lightning_vlm.data.render.renderer import Renderer
from lightning_vlm.errors import UserError
from lightning_vlm.models.loading.load import load_processor
from tests.support import tiny

GRIDS = (
    *("llava", "shipped", "vipllava", "paligemma", "gemma3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"),
    *("qwen3_vl_moe", "qwen3_5_moe", "glm4v", "glm46v", "glm4v_moe", "glm_ocr", "paddleocr_vl", "lfm3_vl"),
    *("video_llama_3", "exaone4_5", "ernie4_5_vl_moe"),
)
"""The families whose pictures are one grid. All others are refused."""
SIZE = (120, 84)


def picture(dot=None):
    image = PIL.Image.new("RGB", SIZE, "gray")
    if dot is not None:
        x, y = (side * place for side, place in zip(SIZE, dot, strict=True))
        PIL.ImageDraw.Draw(image).ellipse((x - 6, y - 6, x + 6, y + 6), fill="white")
    file = io.BytesIO()
    image.save(file, "PNG")
    return Image(data=file.getvalue())


def asked(dot=None):
    outline = (0.1, 0.1, 0.9, 0.1, 0.5, 0.8)
    question = Message("user", (picture(dot), Text("Where is it?")))
    return Conversation((question, Message("assistant", (Region(outline, "it"),))))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_others_are_refused(model_folder, family):
    processor = load_processor(str(model_folder(family)), chat_template="plain")
    if family in GRIDS:
        refuse_without_grid(processor)
    else:
        with pytest.raises(UserError, match=r"^model\.mask_head: "):
            refuse_without_grid(processor)


@pytest.mark.parametrize("family", [family for family in GRIDS if family != "shipped"])
def test_each_token_sees_its_cell(model_folder, family):
    template = "plain" if family == "paligemma" else None
    options = {"new_tokens": ["<seg>"], "adapt": {"language": "frozen"}, "chat_template": template}
    module = VLMModule(str(model_folder(family)), **options)
    module.configure_model()
    module.model.eval()
    renderer = Renderer(module.processor, boxes="seg")

    seen = []

    def keep(_, args, options):
        seen.append(options["inputs_embeds"] if "inputs_embeds" in options else args[0])

    module.model.get_decoder().register_forward_pre_hook(keep, with_kwargs=True)

    def embedded(dot=None):
        """What the language model gets; its own layers mix tokens."""
        example = renderer.example(asked(dot))
        with torch.no_grad():
            module.hidden_states(collate([Item(example, None, None)], 0, [], []))
        return example, seen.pop()[0].float()

    example, blank = embedded()
    (grid,) = example.grids
    assert grid.rows * grid.columns == len(grid.tokens) >= 4
    view = renderer.boxes._views([PIL.Image.new("RGB", SIZE)])[0]
    for row, column in ((0, 0), (0, grid.columns - 1), (grid.rows - 1, 0), (grid.rows - 1, grid.columns - 1)):
        dot = view.from_seen(((column + 0.5) / grid.columns, (row + 0.5) / grid.rows))
        _, changed = embedded(dot)
        most = (changed - blank)[grid.tokens].norm(dim=1).argmax()
        assert divmod(int(most), grid.columns) == (row, column)
