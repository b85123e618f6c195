"""Where a mask is made: from a conversation to token ids, each with its kind."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from transformers import ProcessorMixin

from lightning_vlm.data.boxes.codec import BoxCodec
from lightning_vlm.data.boxes.of_model import codec_for
from lightning_vlm.data.boxes.views import view_of
from lightning_vlm.data.conversation import Conversation, Image, Message, Video
from lightning_vlm.data.images import load_image
from lightning_vlm.data.render.answer_format import AnswerFormat
from lightning_vlm.data.render.answer_places import AnswerPlaces
from lightning_vlm.data.render.chat import ChatTemplate
from lightning_vlm.data.render.coordinate_tokens import NumberFinder
from lightning_vlm.data.render.example import Example, TooLong
from lightning_vlm.data.render.fitting import WITHOUT_LIMIT, longest_fit, turns_within
from lightning_vlm.data.render.front_pictures import check_one_picture, picture_habits
from lightning_vlm.data.render.located import LocatedWriter, coordinates_of
from lightning_vlm.data.render.markers import mark_media
from lightning_vlm.data.render.masks import MaskFinder
from lightning_vlm.data.render.media import (
    Opened,
    OpenPicture,
    OpenVideo,
    check_places,
    clip_spans,
    open_media,
    pictures_of,
)
from lightning_vlm.data.render.processing import process
from lightning_vlm.data.render.prompt_rounds import RenderOnce, fitting_turns
from lightning_vlm.data.render.reasoning import with_reasoning
from lightning_vlm.data.render.recording_tokenizer import RecordingTokenizer
from lightning_vlm.data.render.special_tokens import placeholder_pattern, refuse_forged, special_tokens
from lightning_vlm.data.render.turns import (
    TRAILING,
    Turn,
    arrange,
    first_learned,
    plain_text,
    round_ends,
    until_last_answer,
)
from lightning_vlm.data.render.videos import VideoRules
from lightning_vlm.data.video.sampling import VideoSampling
from lightning_vlm.errors import UserError
from lightning_vlm.kinds import Kind


class Renderer:
    """Turns conversations into token ids, and says of each token who wrote it.

    1. The chat template is rendered with a marker in place of each text, so it shows what it writes itself.
    2. The processor expands the pictures of that marked text as it does for any other.
    3. When it calls its tokenizer, a `RecordingTokenizer` puts the real texts in place of their markers, and
       so knows of each character whether the template, a picture or a person wrote it.
    4. The real tokenizer makes tokens of these characters, and each token gets its `Kind` from them.
    5. The mask is the tokens of the kinds of answers: their words, and the tokens that end their turns.

    White space that the template puts between the generation prompt and an answer is part of the answer,
    since the model must write it. For ordinary text the ids are those of the processor's own
    `apply_chat_template`. Text that spells a special token or a picture's placeholder stays text; where the
    tokenizer would join an answer with what the template writes around it, or two turns of different weights,
    they are tokenized apart, as generation would write them. Where the next question's first token ends an
    answer (GLM-4.xV), it also comes behind the last one. Any other template without an end-of-turn token gets
    a warning. Turns in other orders than question and answer are written as the template takes them; see
    `arrange`.

    Args:
        processor: A processor of transformers that has a chat template.
        max_length: The most tokens of a sample, image tokens included. A sample that is too long loses whole
            rounds at its end until it fits. None cuts nothing, and refuses more than `most_tokens`.
        video: Which frames of videos are looked at, and how large; None is as the processor does by itself.
        boxes: How boxes are written, or its name; see `codec_for`.

    Raises:
        UserError: The processor has no chat template, its tokenizer can't say which characters a token is, or
            lacks tokens of `boxes`.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        max_length: int | None = None,
        video: VideoSampling | None = None,
        boxes: BoxCodec | str | None = None,
    ) -> None:
        if not getattr(processor.tokenizer, "is_fast", False):
            raise UserError(
                f"{type(processor.tokenizer).__name__} is a slow tokenizer; exact masks need a fast one"
            )
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.max_length = max_length
        self.answer_tokens = 0
        """How many of `max_length` are kept for the answer to a prompt, which loses early rounds for them."""
        self.open_picture: OpenPicture = load_image
        """How a picture is opened. Lengths are measured with one that gives blank ones."""
        self.special = special_tokens(processor)
        self._placeholder = placeholder_pattern(processor, self.special.placeholders)
        self.template = ChatTemplate(processor)
        self.habits = picture_habits(processor)
        self.answers = AnswerFormat(
            self.template,
            self.special.ends,
            str(self.tokenizer.eos_token),
            self.special.next_turn,
            self.habits.strips,
        )
        self.template.warn_of_flaws(set() if self.habits.in_front else self.special.placeholders)
        self.places = AnswerPlaces(self.template, self.answers)
        """Where answers are in what the template writes."""
        self.videos = VideoRules(processor, self.special, self.template, self.places, video)
        """What the processor does with videos."""
        self.open_video: OpenVideo = self.videos.open
        """How a video is opened. Lengths are measured with one that gives blank ones."""
        codec = boxes if isinstance(boxes, BoxCodec) else codec_for(processor, boxes).codec
        self.boxes = LocatedWriter(codec, partial(view_of, processor), self.special.pattern)
        """What writes boxes."""
        self._numbers = NumberFinder(self.tokenizer, codec.tokens)
        self._masks = MaskFinder(processor, codec)
        # In PaliGemma, tokens before the first answer (type 0) attend to each other in both directions. Its
        # processor doesn't know where the answers are, and would let their tokens see the ones to predict.
        self._prefix_attends_both_ways = "labels" in processor.model_input_names

    def opening(self, open_video: OpenVideo) -> "Renderer":
        """A renderer like this one that opens videos in another way."""
        other = copy.copy(self)
        other.open_video = open_video
        return other

    @property
    def most_tokens(self) -> int:
        """The most tokens of a sample: `max_length`, or a bound that only mistakes reach where it is None."""
        if self.max_length is not None:
            return self.max_length
        limit = self.tokenizer.model_max_length
        if limit >= 10**7:  # a tokenizer without a limit has a huge number
            return WITHOUT_LIMIT
        return max(WITHOUT_LIMIT, limit)

    def example(self, conversation: Conversation) -> Example:
        """Render a conversation to learn from. What comes after its last answer is dropped.

        Raises:
            DataError: No assistant turn, a broken picture, what the template or the processor refuses, or a
                text that the template changes so that it can't be masked exactly.
            TooLong: Not even its first round fits into `max_length`.
        """
        source = conversation.source
        conversation = self._prepared(conversation)
        learned = until_last_answer(conversation)
        turns, changes = arrange(learned, self.template.accepts)
        if len(learned) < len(conversation.messages):
            changes += (TRAILING,)
        within, counted = turns_within(turns, self.most_tokens, self.tokenizer)
        ends = [end for end in round_ends(turns) if first_learned(turns) < end <= within]
        if counted is not None and (not ends or self.max_length is None):
            raise self._too_long(source, f"more than {counted:,} tokens", counted)
        opened: Opened = {}

        def render(rounds: int) -> Example:
            end = ends[rounds - 1]
            return self._render(conversation, turns[:end], False, opened)

        if self.max_length is None:
            rounds = len(ends)
            example = render(rounds)
        else:
            answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
            last_answers = [answers.index(end - 1) for end in ends]
            rounds, example = longest_fit(render, last_answers, self.max_length)
        if not rounds:
            length = len(example.input_ids)
            of_pictures = int((example.kinds == Kind.IMAGE).sum())
            raise self._too_long(source, f"{length} tokens, {of_pictures} of them of pictures", length)
        end = ends[rounds - 1]
        kept = sum(len(turn.messages) for turn in turns[:end])
        rendered = conversation.with_messages(learned[:kept])
        changes += example.changes + conversation.changes
        return replace(example, conversation=rendered, truncated=len(learned) - kept, changes=changes)

    def prompt(self, conversation: Conversation) -> tuple[Example, str | None]:
        """Render what the model is to answer.

        That is everything before the last assistant turn, and the template's generation prompt.

        Returns:
            The prompt, and the words of the last assistant turn with its calls, without its reasoning (None
            where there is no such turn).

        Raises:
            As `example`. TooLong if it exceeds `max_length`, and no rounds are left out for `answer_tokens`.
        """
        source = conversation.source
        conversation = self._prepared(conversation)
        turns, changes = arrange(conversation.messages, self.template.accepts)
        last = turns.pop() if turns[-1].role == "assistant" else None
        opened: Opened = {}
        render = RenderOnce(lambda turns: self._render(conversation, turns, True, opened))
        room = self.answer_tokens
        turns, left_out = fitting_turns(render, turns, self.tokenizer, self.most_tokens, room)
        changes += left_out + conversation.changes
        kept = sum(len(turn.messages) for turn in turns)
        if all(turn.role == "system" for turn in turns):
            turns.append(Turn("user", (), kept))  # a chat that begins with a greeting gets an empty question
        _, counted = turns_within(turns, self.most_tokens, self.tokenizer)
        if counted is not None:
            raise self._too_long(source, f"a prompt of more than {counted:,} tokens", counted)
        example = render(turns)
        length = len(example.input_ids) + room
        if self.max_length is not None and length > self.max_length:
            found = f"a prompt of {length} tokens" + f", {room} of them for its answer" * bool(room)
            raise self._too_long(source, found, length)
        pictures = pictures_of(opened)
        written = self.boxes.write(turns if last is None else [*turns, last], pictures, source)
        reference = None if last is None else self._reference(written.turns, conversation)
        messages = tuple(message for turn in written.turns for message in turn.messages)[:kept]
        asked = conversation.with_messages(messages or (Message("user", ()),))
        reader = self.boxes.reader(written, pictures, last is not None, example.grids)
        return replace(example, conversation=asked, changes=changes, reader=reader), reference

    def turns(self, conversation: Conversation) -> list[Turn]:
        """The turns of a conversation as the template gets them; DataError as of `refuse_forged`."""
        return arrange(self._prepared(conversation).messages, self.template.accepts)[0]

    def _prepared(self, conversation: Conversation) -> Conversation:
        """The conversation with reasoning apart from words, if its texts may stand in a template."""
        refuse_forged(conversation, self.special.pattern)
        messages = with_reasoning(conversation.messages, self.template.reasoning)
        return conversation.with_messages(messages)

    def _reference(self, turns: Sequence[Turn], conversation: Conversation) -> str:
        """What the last turn says, as a model's answer is read: without reasoning and special tokens."""
        if not any(message.calls for message in turns[-1].messages):
            return plain_text(turns[-1])
        written = self.template.answer(turns, conversation.source, conversation.tools)
        if self.template.reasoning is not None:
            _, written = self.template.reasoning.divide(written)
        return self.boxes.without_special(written, self.special.pattern).strip()

    def _too_long(self, source: str, found: str, length: int) -> TooLong:
        if self.max_length is None:
            expected = f"at most {self.most_tokens:,} without data.max_length; set it, so that it is cut"
        else:
            expected = f"at most {self.max_length} (max_length); smaller pictures or a shorter text"
        return TooLong(source, found, expected, length)

    def _render(
        self, conversation: Conversation, turns: Sequence[Turn], generate: bool, opened: Opened
    ) -> Example:
        """Render some turns of a conversation; `opened` keeps pictures and videos for the next rendering."""
        source = conversation.source
        kinds_of_parts = {type(part) for turn in turns for part in turn.parts}
        has_video = Video in kinds_of_parts
        if has_video:
            self.videos.check(source, Image in kinds_of_parts)
        media = open_media(turns, source, opened, self.open_picture, self.open_video)
        boxes = self.boxes.write(turns, media.pictures, source)
        turns = boxes.turns
        template, answers = self.videos.chat if has_video else (self.template, self.places)
        tools = conversation.tools
        written = template.render_marked(turns, generate, source, tools)
        chat = answers.mark(written, turns, tools, asks=generate, source=source)
        marked, places = mark_media(chat.text, self._placeholder)
        placed = media
        if self.habits.in_front:
            check_one_picture(turns, type(self.processor).__name__, source)
            placed = media._replace(pictures=[])
        check_places(places, placed, self.special.video, source)
        recorder = RecordingTokenizer(
            self.tokenizer, self.special, chat.answers, marked, chat.spans, source, self._numbers
        )
        inputs = process(self.processor, marked, media, recorder, self.videos.options(media.clips))
        input_ids = inputs.pop("input_ids")[0]
        recorder.add_front(input_ids)
        kinds = torch.from_numpy(recorder.kinds)
        if len(kinds) != len(input_ids):
            raise UserError(
                f"{type(self.processor).__name__} changes the ids after tokenizing; not supported"
            )
        inputs.pop("labels", None)
        if self._prefix_attends_both_ways:
            inputs["token_type_ids"] = (kinds >= Kind.RESPONSE).cumsum(0).clamp(max=1)[None]
        weights = None if recorder.weights is None else torch.from_numpy(recorder.weights)
        rendered = input_ids, kinds, inputs, conversation, weights
        return Example(
            *rendered,
            changes=chat.changes,
            answer_ends=recorder.answer_ends,
            clips=clip_spans(media.clips, recorder.media_spans, places, self.special.video),
            coordinates=coordinates_of(boxes, recorder.numbers),
            **self._masks.found(boxes, input_ids, kinds, inputs, len(media.pictures)),
        )
