"""What a processor makes of a marked text and its media, with a recorder as its tokenizer."""

from collections.abc import Mapping
from typing import Any

from transformers import ProcessorMixin

from lightning_vlm.data.render.media import Media, media_options
from lightning_vlm.data.render.question_tokenizer import QuestionTokenizer
from lightning_vlm.data.render.recording_tokenizer import RecordingTokenizer
from lightning_vlm.data.render.tiles import tensors_of
from lightning_vlm.errors import DataError, UserError


def process(
    processor: ProcessorMixin,
    marked: str,
    media: Media,
    recorder: RecordingTokenizer,
    video_options: Mapping[str, Any],
) -> dict[str, Any]:
    """The inputs of a model.

    Args:
        processor: Its tokenizer is the recorder for as long as this takes.
        marked: A text with markers.
        media: Its pictures and videos.
        recorder: Stands in for the tokenizer.
        video_options: What the processor gets to know of videos beside them.

    Raises:
        DataError: The processor refuses them.
    """
    tokenizer = processor.tokenizer
    options = media_options(processor, media, video_options)
    bos_token = tokenizer.bos_token
    if bos_token is not None and marked.startswith(bos_token):  # as apply_chat_template does
        options["add_special_tokens"] = False
    own = {name: value for name, value in vars(processor).items() if name.endswith("_tokenizer")}
    processor.tokenizer = recorder
    for name, value in own.items():
        setattr(processor, name, QuestionTokenizer(value, name, recorder.spans, recorder.source))
    try:
        return tensors_of(processor, text=[marked], **options)
    except UserError:
        raise
    except ValueError as error:
        found = f"a sample that {type(processor).__name__} refuses ({str(error).splitlines()[0]})"
        raise DataError(recorder.source, "messages", found, media.expected) from error
    finally:
        vars(processor).update(own, tokenizer=tokenizer)
