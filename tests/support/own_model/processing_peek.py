"""A processor that writes four tokens for each picture."""

from transformers import BatchFeature, ProcessorMixin


class PeekProcessor(ProcessorMixin):
    """Text and pictures for a `PeekForImageTextToText`."""

    def __init__(self, image_processor, tokenizer, chat_template=None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images=None, text=None, return_tensors=None, **kwargs):
        made = {}
        if images is not None:
            made.update(self.image_processor(images, return_tensors=return_tensors))
        text = [text] if isinstance(text, str) else text
        made.update(self.tokenizer([words.replace("<peek>", 4 * "<peek>") for words in text], **kwargs))
        return BatchFeature(made, tensor_type=return_tensors)
