"""The config as a text, with the reason of each line beside it."""

import textwrap
from collections.abc import Iterator
from typing import Any

from lightning_vlm.counted import counted
from lightning_vlm.models.plan.plan import expand
from lightning_vlm.models.shipped import SHIPPED
from lightning_vlm.planning import Choice
from lightning_vlm.start.files import File
from lightning_vlm.start.findings import Findings, Opened
from lightning_vlm.start.held import share
from lightning_vlm.start.lines import WIDTH, Line, aligned, amount, flow, number, scalar
from lightning_vlm.start.scores import scores_of
from lightning_vlm.start.settings import answer_room, epochs_for, length_limit, samples_per_step

_SPREAD = 2.0
"""Where the longest sample has so many times the tokens of the middle one, batches go by length."""
_MANY = 500
_UNMEASURED_ANSWER = 64
"""`max_new_tokens` where nothing could be measured."""


def config_text(found: Findings) -> str:
    """The config.

    Args:
        found: What was found out.

    Returns:
        YAML with comments; the same for the same findings.
    """
    blocks = [
        ("model:", list(_model(found))),
        ("data:", list(_data(found))),
        ("trainer:", list(_trainer(found))),
    ]
    text = "".join(f"# {line}\n" for line in _head(found))
    for name, lines in blocks:
        text += f"{name}\n{aligned(lines)}"
    return text + aligned([_report(found)])


def sizes(found: Findings) -> dict[str, str]:
    """What each of val and test is given: a share; nothing where there are files, or too little."""
    reads_test = "test" not in found.splits and "val" not in found.splits
    part = share(found.survey.size, reads_test)
    held: dict[str, str] = {}
    if part is not None and "val" not in found.splits:
        held["val"] = part
        if reads_test:
            held["test"] = part
    return held


def left_to_learn(found: Findings) -> int:
    """How many samples are left for training."""
    held = sum(float(part.rstrip("%")) for part in sizes(found).values()) / 100
    return max(1, round(found.survey.size * (1 - held)))


def _head(found: Findings) -> Iterator[str]:
    tasks = ", ".join(f"{name} ({count:,})" for name, count in list(found.survey.tasks.items())[:6])
    yield from textwrap.wrap(f"Written by: {found.command}", WIDTH, break_on_hyphens=False)
    samples = counted(found.survey.size, "sample")
    yield from textwrap.wrap(f"{samples}, {found.form}. Tasks: {tasks}.", WIDTH, break_on_hyphens=False)
    for command in ("lint", "preview", "plan", "fit"):
        yield f"  lightning-vlm {command} --config {found.out}"


def _model(found: Findings) -> Iterator[Line]:
    yield Line(f"name_or_path: {scalar(found.model)}", found.model_why)
    choice = found.choice
    if choice is None:
        yield Line("adapt: lora", "the usual choice; `plan` says what fits, once the model can be reached")
        yield Line(_optimizer(2e-4), "where LoRA usually begins")
    else:
        plan = expand(choice.adapt)
        what = ", ".join(f"{part} {_method(how)}" for part, how in plan.items())
        yield Line(f"adapt: {scalar(choice.adapt)}", f"{what}; all else is frozen")
        if choice.quantization:
            yield Line(f"quantization: {scalar(choice.quantization)}", "in 16 bits it would not fit")
        if choice.recompute:
            why = "without it the batch would not fit; costs about a third more time"
            yield Line("gradient_checkpointing: true", why)
        yield _learning_rate(found.model, choice)
    yield Line("schedule: {class_path: Cosine, init_args: {warmup: 0.03}}", "warm-up for 3% of the steps")
    yield Line("clip: 1.0", "the most that the norm of a gradient may be")
    yield _generation(found)
    chosen = {task: scores_of(task, facts) for task, facts in found.survey.facts.items()}
    if len(set(chosen.values())) == 1:
        (one,) = set(chosen.values())
        yield Line(f"scores: {flow(list(one.names))}", one.why)
        return
    yield Line("scores:", "by task; docs/scores.md has all of them")
    for task, one in chosen.items():
        yield Line(f"  {scalar(task)}: {flow(list(one.names))}", one.why)


