"""The pages of the documentation, and how their fenced blocks are run.

Each page runs in its own temporary folder, its blocks from top to bottom, in this process and on the CPU.
The folder has a standard project (`page_project.py`): `my.yaml`, `train.jsonl`, `val.jsonl`,
`questions.jsonl`, `boxes.jsonl`, `pictures/`, `photos/`, `cat.jpg`, `street.jpg`, and `configs/` as the
repository has it. What a block's language means:

- `bash`: commands. `lightning-vlm` runs in this process; `CHECKPOINT`, and any other word that ends in
  `.ckpt` and is no file yet, is a real checkpoint of `my.yaml` after a step. `python FILE ...` runs a file of
  the page. `fit` takes two steps, on one process, without a progress bar; a config's steps of more than two
  batches become steps of two. `export` is parsed, and its folder gets the shipped model (tests/export runs
  it). Of `pip install` the extras are checked, of `make` the targets. Pipes, `>`, `&&`, `cd`, `export` and
  `PROGRAMS` work; any other program is to be marked.
- `yaml`: a config. `fit` runs with it, for two steps: alone where it names a model and data, else behind
  `my.yaml`.
- `python`: runs, with the names of the blocks before it.
- `json`: samples, of one line or of many lines each: each is read. Pictures that they name are made.
- `text`, `mermaid`: shown only. Lines `> ...` of a `text` block are typed into the command before it.

A model of the hub is replaced by `drawn-vlm` (and then the pixel limits of its config are left out, because
drawn-vlm sees all pictures in one size); the command is parsed with all the rest as written.

A comment before a block says what is different; several may stand before one:

    <!-- test: not run, REASON -->    nothing runs: commands and configs are parsed, Python is compiled
    <!-- test: file NAME -->          the block is saved as a file, and nothing else is done with it
    <!-- test: exit 2 -->             its commands end with this status
    <!-- test: printed -->            of a text block: the block before it printed each line (numbers aside;
                                      `...` stands for anything)
    <!-- test: as written -->         no word is added to its commands
    <!-- test: with WORDS -->         these words are added to its commands; of json, `--data.KEY VALUE`
    <!-- test: model FAMILY -->       from here on the tiny model of this family in place of drawn-vlm
    <!-- test: first
    COMMANDS
    -->                               commands that readers don't see, run before the block

A page that needs more has a test of its own, and is in `OWN_TESTS`.
"""

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]

OWN_TESTS = {
    "README.md": "tests/test_readme.py",
    "callbacks/README.md": "tests/test_readme.py",
    "docs/compare.md": "tests/compare/test_docs.py",
    "docs/first-model.md": "tests/test_first_model.py",
    "docs/formats.md": "tests/test_formats_docs.py",
    "docs/grounding-data.md": "tests/test_grounding_docs.py",
    "docs/own-model.md": "tests/test_own_model.py",
    "docs/predict.md": "tests/test_predict_docs.py",
    "docs/search-hyperparameters.md": "tests/track/test_search.py",
    "docs/stages.md": "tests/test_stages_docs.py",
    "docs/thinking-and-tools.md": "tests/module/test_thinking.py",
    "docs/video.md": "tests/test_video_docs.py",
}
"""The test that runs the blocks of a page, for the pages that this harness doesn't run."""

PROGRAMS = "cat cp echo find grep head ls mkdir mv printf rm sed sort tail wc".split()  # noqa: SIM905
"""Other programs that pages may run."""
SHOWN = ("text", "mermaid")
RUN = ("bash", "yaml", "python", "json")
KEYS = ("not run", "file", "exit", "printed", "as written", "with", "model", "first")
"""What a comment may begin with."""

_COMMENT = r"[ \t]*<!--.*?-->[ \t]*\n(?:[ \t]*\n)*"
_BLOCK = re.compile(
    rf"^(?P<comments>(?:{_COMMENT})*)(?P<indent>[ \t]*)```(?P<language>[^\n`]*)\n"
    r"(?P<text>.*?)^(?P=indent)```[ \t]*$",
    re.DOTALL | re.MULTILINE,
)
_DIRECTIVE = re.compile(r"<!--\s*test:\s*(.*?)\s*-->", re.DOTALL)


@dataclass
class Block:
    """A fenced block, with what comments before it say."""

    page: str
    line: int
    language: str
    text: str
    says: dict[str, str] = field(default_factory=dict)
    """The rest of each comment, by the key it begins with."""
    typed: str = ""
    """What a reader types while it runs."""

    @property
    def place(self) -> str:
        """Page and line."""
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """All pages, by their path in the repository."""
    found = ["README.md", "CONTRIBUTING.md", "callbacks/README.md"]
    found += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]
    return found


def blocks(page: str, text: str | None = None) -> list[Block]:
    """The blocks of a page, in their order.

    Args:
        page: Its path in the repository.
        text: What it says; None reads it.
    """
    if text is None:
        text = (ROOT / page).read_text("utf-8")
    found: list[Block] = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("indent")) + 1
        block = Block(page, line, match["language"].strip(), textwrap.dedent(match["text"]))
        for said in _DIRECTIVE.findall(match["comments"]):
            key = next((key for key in KEYS if re.match(rf"{key}\b", said)), None)
            assert key, f"{block.place}: found <!-- test: {said} -->; it begins with one of {', '.join(KEYS)}"
            block.says[key] = said[len(key) :].strip(" ,\n")
        if block.language == "text" and found and found[-1].language == "bash":
            lines = [one.removeprefix("> ") for one in block.text.splitlines() if one.startswith("> ")]
            found[-1].typed = "".join(f"{one}\n" for one in lines)
        found.append(block)
    return found


def unmarked_directives(text: str) -> list[str]:
    """Comments for tests that stand before no block.

    >>> unmarked_directives("<!-- test: exit 2 -->\\n\\nWords.\\n")
    ['exit 2']
    """
    used = [said for match in _BLOCK.finditer(text) for said in _DIRECTIVE.findall(match["comments"])]
    return [said for said in _DIRECTIVE.findall(text) if said not in used]
