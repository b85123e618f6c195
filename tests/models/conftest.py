"""The tiny models, built once a session."""

import pytest


@pytest.fixture(scope="session")
def tiny_folder(model_folder):
    """Folder of the tiny model of a family."""
    return model_folder
