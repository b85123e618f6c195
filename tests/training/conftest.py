"""The fixtures of tests of the module serve here too."""

from tests.module.conftest import batch_of, folder, listed, make_quiet, module, words

__all__ = ["batch_of", "folder", "listed", "make_quiet", "module", "words"]
