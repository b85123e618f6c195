"""`lightning-vlm compare`: models side by side, on the same samples."""

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_vlm_callbacks.whole_files import write_whole

from lightning_vlm.callbacks.answer_file import AnswerFile
from lightning_vlm.callbacks.answer_rows import answer_row
from lightning_vlm.compare import page, terminal
from lightning_vlm.compare.answered import AnswerSet
from lightning_vlm.compare.answering import Loading, answers_of, facts_of, loaded
from lightning_vlm.compare.answers_file import LOSSES, answers_in, answers_to
from lightning_vlm.compare.as_json import as_json
from lightning_vlm.compare.comparison import Comparison, Model, compare
from lightning_vlm.compare.entrants import Entrant, read_entrants
from lightning_vlm.compare.sets import SampleSet, open_sets
from lightning_vlm.compare.settings import Settings, read_settings
from lightning_vlm.data.system_prompts import system_prompts_of
from lightning_vlm.errors import UserError
from lightning_vlm.metrics.score_choice import ScoreChoice
from lightning_vlm.models.loading.quantize import Quantization
from lightning_vlm.outputs.writable import require_writable
from lightning_vlm.parser import Parser
from lightning_vlm.terminal import print_line, short_path, visible


def run(words: Sequence[str]) -> None:
    """Run the command.

    Args:
        words: What stands after `lightning-vlm compare`.

    Raises:
        UserError: A user error.
    """
    given = parser().parse_args(list(words))
    for name, least in (("samples", 1), ("changed", 0), ("max_new_tokens", 1), ("batch_size", 1)):
        value = getattr(given, name)
        if value is not None and value < least:
            raise UserError(f"--{name}: found {value}; expected at least {least}")
    if given.quantized is not None:
        Quantization(given.quantized)  # refuses an unknown method
    _check_can_write(given)
    if given.data and not given.models and not given.ckpt_path:
        raise UserError(
            "compare: found no model before --data; write lightning-vlm compare MODEL ... --data FILE"
        )
    entrants = read_entrants([*(given.models or ()), *(given.ckpt_path or ())], given.quantized)
    settings = _settings(given, entrants)
    choice = ScoreChoice(settings.scores)
    sets = _sets(given, entrants, settings)
    loading = Loading(given.name_or_path, given.trust_remote_code, given.family, given.batch_size)
    models = []
    for number, entrant in enumerate(entrants, 1):
        is_file = Path(entrant.path).exists()
        where = short_path(entrant.path) if is_file else entrant.path
        print_line(f"{number} of {len(entrants)}", visible(f"{entrant.label} ({where})"))
        models.append(_answered(entrant, sets, settings, loading, given.common))
        if given.answers is not None and entrant.kind != "answers":
            _keep(models[-1], Path(given.answers), choice)
    _show(compare(models, sets, choice, given.common), given)


def _settings(given: Any, entrants: Sequence[Entrant]) -> Settings:
    checkpoints = [one.checkpoint for one in entrants if one.checkpoint is not None]
    configs = [one.config for one in checkpoints if one.config is not None]
    config = Path(given.config) if given.config is not None else configs[0] if configs else None
    settings = read_settings(config)
    prompts = system_prompts_of(checkpoints[0].run) if checkpoints and config is None else {}
    if prompts:
        settings = settings._replace(data={"system_prompts": prompts})
    if given.image_root is not None:
        settings = settings._replace(data={**settings.data, "image_root": given.image_root})
    if given.scores:
        settings = settings._replace(scores=list(given.scores))
    if given.max_new_tokens is not None:
        generation = {**settings.generation, "max_new_tokens": given.max_new_tokens}
        settings = settings._replace(generation=generation)
    if checkpoints:
        settings = settings._replace(token_weights=checkpoints[0].arguments.get("token_weights"))
    return settings


def _sets(given: Any, entrants: Sequence[Entrant], settings: Settings) -> list[SampleSet]:
    if not given.data and all(one.kind == "answers" for one in entrants):
        return [SampleSet("answers", "the files of answers", None)]
    return open_sets(given.data or (), settings, given.samples)


