"""Draws the pictures of `docs/` from real short runs on a CPU, in a real browser.

    python -m tools.docs_pictures               # all of them, about ten minutes on two cores
    python -m tools.docs_pictures gradnorm      # some of them

They are pictures of the pages that a run writes, as a person sees them; what a page shows
besides is left out.
"""

import base64
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import PIL.Image

from tests.support.chromium import Browser
from tools import docs_runs as runs
from tools import docs_vlm_runs as vlm_runs
from tools.docs_scripts import CHARTS, PREVIEW, PROGRESS, README

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
MOST_BYTES = 80_000
"""Of a picture; that of the README may have twice as many."""
WIDTH = 860
"""Of a picture, in pixels."""


class Studio:
    """A browser that takes pictures of pages.

    Args:
        folder: For its own files.
        width: Of the window, in pixels.
    """

    def __init__(self, folder: Path, width: int = WIDTH) -> None:
        self.browser = Browser(folder, width, 1200)

    def open(self, page: Path, script: str = "") -> None:
        """Go to a page, and run a script on it."""
        self.browser.open(page.absolute().as_uri())
        while not self.browser.run("document.readyState == 'complete' && location.protocol == 'file:'"):
            time.sleep(0.05)
        if script:
            self.browser.run(f"{{{script}}}")

    def shot(self, most_height: int = 900) -> bytes:
        """What the page shows, as a PNG."""
        height = self.browser.run("Math.ceil(document.body.getBoundingClientRect().height)")
        width = self.browser.run("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, most_height), "scale": 1}
        taken = self.browser.ask(
            "Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True
        )
        return base64.b64decode(taken["data"])

    def take(self, name: str, most_height: int = 900) -> None:
        """Write what the page shows."""
        save(name, self.shot(most_height))

    def charts(self, name: str, page: Path, *titles: str, legend: bool = False) -> None:
        """Write some charts of a report."""
        self.open(page, CHARTS % (list(titles), "true" if legend else "false"))
        self.take(name)


def save(name: str, png: bytes, most_bytes: int = MOST_BYTES) -> None:
    """Write a picture with a palette of as many colours as fit.

    Args:
        name: Of the file.
        png: The picture.
        most_bytes: The file is smaller than this.
    """
    picture = PIL.Image.open(io.BytesIO(png)).convert("RGB")
    for colours in (256, 128, 64, 32, 16):
        packed = io.BytesIO()
        picture.quantize(colours, dither=PIL.Image.Dither.NONE).save(packed, "PNG", optimize=True)
        if packed.tell() < most_bytes:
            break
    assert packed.tell() < most_bytes, f"{name}: {packed.tell():,} bytes"
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.png").write_bytes(packed.getvalue())
    print(f"{name}.png  {picture.width}×{picture.height}  {packed.tell():,} bytes, {colours} colours")


def stacked(above: bytes, below: bytes) -> bytes:
    """Two pictures of one width, one below the other."""
    first, second = (PIL.Image.open(io.BytesIO(png)).convert("RGB") for png in (above, below))
    whole = PIL.Image.new("RGB", (first.width, first.height + second.height))
    whole.paste(first, (0, 0))
    whole.paste(second, (0, first.height))
    file = io.BytesIO()
    whole.save(file, "PNG")
    return file.getvalue()


# One picture each


def staged_unfreezing(studio: Studio, folder: Path) -> None:
    """Learning rates of what trains, with the stages as bands."""
    page = runs.digits(folder)
    studio.charts("staged_unfreezing", page, "Learning rate", legend=True)


def gradient_monitor(studio: Studio, folder: Path) -> None:
    """Norms of gradients and the size of updates, group by group."""
    titles = "Norm of the gradient", "Update of the weights, ‖Δw‖/‖w‖"
    studio.charts("gradient_monitor", runs.digits(folder), *titles)


def run_report(studio: Studio, folder: Path) -> None:
    """The page's beginning."""
    studio.open(runs.digits(folder), "document.body.style.maxWidth = '800px'")
    studio.take("run_report", most_height=1000)


def early_stop_checkpoint(studio: Studio, folder: Path) -> None:
    """A loss that rises again: the best checkpoint, and the end."""
    studio.charts("early_stop_checkpoint", vlm_runs.overfitted(folder), "Loss", legend=True)


def nonfinite_guard(studio: Studio, folder: Path) -> None:
    """The same run with and without the guard."""
    save("nonfinite_guard", runs.spoiled(folder))


def gradnorm(studio: Studio, folder: Path) -> None:
    """Weights of three tasks, and the norms that they make alike."""
    titles = "Weight of each task", "Norm of each task's weighted gradient"
    studio.charts("gradnorm", runs.balanced(folder), *titles)


def adaptive_lora_rank(studio: Studio, folder: Path) -> None:
    """The rank of each layer, from step to step."""
    script = """
      const heading = [...document.querySelectorAll('h2')].find(one => one.textContent.includes('ank'));
      document.body.replaceChildren(heading, heading.nextElementSibling);
      document.body.style = 'margin: 0; padding: 4px 14px 10px; max-width: none';
    """
    studio.open(vlm_runs.drawn(folder), script)
    studio.take("adaptive_lora_rank")


def throughput_monitor(studio: Studio, folder: Path) -> None:
    """Speed, and what the time goes to."""
    titles = "Throughput", "Waiting for data, padding, utilisation"
    studio.charts("throughput_monitor", vlm_runs.drawn(folder), *titles)


def token_weight_schedule(studio: Studio, folder: Path) -> None:
    """The weights in force."""
    studio.charts("token_weight_schedule", vlm_runs.drawn(folder), "Weight of each kind of token")


def scheduled_sampling(studio: Studio, folder: Path) -> None:
    """Answers, and what the model reads in their place."""
    studio.open(vlm_runs.sampled(folder))
    studio.take("scheduled_sampling")


def visual_gain_weights(studio: Studio, folder: Path) -> None:
    """Which words need the picture, of a preview."""
    script = """
      const sections = [...document.querySelectorAll('section')];
      const legend = document.querySelector('.legend .how:last-child');
      const main = document.querySelector('main');
      main.replaceChildren(legend, ...sections.slice(1));
      main.style.padding = '12px 14px';
      const small = 'figure { width: 130px !important } section { margin: 10px 0 !important }';
      document.head.append(Object.assign(document.createElement('style'), {textContent: small}));
    """
    studio.open(vlm_runs.gains(folder), script)
    studio.take("visual_gain_weights")


def prediction_table(studio: Studio, folder: Path) -> None:
    """Two samples of the page, after some of the validations."""
    script = """
      const main = document.querySelector('main');
      const found = [...document.querySelectorAll('section')].filter(
        one => one.querySelector('.task').textContent == 'grounding'
      );
      for (const section of found) {
        const cards = [...section.querySelectorAll('.card')];
        const kept = [0, 1, Math.ceil(cards.length / 2), cards.length - 1];
        cards.forEach((card, place) => kept.includes(place) || card.remove());
      }
      main.replaceChildren(document.querySelector('.legend'), ...found.slice(2, 4));
      main.style.padding = '12px 14px';
      const style = '.card { flex: 0 0 184px } section { margin: 10px 0 0 !important }';
      document.head.append(Object.assign(document.createElement('style'), {textContent: style}));
    """
    studio.open(vlm_runs.grounded(folder), script)
    studio.take("prediction_table")


def answer_writer(studio: Studio, folder: Path) -> None:
    """The page of answers."""
    script = """
      const main = document.querySelector('main');
      const sections = [...document.querySelectorAll('section')].slice(0, 4);
      const grid = Object.assign(document.createElement('div'), {className: 'grid'});
      grid.append(...sections);
      main.replaceChildren(document.querySelector('.legend'), grid);
      main.style.padding = '4px 14px 12px';
      const style = '.card { flex: 0 0 170px } section { margin: 0 !important; padding: 10px 14px }' +
        '.grid { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; margin-top: 10px }';
      document.head.append(Object.assign(document.createElement('style'), {textContent: style}));
    """
    studio.open(vlm_runs.answers(folder), script)
    studio.take("answer_writer")


def readme(studio: Studio, folder: Path) -> None:
    """What will be learned, and how it is learned."""
    wide = Studio(folder / "wide", 900)
    with wide.browser:
        wide.open(vlm_runs.chat(folder), README + PREVIEW)
        above = wide.shot()
        wide.open(vlm_runs.grounded(folder), README + PROGRESS)
        below = wide.shot()
    save("readme", stacked(above, below), 2 * MOST_BYTES - 10_000)


PICTURES: dict[str, Callable[[Studio, Path], None]] = {
    one.__name__: one
    for one in (
        staged_unfreezing,
        gradient_monitor,
        run_report,
        early_stop_checkpoint,
        nonfinite_guard,
        gradnorm,
        adaptive_lora_rank,
        throughput_monitor,
        token_weight_schedule,
        scheduled_sampling,
        visual_gain_weights,
        prediction_table,
        answer_writer,
        readme,
    )
}


def main(names: list[str]) -> None:
    """Draw the pictures of these names, or all."""
    unknown = set(names) - set(PICTURES)
    if unknown:
        sys.exit(f"no picture {', '.join(sorted(unknown))}; expected {', '.join(PICTURES)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        studio = Studio(folder / "browser")
        with studio.browser:
            for name in names or PICTURES:
                PICTURES[name](studio, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
