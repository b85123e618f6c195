"""What `predict` is asked: a file of questions, pictures with one question for all, or what comes in."""

from pathlib import Path

from lightning_vlm.data.datamodule import VLMDataModule
from lightning_vlm.data.read.picture_files import PictureFiles, has_only_pictures
from lightning_vlm.data.read.stream import STDIN
from lightning_vlm.errors import UserError


def ask(data: VLMDataModule, prompt: str | None, processes: int = 1) -> None:
    """Let a data module answer pictures, if `data.predict` names some.

    Pictures that can't be opened are skipped then, whatever `data.on_bad_sample` says of data files; and so
    is what can't be read on standard input, which `-` names.

    Args:
        data: Its source for prediction is replaced before it is opened.
        prompt: The question about each picture.
        processes: How many there are.

    Raises:
        UserError: Pictures without a question, or a question without pictures.
    """
    given = data.given["predict"]
    is_path = isinstance(given, str | Path)
    if str(given) == STDIN:
        if processes > 1:
            raise UserError("data.predict: one process reads standard input; set trainer.devices to 1")
        data.given["predict"] = data.splits.stream(prompt)
        data.num_workers = 0
        data.on_bad_sample = "skip"
        return
    if prompt is None:
        if is_path and has_only_pictures(str(given)):
            raise UserError(
                f"data.predict: found pictures in {given}, and no question about them; add --prompt 'What is "
                "this?'"
            )
        return
    if not is_path:
        raise UserError(
            "prompt: it asks about pictures; name one or their folder with --data.predict photos/"
        )
    path = Path(str(given))
    if path.is_file() and not has_only_pictures(str(path)):
        raise UserError(f"prompt: {given} has questions of its own; leave --prompt out, or name pictures")
    data.given["predict"] = PictureFiles(str(given), prompt)
    data.on_bad_sample = "skip"
