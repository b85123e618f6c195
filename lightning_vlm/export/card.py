"""The model card of an exported folder: what it is, what made it, its limits, and how to serve it."""

import importlib.metadata
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import ModelCard, ModelCardData

from lightning_vlm.counted import counted
from lightning_vlm.export import servers
from lightning_vlm.export.history import History
from lightning_vlm.export.license import license_of
from lightning_vlm.export.record import public_name
from lightning_vlm.export.snippet import Loading, loading_lines
from lightning_vlm.export.trained import Trained
from lightning_vlm.models.shipped import SHIPPED

FILE = "README.md"
"""The card's file."""
_VERSIONS = ("lightning-vlm", "torch", "transformers", "peft", "lightning", "huggingface_hub")
_TITLES = {True: "A fine-tuned vision-language model", False: "Adapters for a vision-language model"}
_NO_SPEED = "Nothing is known of the speed of training beside the checkpoint. Answers were not timed."
_SHOWN_SCORES = 40
_LIMITS = ("pictures", "videos", "boxes", "masks", "system prompts", "quantised in training")
"""Rows of an export's table that someone who serves the model must know."""


class Card(NamedTuple):
    """What a card is written from.

    Args:
        trained: The trained model.
        history: Of its training.
        loading: How the folder is loaded.
        rows: What the export says of itself: a few words, and a figure.
        samples: How many it was proved on.
        off: How far logits were off, as a share of the largest.
        architecture: The class of the model.
        tower: The type of its vision encoder.
        adapters: The config of PEFT's adapters; None for a whole model.
    """

    trained: Trained
    history: History
    loading: Loading
    rows: Sequence[tuple[str, str]]
    samples: int
    off: float
    architecture: str
    tower: str = ""
    adapters: dict[str, Any] | None = None

    @property
    def base(self) -> str | None:
        """The base model's name for others."""
        return public_name(self.trained.module.name_or_path)

    @property
    def shown_base(self) -> str:
        """The same for readers: of a folder its last part, which says nothing of the machine."""
        given = self.trained.module.name_or_path
        return self.base or f"a local folder named {Path(given).name}"

    @property
    def is_whole(self) -> bool:
        """Whether the folder has the whole model."""
        return self.loading.base is None


def write_card(card: Card, folder: Path) -> str:
    """Write the card into an exported folder.

    Args:
        card: What it is written from.
        folder: The folder.

    Returns:
        What to print about it.
    """
    license_of_base = license_of(card.trained.module.name_or_path)
    text = "\n\n".join(
        [
            f"---\n{_metadata(card, license_of_base).to_yaml()}\n---",
            f"# {_TITLES[card.is_whole]}\n\n{_summary(card)}",
            f"## Use\n\n{_use(card)}",
            f"## Serve\n\n{_serve(card)}",
            f"## Training data\n\n{_data(card)}",
            f"## Scores\n\n{_scores(card)}",
            f"## Speed\n\n{card.history.speed or _NO_SPEED}",
            f"## Known limits\n\n{_limits(card)}",
            f"## Training\n\n{_training(card)}",
            f"## Base model and licence\n\n{_base(card, license_of_base)}",
            f"## Versions\n\n{_versions()}",
        ]
    )
    ModelCard(f"{text}\n").save(folder / FILE)
    return f"{FILE}: data, scores, limits, and how to serve it"


def _metadata(card: Card, license_of_base: dict[str, str]) -> ModelCardData:
    hub_name = card.base if card.base not in SHIPPED else None
    more: dict[str, Any] = {**license_of_base}
    if hub_name is not None:
        more["base_model_relation"] = "finetune" if card.is_whole else "adapter"
    return ModelCardData(
        base_model=hub_name,
        datasets=card.history.datasets or None,
        library_name="transformers" if card.is_whole else "peft",
        pipeline_tag="image-text-to-text",
        tags=["lightning-vlm", *_methods(card)],
        **more,
    )


def _methods(card: Card) -> list[str]:
    plan = card.trained.module.adapt
    methods = {next(iter(value)) if isinstance(value, dict) else str(value) for value in plan.values()}
    return sorted(methods - {"frozen"})


def _summary(card: Card) -> str:
    what = "with adapters merged into its weights" if card.is_whole else "as adapters alone, without the base"
    if card.is_whole and "lora" not in _methods(card) and "ia3" not in _methods(card):
        what = "as a whole"
    samples = counted(card.samples, "sample")
    steps = counted(card.history.steps, "optimizer step")
    return (
        f"{card.shown_base}, fine-tuned with lightning-vlm for {steps} "
        f"({', '.join(_methods(card))}), {what}. After it was written, it was loaded in a fresh process and "
        f"compared with the trained model on {samples}: logits off by {card.off:.1e} of the largest, the "
        "same answers, tokens, pictures and settings."
    )


def _use(card: Card) -> str:
    lines = loading_lines(Path("."), card.loading._replace(base=_loadable_base(card)))
    code = "\n".join(line for line in lines if not line.startswith("import lightning_vlm_callbacks"))
    return f"These lines, run in this folder, load it; that is what was proved.\n\n```python\n{code}\n```"


def _loadable_base(card: Card) -> str | None:
    """The base model as others load it; `BASE` where it has no public name."""
    if card.is_whole:
        return None
    return card.base if card.base and card.base not in SHIPPED else "BASE"


