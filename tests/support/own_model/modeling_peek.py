"""A model with an eye, a bridge, a brain and a mouth."""

import torch
from torch import nn
from transformers import GenerationMixin, LlamaConfig, LlamaModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class PeekConfig(PretrainedConfig):
    """Sizes of a `PeekForImageTextToText`."""

    model_type = "peek"

    def __init__(self, vocab_size=300, width=64, layers=2, image_token_id=0, **kwargs):
        self.vocab_size = vocab_size
        self.width = self.hidden_size = width
        self.layers = self.num_hidden_layers = layers
        self.image_token_id = image_token_id
        super().__init__(**kwargs)


class PeekForImageTextToText(PreTrainedModel, GenerationMixin):
    """Each picture becomes four tokens; logits are half of what the mouth says."""

    config_class = PeekConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        width = config.width
        self.eye = nn.Sequential(nn.Conv2d(3, 32, 14, 14), nn.GELU(), nn.Conv2d(32, 48, 1))
        self.bridge = nn.Linear(48, width)
        self.brain = LlamaModel(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=config.layers,
                num_attention_heads=4,
                max_position_embeddings=512,
                pad_token_id=config.pad_token_id,
            )
        )
        self.mouth = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        logits_to_keep=0,
        **kwargs,
    ):
        if inputs_embeds is None:
            inputs_embeds = self.brain.embed_tokens(input_ids)
        if pixel_values is not None:
            seen = self.bridge(self.eye(pixel_values).flatten(2).transpose(1, 2))
            is_picture = (input_ids == self.config.image_token_id)[..., None]
            inputs_embeds = inputs_embeds.masked_scatter(is_picture, seen.to(inputs_embeds.dtype))
        out = self.brain(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = 0.5 * self.mouth(out.last_hidden_state[:, keep])
        return CausalLMOutputWithPast(logits=logits, past_key_values=out.past_key_values)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, pixel_values=None, **kwargs):
        inputs = super().prepare_inputs_for_generation(input_ids, past_key_values=past_key_values, **kwargs)
        first = past_key_values is None or past_key_values.get_seq_length() == 0
        return {**inputs, "pixel_values": pixel_values if first else None}

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            module.weight.normal_(std=0.05)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
