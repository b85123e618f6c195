"""What of the published families can't learn."""

_EARLY = ["vision.layers[-1]", "model.model.vision_tower.post_layernorm"]
DEAD = {
    "llava": _EARLY,
    "llava_next": _EARLY,
    "deepseek_ocr2": ["model.model.vision_tower.query_1024_resolution"],  # for larger pictures
    "llava_onevision": ["model.model.vision_tower.post_layernorm"],
    "aya_vision": ["model.model.vision_tower.post_layernorm"],
    "granite4_vision": ["model.model.vision_tower.post_layernorm"],
    "vipllava": _EARLY,
    "llava_next_video": _EARLY,
    # The other tower is that of videos.
    "video_llava": [
        "vision.layers[-1]",
        "model.model.image_tower.post_layernorm",
        "model.model.video_tower",
    ],
    # What its Q-Former makes of the question in its last layer is read by nobody.
    "instructblip": [f"model.qformer.encoder.layer.1.{part}" for part in ("intermediate", "output")],
    # What would lie between two pictures, which is read by nobody.
    "hunyuan_vl": ["model.model.vision_tower.patch_merger.image_sep"],
}
"""Selectors of what no gradient ever reaches in a family, as published."""
