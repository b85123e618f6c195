"""What is drawn of a record: charts, page and pictures."""

import itertools
import json
import math
from html.parser import HTMLParser

import pytest
from lightning_vlm_callbacks.run_report.charts import charts, frame, rank_map
from lightning_vlm_callbacks.run_report.draw import draw_report
from lightning_vlm_callbacks.run_report.history import Curve, read_history
from lightning_vlm_callbacks.run_report.record import Record

NASTY = "<script>alert('x')</script> & \"quoted\" ‖Δw‖ http://x.example/a.png"


def record_of(folder, metrics, events=()):
    """A record as a run would have written it: name -> step -> value."""
    record = Record(folder / "report.jsonl")
    record.add_event(0, "started", "the run started", {"run": "a"})
    steps = sorted({step for values in metrics.values() for step in values})
    for step in steps:
        record.add_metrics(step, {name: values[step] for name, values in metrics.items() if step in values})
    for step, kind, text, values in events:
        record.add_event(step, kind, text, values)
    record.close()
    return record.file


class Page(HTMLParser):
    """The elements of a page, the text in it, and whether each element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.outside = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.outside += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)


def page_of(file):
    draw_report(file)
    return Page(file.with_name("report.html").read_text("utf-8"))


def test_a_million_steps_stay_small():
    curve, sparse = Curve(), Curve()
    for step in range(1_000_000):
        curve.add(step, float(step))
        if step % 200_000 == 0:
            sparse.add(step, 1.0)
    points = curve.points()
    assert 1000 <= len(points) <= 2001
    assert len({after - before for (before, _), (after, _) in itertools.pairwise(points[:-1])}) == 1
    assert points[-1] == (999_999, 999_999.0)
    assert all(step == value for step, value in points)
    assert len(sparse.points()) == 5


def test_a_thinned_curve_can_be_resumed():
    curve = Curve(most=10)
    for step in range(100):
        curve.add(step, 0.0)
    for step in range(50, 100):
        curve.add(step, 1.0)
    points = curve.points()
    assert len(points) <= 11
    assert {value for step, value in points if step < 50} == {0.0}
    assert {value for step, value in points if step >= 50} == {1.0}


def test_every_metric_is_drawn_once_or_where_two_belong_together(tmp_path):
    names = [
        "train/loss", "val_loss", "train/loss_epoch", "train/loss/captions", "lr", "lr/head", "lr-AdamW",
        "gradients/head/norm", "gradients/all/norm", "gradients/all/clipped_norm", "gradients/head/zeros",
        "gradients/head/update_ratio", "gradnorm/weight/a", "gradnorm/rate/a", "gradnorm/weighted_norm/a",
        "gradnorm/norm/a", "gradnorm/cosine/a-b", "train/grad_norm", "token_weight/box", "tokens_per_sec",
        "train/accuracy", "val/accuracy", "data/epochs/a", "data/epochs/b", "temperature", "grad_norm",
        "staged_unfreezing/stage", "train/task_weight/a",
    ]  # fmt: skip
    found = charts(read_history(record_of(tmp_path, {name: {0: 1.0, 1: 2.0} for name in names})))
    titles = {chart.title: set(chart.curves) for chart in found}
    assert titles["Loss"] == {"train/loss", "val_loss", "train/loss_epoch"}
    assert titles["Loss by task or part"] == {"train/loss/captions"}
    assert titles["Learning rate"] == {"lr", "head"}
    assert titles["Norm of the gradient"] == {"head", "all", "train/grad_norm"}
    assert titles["Norm of all gradients before and after clipping"] == {"norm", "clipped_norm"}
    assert titles["Weight of each kind of token"] == {"box"}
    assert titles["Throughput"] == {"tokens_per_sec"}
    assert titles["accuracy"] == {"train/accuracy", "val/accuracy"}
    assert titles["data/epochs"] == {"data/epochs/a", "data/epochs/b"}
    assert [chart.title for chart in found if chart.place == "other"] == [
        "accuracy",
        "data/epochs",
        "temperature",
    ]
    assert "lr-AdamW" not in {name for curves in titles.values() for name in curves}


def test_hundreds_of_names_and_odd_values(tmp_path):
    """Names that could break a page, values that no axis has, and more charts than anyone reads."""
    values = {step: (math.nan, math.inf, -1.0, 0.0, 1e300, 1e-300)[step % 6] for step in range(40)}
    metrics = {f"{NASTY} {number}".replace("/", "|"): {0: 1.0} for number in range(300)}
    metrics |= {
        "train/loss": values,
        "lr": {0: 0.0, 9: 0.0},
        "grad_norm": {0: 0.0},
        "nan/only": {3: math.nan},
    }
    metrics |= {f"loss/{number}": {0: 1.0, 5: 2.0} for number in range(40)}
    events = [(step, "skipped", f"{NASTY} {step}", {}) for step in range(500)]
    page = page_of(record_of(tmp_path, metrics, events))
    assert page.open == []
    assert page.outside == []
    assert "script" not in page.tags
    text = "".join(page.texts)
    assert f"{NASTY} 10".replace("/", "|") in text
    assert f"{NASTY} 499" in text
    assert "241 more charts aren't drawn" in text
    assert "and 16 more, which are in report.jsonl" in text
    assert "The last 200 of 501." in text
    assert (tmp_path / "report/loss.png").exists()


def test_stages_ranks_and_the_best_checkpoint(tmp_path):
    layers = [f"model.layers.{number}.q_proj" for number in range(30)]
    ranks = dict.fromkeys(layers, 8)
    events = [
        (0, "stage", "head ×1", {}),
        (0, "ranks", "rank 8", {"ranks": ranks}),
        (40, "stage", "* ×0.1", {}),
        (60, "ranks", "1 of 30 layers changed", {"ranks": {**ranks, layers[0]: 12, layers[1]: 0}}),
        (80, "best", "val/loss 0.5 (a.ckpt)", {"path": "a.ckpt"}),
        (90, "best", "val/loss 0.4 (b.ckpt)", {"path": "b.ckpt"}),
        (100, "checkpoint", "c.ckpt", {}),
        (100, "ended", "the run ended after 100 steps", {}),
    ]
    file = record_of(tmp_path, {"train/loss": dict.fromkeys(range(100), 1.0)}, events)
    history = read_history(file)
    assert [tuple(stage) for stage in frame(history).stages] == [(0, 40, "head ×1"), (40, 100, "* ×0.1")]
    assert [event.step for event in frame(history).marks if event.kind == "best"] == [90]
    found = rank_map(history)
    assert found.edges == [0, 60, 100]
    assert (found.ranks[layers[0]], found.ranks[layers[1]]) == ([8, 12], [8, 0])
    page = page_of(file)
    text = "\n".join(page.texts)
    for part in (
        "step 90: val/loss 0.4 (b.ckpt)",
        "stage 1, steps 40 to 100: * ×0.1",
        "model.layers.0.q_proj: rank 12",
    ):
        assert part in text
    assert (tmp_path / "report/rank-of-each-layer.png").stat().st_size > 3000


def test_nothing_to_draw(tmp_path, caplog):
    with caplog.at_level("INFO"):
        draw_report(record_of(tmp_path, {}))
    assert "nothing was logged, so there is no report.html" in caplog.text
    assert [file.name for file in tmp_path.iterdir()] == ["report.jsonl"]


def test_without_matplotlib(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("lightning_vlm_callbacks.run_report.draw.find_spec", lambda name: None)
    with caplog.at_level("INFO"):
        draw_report(record_of(tmp_path, {"loss": {0: 1.0}}))
    assert "no PNGs, as matplotlib isn't installed" in caplog.text
    assert {file.name for file in tmp_path.iterdir()} == {"report.jsonl", "report.html"}


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path):
    file = record_of(tmp_path, {"loss": {0: 1.0}})
    (tmp_path / "report.html").mkdir()
    with pytest.warns(UserWarning, match="can't be drawn: .*report.html can't be written .is a dir"):
        draw_report(file)


def test_lines_that_are_no_record_are_left_out(tmp_path):
    """What a killed process or a person has left there."""
    file = record_of(tmp_path, {"loss": {0: 1.0, 1: 2.0}})
    whole = file.read_text()
    file.write_text(
        f'{whole}\n[1, 2]\n{{"a": 1}}\n{json.dumps({"time": 1, "step": 2, "metr": 1})}\n{{"time": '
    )
    assert read_history(file).curves["loss"].points() == [(0, 1.0), (1, 2.0)]