def _answered(
    entrant: Entrant, sets: Sequence[SampleSet], settings: Settings, loading: Loading, only_common: bool
) -> Model:
    if entrant.kind == "answers":
        answers = answers_in(entrant)
        if sets[0].source is None:
            return Model(entrant, None, [AnswerSet(answers)])
        return Model(entrant, None, [answers_to(entrant, answers, one, only_common) for one in sets])
    with loaded(entrant, settings, loading) as module:
        found = answers_of(module, entrant, sets, settings, loading)
        facts = facts_of(module, entrant)
        module.unload_model()
    gc.collect()  # the next one needs the memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Model(entrant, facts, found)


def _keep(model: Model, folder: Path, choice: ScoreChoice) -> None:
    """Write the answers of a model, so that they can be compared again without it."""
    file = AnswerFile(folder / f"{model.label.replace('/', '-')}.jsonl")
    file.check()
    file.set_aside()
    file.open()
    for one in model.sets:
        answers = one.answers.values()
        file.write({**answer_row(answer.prediction, choice), LOSSES: answer.loss} for answer in answers)
    file.close()
    print_line("answers", short_path(file.path))


def _check_can_write(given: Any) -> None:
    """Refuse files that can't be written before hours are spent on answers."""
    for name in ("out", "json"):
        value = getattr(given, name)
        if value is None:
            continue
        path = Path(value)
        if path.is_dir():
            raise UserError(f"--{name}: found the folder {path}; expected the name of a file")
        require_writable(f"--{name}", path)
        path.parent.mkdir(parents=True, exist_ok=True)


def _show(comparison: Comparison, given: Any) -> None:
    terminal.show(comparison)
    page.save(comparison, Path(given.out), given.changed, given.image_root)
    print_line("page", short_path(given.out))
    if given.json is not None:
        text = json.dumps(as_json(comparison, given.changed), indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(Path(given.json), text + "\n")
        print_line("json", short_path(given.json))


def parser() -> Parser:
    """The command's options."""
    options = Parser(
        prog="lightning-vlm compare",
        description="Compare models on the same samples: scores with intervals, gain, forgetting, changes.",
    )
    add = options.add_argument
    add(
        "models",
        nargs="*",
        metavar="MODEL",
        help="Two or more, the first is what others are compared with: checkpoints, exported folders, names "
        "on the hub, files of answers that predict wrote, or base, the base of the first checkpoint; also as "
        "NAME=MODEL. One checkpoint alone is compared with its base.",
    )
    add("--ckpt_path", nargs="*", metavar="FILE", help="More checkpoints.")
    add(
        "--data",
        nargs="*",
        metavar="[NAME=]FILE",
        help="Sets of samples, or splits of the config (val, test); without: the validation data of the run. "
        "One called general shows what was forgotten.",
    )
    add("--config", metavar="FILE", help="The config that says how data is read, answered and scored.")
    add("--samples", type=int, metavar="N", help="At most so many of each set, evenly spread.")
    add("--scores", nargs="*", metavar="SCORE", help="In place of model.scores, such as anls cer.")
    add("--quantized", metavar="METHOD", help="nf4 or int8: compare each model with itself quantised, too.")
    add("--max_new_tokens", type=int, metavar="N", help="The most tokens of an answer.")
    add("--batch_size", type=int, metavar="N", help="Samples that are answered at once.")
    add("--common", action="store_true", help="Compare what all files have answered, though it isn't all.")
    add("--answers", metavar="DIR", help="Keep the answers there, to be compared again in place of models.")
    add("--out", default="compare.html", metavar="FILE", help="The page.")
    add("--json", metavar="FILE", help="The numbers, for programs.")
    add("--changed", type=int, default=20, metavar="N", help="How many samples won, and lost, to show.")
    add("--image_root", metavar="DIR", help="The folder that paths of pictures begin at.")
    add("--name_or_path", metavar="MODEL", help="Where the base of checkpoints is now, if it has moved.")
    add("--trust_remote_code", action="store_true", help="Run Python code that comes with a model.")
    add("--family", metavar="CLASS", help="As model.family in the config that a model was trained with.")
    return options