def _learning_rate(model: str, choice: Choice) -> Line:
    if model in SHIPPED:
        return Line(_optimizer(2e-3), "so small a model takes large steps")  # as in configs/quickstart.yaml
    method = choice.adapt if isinstance(choice.adapt, str) else "such a plan"
    why = f"where {method} usually begins, scaled to {_step(choice)} samples a step"
    return Line(_optimizer(choice.learning_rate), why)


def _step(choice: Choice) -> int:
    return choice.batch_size * choice.accumulate


def _method(how: Any) -> str:
    if isinstance(how, str):
        return how
    (name, settings), *_ = how.items()
    return f"{name} ({', '.join(f'{key} {value}' for key, value in settings.items())})"


def _optimizer(rate: float) -> str:
    return f"optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: {number(rate)}}}}}"


def _generation(found: Findings) -> Line:
    measured = found.tokens
    if measured is None:
        why = "a guess, as the model's tokenizer can't be reached; make it as long as the longest answer"
        return Line(f"generation: {{max_new_tokens: {_UNMEASURED_ANSWER}}}", why)
    longest = max(measured.answers)
    why = f"the longest of the answers in {len(measured.answers):,} samples has {longest:,} tokens"
    return Line(f"generation: {{max_new_tokens: {answer_room(measured.answers)}}}", why)


def _data(found: Findings) -> Iterator[Line]:
    train = found.splits["train"]
    roots = {root for opened in found.splits.values() for root in opened.named_roots}
    inside = len(roots) > 1
    files = [file for opened in found.splits.values() for file in opened.files]
    of_kinds = {file.kind for file in files}
    samples = counted(found.survey.size, "sample")
    yield Line(f"train: {_given(train, found, inside)}", f"{samples}: {found.form}")
    yield from _evaluation(found, inside)
    (root,) = roots if not inside else (None,)
    if root is not None:
        yield Line(f"image_root: {scalar(root)}", "where the paths of its pictures begin")
    if found.columns and not inside:
        yield Line(f"columns: {flow(dict(found.columns))}", "our names of keys: theirs")
    if found.asks_for_addresses and not inside:
        yield Line("allow_urls: true", "pictures are fetched from the addresses in the data")
    if found.box_format is not None and not inside and of_kinds != {"COCO"}:
        why = found.unit.why if found.unit is not None else "as you said"
        yield Line(f"box_format: {scalar(found.box_format)}", why)
    if found.must_choose:
        assert found.unit is not None
        example = (found.unit.fits or ("pixels",))[0]
        yield Line(
            f"# box_format: {example}",
            f"CHOOSE: nothing says what the numbers of boxes are; {found.unit.why}",
        )
    yield from _batches(found)
    if found.faults:
        why = f"without it `fit` stops: {len(found.faults):,} samples can't be read; `lint` lists them"
        yield Line("# on_bad_sample: skip", why)


def _evaluation(found: Findings, inside: bool) -> Iterator[Line]:
    held = sizes(found)
    for split in ("val", "test"):
        opened = found.splits.get(split)
        if opened is not None:
            where = "found beside it" if len(opened.files) == 1 else "found there"
            yield Line(f"{split}: {_given(opened, found, inside)}", where)
        elif split in held:
            use = "to choose the best weights" if split == "val" else "for scores that nothing was chosen by"
            about = max(1, round(found.survey.size * float(held[split].rstrip("%")) / 100))
            why = f"about {counted(about, 'sample')}, held out {use}; whole pictures"
            yield Line(f"{split}: {held[split]}", why)


def _given(opened: Opened, found: Findings, inside: bool) -> str:
    """What a split is given: a path if that says all, else a class with its arguments."""
    if len(opened.files) == 1 and not inside and _is_plain(opened.files[0]):
        return scalar(opened.files[0].path)
    sources = [
        _source(file, found, root, inside)
        for file, root in zip(opened.files, opened.named_roots, strict=True)
    ]
    if len(sources) == 1:
        return flow(sources[0])
    return flow({"class_path": "Chain", "init_args": {"sources": sources}})


def _is_plain(file: File) -> bool:
    """Whether `read` opens the right thing by the path alone."""
    return file.split is None or file.split in ("train", "validation", "test")


