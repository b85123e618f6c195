import pytest

from lightning_vlm import VLMModule


@pytest.fixture(scope="module")
def module():
    """The shipped model's module; its weights are never loaded."""
    made = VLMModule("drawn-vlm")
    yield made
    assert made.model is None
