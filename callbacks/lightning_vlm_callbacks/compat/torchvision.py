"""Make the published torchvision wheel importable beside a CPU-only torch.

PyPI has no CPU build of torchvision. Its published wheel links CUDA libraries, so beside a CPU torch its
compiled operators don't load, and `import torchvision` stops with `operator torchvision::nms does not exist`;
transformers, torchmetrics and lightning stop with it. Nothing here needs those operators, only their
names: with the two schemas defined, torchvision imports and its transforms work (compiled `nms` and
`roi_align` still don't).

The fix waits as a finder for the first `import torchvision` and acts only if torch has no CUDA and
torchvision's own library really fails to load. It costs nothing until then, so `lightning-vlm --help` stays
fast. `import lightning_vlm_callbacks` (or `lightning_vlm`) must come before `import lightning` for it to help
there: a Lightning that has failed to import runs none of our code.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_libraries: list = []  # torch drops a schema when its Library object is collected


def install() -> None:
    """Wait for the first import of torchvision. Does nothing where torchvision has been imported already."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def is_needed() -> bool:
    """Whether torchvision doesn't import here unless `install` is called first."""
    spec = PathFinder.find_spec("torchvision")
    return spec is not None and spec.origin is not None and is_broken(Path(spec.origin).parent)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            if is_needed():
                _define_missing_operators()
        return None  # the ordinary finders do the import


def is_broken(package: Path) -> bool:
    """Whether torchvision's compiled library doesn't load beside this torch.

    Args:
        package: The folder of torchvision.
    """
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        return False
    for library in [*package.glob("_C*.so"), *package.glob("_C*.pyd")]:
        try:
            torch.ops.load_library(library)
        except OSError:
            return True
    return False


def _define_missing_operators() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