def _source(file: File, found: Findings, root: str | None, inside: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {"path": file.path}
    if file.split is not None:
        arguments["split"] = file.split
    if root is not None:
        arguments["image_root"] = root
    if file.kind != "COCO":
        if found.columns:
            arguments["columns"] = dict(found.columns)
        if found.asks_for_addresses:
            arguments["allow_urls"] = True
        if found.box_format is not None:
            arguments["box_format"] = found.box_format
    return {"class_path": file.kind, "init_args": arguments}


def _batches(found: Findings) -> Iterator[Line]:
    choice, measured = found.choice, found.tokens
    if choice is None:
        yield Line("batch_size: 1", "the least; `plan` says what fits, once the model can be reached")
    else:
        what = "samples at a time" if choice.accumulate > 1 else "all samples of a step at a time"
        yield Line(f"batch_size: {choice.batch_size}", f"{what}: about {amount(choice.gib)} at the peak")
    if measured is None:
        return
    longest, limit = max(measured.lengths), length_limit(measured.lengths, measured.context)
    why = f"the longest of {len(measured.lengths):,} samples has {longest:,} tokens, pictures included"
    yield Line(f"max_length: {limit}", why)
    middle = sorted(measured.lengths)[len(measured.lengths) // 2]
    if found.survey.size >= _MANY and longest > _SPREAD * middle:
        yield Line("batching: length", f"lengths differ much ({middle:,} tokens in the middle): less padding")
    workers = 2 if found.survey.size >= _MANY else 0
    why = "processes that prepare batches" if workers else "so little data needs no further process"
    yield Line(f"num_workers: {workers}", why)


def _trainer(found: Findings) -> Iterator[Line]:
    learn = left_to_learn(found)
    epochs = epochs_for(learn)
    has_val = "val" in found.splits or "val" in sizes(found)
    choice = found.choice
    samples = _step(choice) if choice is not None else samples_per_step(learn)
    steps = max(1, learn // samples)
    in_all = counted(steps, "step")
    yield Line(f"max_epochs: {epochs.number}", epochs.why)
    accumulate = choice.accumulate if choice is not None else samples
    of = choice.batch_size if choice is not None else 1
    if accumulate > 1:
        yield Line(f"accumulate_grad_batches: {accumulate}", f"{accumulate} × {of} samples make a step")
    if choice is not None:
        yield Line(f"precision: {choice.precision}", _precision(choice.precision))
    if has_val and epochs.number == 1:
        yield Line("val_check_interval: 0.2", "five validations on the way")
    yield Line(f"log_every_n_steps: {max(1, min(10, steps // 2))}", f"an epoch has about {in_all}")
    yield Line("logger:")
    name = found.out.rsplit("/", 1)[-1].removesuffix(".yaml")
    yield Line("  class_path: CSVLogger", "or Weights & Biases, in its place:")
    yield Line(f"  init_args: {flow({'save_dir': 'runs', 'name': name})}", "")
    yield Line(f"  # {flow({'class_path': 'WandbLogger', 'init_args': {'project': name}})}")
    yield Line("callbacks:")
    keep = "- class_path: EarlyStopCheckpoint"
    if has_val:
        yield Line(f"  {keep}", "keeps the weights with the lowest val/loss")
        stop = flow({"monitor": "val/loss", "patience": epochs.patience})
        yield Line(f"    init_args: {stop}", f"stops after {epochs.patience} validations without a lower one")
    else:
        yield Line(f"  {keep}", "keeps the last weights; too little data to validate on")
    yield Line("  - class_path: NonFiniteGuard", "leaves out steps with NaN, and explains them")
    if has_val:
        yield Line("  - class_path: PredictionTable", "a page of answers over time, beside the log")


def _precision(precision: str) -> str:
    return {
        "bf16-mixed": "bfloat16 needs no loss scaling, unlike float16",
        "32-true": "without a GPU, float32 is the fastest",
    }.get(precision, "as the plan chose")


def _report(found: Findings) -> Line:
    if "val" in found.splits or "test" in found.splits or "test" in sizes(found):
        what = "test" if "test" in found.splits or "test" in sizes(found) else "validation"
        return Line("report: true", f"scores the {what} data before and after, and ends with a table")
    return Line("report: false", "there is nothing to score")