def _serve(card: Card) -> str:
    blocks = ["- **transformers**: tried, see above."]
    beside = card.loading.has_ours or card.trained.module.mask_head is not None
    if card.loading.has_ours:
        blocks.append("- **vLLM, llama.cpp, Ollama**: no; these adapters are layers of lightning-vlm itself.")
        return "\n".join(blocks)
    blocks += [_vllm(card)]
    if card.is_whole:
        blocks += [_llama(card), _ollama(card)]
    else:
        blocks.append("- **llama.cpp, Ollama**: not as adapters; export without `--adapter-only` first.")
    if beside:
        blocks.append("\nOther servers make no masks; the mask head runs in lightning-vlm only.")
    blocks.append(
        f"\nWhat servers name is from their own lists: {servers.VLLM_SOURCE}; {servers.LLAMA_SOURCE}; "
        f"{servers.OLLAMA_SOURCE}."
    )
    return "\n".join(blocks)


def _vllm(card: Card) -> str:
    not_taken = []
    rank = None
    if card.adapters is not None:
        rank = card.adapters.get("r")
        if card.adapters.get("modules_to_save"):
            not_taken.append("modules trained in full beside the adapters (modules_to_save)")
        if card.adapters.get("use_dora"):
            not_taken.append("DoRA")
        if card.adapters.get("peft_type") not in (None, "LORA"):
            not_taken.append(str(card.adapters["peft_type"]))
    found = servers.vllm(card.architecture)
    if not_taken:
        taken = " and ".join(not_taken)
        return f"- **vLLM**: no; its LoRA takes no {taken}. Export without `--adapter-only`."
    base = None if card.is_whole else _loadable_base(card)
    return _server("vLLM", found, servers.vllm_commands(base, rank, not_taken))


def _llama(card: Card) -> str:
    return _server("llama.cpp", servers.llama_cpp(card.architecture, card.tower), servers.llama_commands())


def _ollama(card: Card) -> str:
    found = servers.ollama(card.architecture, card.tower)
    return _server("Ollama", found, servers.ollama_commands(card.architecture))


def _server(name: str, found: servers.Support, commands: Sequence[str]) -> str:
    if found.state == servers.NO:
        return f"- **{name}**: no; {found.why}."
    state = "not tried" if found.state == servers.YES else "unknown, and not tried"
    code = "\n".join(f"  {line}" for line in commands)
    return f"- **{name}**: {state}; {found.why}.\n\n  ```bash\n{code}\n  ```\n"


def _data(card: Card) -> str:
    lines = [
        f"{card.trained.run.get('data.train', 'What it was trained on is not known: an older checkpoint')}."
    ]
    if card.history.samples:
        lines.append(
            _table(("task", "samples"), [(name, f"{n:,}") for name, n in card.history.samples.items()])
        )
    else:
        lines.append("Samples of each task were not counted.")
    if card.history.datasets:
        links = [f"[{name}](https://huggingface.co/datasets/{name})" for name in card.history.datasets]
        lines.append(f"From the hub: {', '.join(links)}.")
    lines.append("The fingerprint is of the texts and the names of pictures of some samples, evenly spaced.")
    return "\n\n".join(lines)


def _scores(card: Card) -> str:
    if not card.history.scores:
        return "None is known: the checkpoint and the files beside it have no validation."
    rows = [(f"`{name}`", f"{value:.4g}") for name, value in sorted(card.history.scores.items())]
    more = len(rows) - _SHOWN_SCORES
    note = f"\n\n{more} more are in the run's report." if more > 0 else ""
    return (
        "Of the last validation up to this checkpoint, on the run's own validation data (step "
        f"{card.history.scores_step:,}, counted from 0).\n\n"
        f"{_table(('score', 'value'), rows[:_SHOWN_SCORES])}{note}"
    )


def _limits(card: Card) -> str:
    lines = [f"- {name}: {figure}." for name, figure in card.rows if name in _LIMITS]
    if card.trained.pixels.by_detail:
        lines.append("- Servers don't shrink pictures by their detail: shrink them before they are sent.")
    lines += [
        "- Scores say nothing of data unlike the validation data. Safety and bias were not evaluated.",
        "- It was compared with the trained model in float32, not in other precisions, nor in servers.",
    ]
    return "\n".join(lines)


def _training(card: Card) -> str:
    if card.history.config is None:
        shown: Any = {key: value for key, value in card.trained.run.items() if value is not None}
        first = "No config lies beside the checkpoint; this is what the checkpoint says of its run."
    else:
        shown, first = card.history.config, "The config that trained it, without places on the machine:"
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=110).rstrip()
    return f"{first}\n\n```yaml\n{text}\n```"


def _base(card: Card, license_of_base: dict[str, str]) -> str:
    revision = card.trained.module.hparams["revision"]
    at = f" at revision {revision}" if revision else ""
    fingerprint = card.trained.saved.get("lightning_vlm", {}).get("base")
    weights = f" Its weights have the fingerprint {fingerprint}." if fingerprint else ""
    name = license_of_base.get("license_name") or license_of_base.get("license")
    where = (
        f"https://huggingface.co/{card.base}"
        if card.base and card.base not in SHIPPED
        else "where it came from"
    )
    said = f"Its licence is {name}, by its own card." if name else f"Its licence is unknown: look at {where}."
    return f"{card.shown_base}{at}.{weights} {said} A fine-tuned model is bound by it too."


def _versions() -> str:
    found = [("Python", platform.python_version())]
    for name in _VERSIONS:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return _table(("package", "version"), found)


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *_lines(rows)])


def _lines(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    for name, value in rows:
        yield f"| {name} | {value} |"
