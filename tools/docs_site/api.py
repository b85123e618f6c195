"""The pages of the API: what is public, by what people do with it; mkdocstrings fills in the docstrings."""

import ast
import functools
import re
from pathlib import Path
from textwrap import indent

FOLDER = "reference/api"

LOSSES = {
    "Language": [
        "lightning_vlm.losses.language.linear_cross_entropy",
        "lightning_vlm.losses.weights.KindWeights",
    ],
    "Boxes": [
        "lightning_vlm.losses.box_loss.BoxLoss",
        "lightning_vlm.losses.boxes.box_overlap",
        "lightning_vlm.losses.boxes.l1",
        "lightning_vlm.losses.boxes.hungarian",
        "lightning_vlm.losses.coordinates.soft_targets",
        "lightning_vlm.losses.coordinates.soft_losses",
        "lightning_vlm.losses.coordinates.wasserstein",
    ],
    "Masks": [
        "lightning_vlm.losses.masks.mask_cross_entropy",
        "lightning_vlm.losses.masks.dice_loss",
        "lightning_vlm.losses.masks.box_projection_loss",
    ],
    "Experts": ["lightning_vlm.losses.balance.balance_loss"],
}
METRICS = {
    "Texts": [
        "lightning_vlm.metrics.text.exact_match",
        "lightning_vlm.metrics.text.token_f1",
        "lightning_vlm.metrics.vqa.vqa_accuracy",
        "lightning_vlm.metrics.short_answers.anls",
        "lightning_vlm.metrics.short_answers.relaxed_accuracy",
        "lightning_vlm.metrics.choices.choice_accuracy",
        "lightning_vlm.metrics.ranking.length_score",
    ],
    "Boxes": [
        "lightning_vlm.metrics.boxes.iou",
        "lightning_vlm.metrics.boxes.matched_ious",
        "lightning_vlm.metrics.boxes.accuracy_at",
        "lightning_vlm.metrics.boxes.mean_iou",
        "lightning_vlm.metrics.boxes.pointing_accuracy",
        "lightning_vlm.metrics.detection.detection_counts",
        "lightning_vlm.metrics.detection.mean_average_precision",
        "lightning_vlm.metrics.masks.overlap",
    ],
}
DATA = {
    "Files": [
        "lightning_vlm.data.read.readers.DataFile",
        "lightning_vlm.data.read.readers.Messages",
        "lightning_vlm.data.read.readers.OpenAIMessages",
        "lightning_vlm.data.read.readers.LLaVA",
        "lightning_vlm.data.read.coco.COCO",
        "lightning_vlm.data.read.hf_dataset.HFDataset",
        "lightning_vlm.data.read.picture_files.PictureFiles",
    ],
    "Ready data": [
        "lightning_vlm.data.drawn.source.Drawn",
        "lightning_vlm.data.drawn.videos.DrawnVideos",
        "lightning_vlm.data.read.easy_vqa.EasyVQA",
    ],
    "Of other sources": ["lightning_vlm.data.conversation.Slice", "lightning_vlm.data.conversation.Chain"],
    "What a sample is": [
        "lightning_vlm.data.conversation.Conversations",
        "lightning_vlm.data.conversation.Conversation",
        "lightning_vlm.data.conversation.Message",
    ],
    "Options": [
        "lightning_vlm.data.video.sampling.VideoSampling",
        "lightning_vlm.data.batch.task_sampling.TaskSampling",
        "lightning_vlm.data.negatives.options.Negatives",
    ],
}
SCHEDULES = {
    "": [
        "lightning_vlm.optim.schedules.Schedule",
        "lightning_vlm.optim.schedules.Constant",
        "lightning_vlm.optim.schedules.Linear",
        "lightning_vlm.optim.schedules.Cosine",
        "lightning_vlm.optim.schedules.ThreePhase",
    ]
}
SELECTORS = {
    "": [
        "lightning_vlm_callbacks.selectors.select_modules",
        "lightning_vlm_callbacks.selectors.select_parameters",
    ]
}
TOGETHER = {
    "data": ("Data sources", DATA),
    "schedules": ("Learning rate schedules", SCHEDULES),
    "losses": ("Losses", LOSSES),
    "metrics": ("Metrics", METRICS),
    "selectors": ("Selectors", SELECTORS),
}
"""Pages that describe several things: title, and what is on them."""

LIGHTNINGS = (
    r"^(_|on_|configure_)|_(step|dataloader)$"
    r"|^(setup|teardown|state_dict|load_state_dict|prepare_data|transfer_batch_to_device)$"
)
"""Methods that Lightning calls, as the filters of mkdocs.yml have them."""

PACKAGES = {"lightning_vlm": Path(), "lightning_vlm_callbacks": Path("callbacks")}
"""Where each package lies in the repository."""


