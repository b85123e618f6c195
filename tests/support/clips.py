"""Conversations with short videos, for the tests of every family that takes them."""

from lightning_vlm.data.conversation import Conversation, Message, Text, Video
from lightning_vlm.data.video.sampling import VideoSampling
from tests.support.packed import picture
from tests.support.tiny import FAMILIES

VIDEO = tuple(name for name, family in FAMILIES.items() if family.video)
"""Families that take videos."""
EVERY_FRAME = VideoSampling(num_frames=64)
"""Each frame is looked at."""


def clip(frames=4, width=64, height=48, seed=0, fps=2.0):
    """A video of noise."""
    pictures = tuple(picture(width, height, 1000 * (1 + seed) + frame) for frame in range(frames))
    return Video(frames=pictures, fps=fps)


def talk(*turns, source="videos.jsonl:1", task="video"):
    """Turns of the user and the assistant by turns, each a text or a tuple of parts."""
    messages = []
    for number, turn in enumerate(turns):
        parts = turn if isinstance(turn, tuple) else (turn,)
        role = "assistant" if number % 2 else "user"
        messages.append(Message(role, tuple(Text(part) if isinstance(part, str) else part for part in parts)))
    return Conversation(tuple(messages), source=source, task=task)


PICTURE = picture(64, 64, 9)
TALKS = {
    "one": talk((clip(), "What moves?"), "A red square."),
    "odd number of frames": talk((clip(3, 40, 80), "What moves?"), "Nothing."),
    "two": talk((clip(), "and", clip(seed=1), "?"), "They differ.", "Sure?", "Yes."),
    "later": talk("Hello", "Hello.", (clip(), "What is it?"), "A film."),
}
MIXED = talk((PICTURE, "Is it in", clip(), "?"), "Yes.", (picture(96, 48, 5), "Or this?"), "No.")
"""A picture, a video and a picture."""
ONE_MEDIUM = ("smolvlm", "glm4v", "glm46v", "glm_ocr", "glm4v_moe")
"""Families that take either pictures or videos in a sample."""