def pages(root: Path) -> dict[str, str | bytes]:
    """Text of each page, by its place in the site."""
    made: dict[str, str | bytes] = {}
    for package in PACKAGES:
        for name in public_names(root, package):
            used = f"```python\nfrom {package} import {name}\n```"
            made[f"{FOLDER}/{name}.md"] = f"# {name}\n\n{used}\n\n::: {package}.{name}\n"
    for page, (title, groups) in TOGETHER.items():
        text = [f"# {title}\n"]
        for heading, paths in groups.items():
            text += [f"## {heading}\n"] if heading else []
            for path in paths:
                text.append(f"::: {path}\n    options: {{heading_level: 3, show_root_heading: true}}\n")
        made[f"{FOLDER}/{page}.md"] = "\n".join(text)
    return made


def nav(root: Path) -> list[dict[str, list[str]] | str]:
    """The navigation of the pages."""
    packages = {package: public_names(root, package) for package in PACKAGES}
    together: list[dict[str, list[str]] | str] = [f"{FOLDER}/{page}.md" for page in TOGETHER]
    return [
        *({package: [f"{FOLDER}/{name}.md" for name in names]} for package, names in packages.items()),
        *together,
    ]


def index(root: Path) -> str:
    """The page that lists all names, with links to their files."""
    lines = ["# Python API\n", "What is imported from the two packages, and functions that are useful alone."]
    groups = {package: [f"{package}.{name}" for name in public_names(root, package)] for package in PACKAGES}
    groups |= {title: [path for one in parts.values() for path in one] for title, parts in TOGETHER.values()}
    for title, paths in groups.items():
        lines.append(f"\n## {title}\n\n| name | |\n|---|---|")
        for path in paths:
            file = defined_in(root, path).relative_to(root)
            name = path.rpartition(".")[2]
            lines.append(f"| [`{name}`](../../{file}#{name}) | {summary(root, path)} |")
    return "\n".join(lines) + "\n"


def place_of(root: Path, file: str, name: str) -> tuple[str, str] | None:
    """The page, and the heading on it, that describe a name of a file; None where no page does."""
    for page, (_, groups) in TOGETHER.items():
        for paths in groups.values():
            for path in paths:
                if path.rpartition(".")[2] == name and defined_in(root, path) == root / file:
                    return f"{FOLDER}/{page}.md", path
    for package in PACKAGES:
        if name in public_names(root, package) and defined_in(root, f"{package}.{name}") == root / file:
            return f"{FOLDER}/{name}.md", ""
    return None


def public_names(root: Path, package: str) -> list[str]:
    """`__all__` of a package, without importing it."""
    for node in _parsed(_file(root, package)).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value))
    raise ValueError(f"{package} has no __all__")


def summary(root: Path, path: str) -> str:
    """The first sentence of a docstring, for a cell of a table."""
    _, node = _definition(root, path)
    text = (ast.get_docstring(node) or "").partition("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def defined_in(root: Path, path: str) -> Path:
    """The file that a class or function stands in."""
    return _definition(root, path)[0]


def as_text(root: Path, path: str) -> str:
    """The signature and docstring of a class or function, as Markdown; of a class also what it offers."""
    _, node = _definition(root, path)
    parts = [_signature(node)]
    if isinstance(node, ast.ClassDef):
        offered = [one for one in node.body if isinstance(one, ast.FunctionDef) and ast.get_docstring(one)]
        parts += [indent(_signature(one), "    ") for one in offered if _is_public(one.name)]
    return "```python\n" + "\n\n".join(parts) + "\n```"


def _signature(node: ast.ClassDef | ast.FunctionDef) -> str:
    """What is called, with its docstring below."""
    inits = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
    called = inits[0] if isinstance(node, ast.ClassDef) and inits else node
    if isinstance(called, ast.FunctionDef):
        arguments = ast.unparse(called.args).removeprefix("self, ").removeprefix("self")
    else:  # a dataclass
        arguments = ", ".join(ast.unparse(one) for one in called.body if isinstance(one, ast.AnnAssign))
    result = f" -> {ast.unparse(node.returns)}" if isinstance(node, ast.FunctionDef) and node.returns else ""
    kind = "class" if isinstance(node, ast.ClassDef) else "def"
    texts = [ast.get_docstring(one) for one in dict.fromkeys((node, called))]
    docstring = "\n\n".join(text for text in texts if text)
    return f"{kind} {node.name}({arguments}){result}:\n" + indent(docstring, "    ")


def _is_public(name: str) -> bool:
    """Whether people call a method, and not Lightning."""
    return not re.search(LIGHTNINGS, name)


@functools.cache
def _definition(root: Path, path: str) -> tuple[Path, ast.ClassDef | ast.FunctionDef]:
    module, _, name = path.rpartition(".")
    file = _file(root, module)
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return file, node
        if isinstance(node, ast.ImportFrom) and node.module and any(one.name == name for one in node.names):
            return _definition(root, f"{node.module}.{name}")
    raise ValueError(f"{path} isn't there")


@functools.cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def _file(root: Path, module: str) -> Path:
    start = root / PACKAGES[module.partition(".")[0]] / module.replace(".", "/")
    return start / "__init__.py" if start.is_dir() else start.with_suffix(".py")
