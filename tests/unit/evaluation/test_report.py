"""Reports: the figures are those of the records, and a page is one safe file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedcache.evaluation.record import RunRecord
from embedcache.evaluation.report import box_plot, save_report, summarise, weights_warning


def record(features: str = "a", seed: int = 0, value: float = 0.5, dataset: str = "m-x", **changes: Any) -> RunRecord:
    facts: dict[str, Any] = {
        "version": 1,
        "dataset": dataset,
        "features": features,
        "fingerprints": dict.fromkeys(features.split("+"), "f"),
        "random_weights": [],
        "channels": {},
        "task": "classification",
        "class_names": ["x", "y"],
        "config": {"head": "linear", "epochs": 5},
        "seed": seed,
        "samples": {},
        "metric": "accuracy",
        "best_epoch": 1,
        "val": {},
        "test": {"accuracy": value},
        "curve": [],
        "seconds": 1.0,
        "created": "",
        "environment": {},
    }
    return RunRecord(**{**facts, **changes})


def test_summaries_group_seeds_and_put_single_stores_first() -> None:
    values = [0.5, 0.7, 0.6]
    records = [record("a+b", 0, 0.9), *(record("a", s, v) for s, v in enumerate(values)), record("b", 0, 0.1)]
    ensemble_last = summarise(records)
    assert [s.features for s in ensemble_last] == ["a", "b", "a+b"]
    assert ensemble_last[0].mean == pytest.approx(np.mean(values))
    assert ensemble_last[0].std == pytest.approx(np.std(values, ddof=1))
    assert ensemble_last[2].std == 0.0
    two = summarise([record(), record(config={"head": "linear", "epochs": 9}), record(fingerprints={"a": "other"})])
    assert len(two) == 3


def test_every_seed_is_a_dot_and_every_dataset_a_panel() -> None:
    records = [record(f, s, 0.1 * s, d) for d in ("m-x", "m-y") for f in ("a", "b", "a+b") for s in range(4)]
    figure = box_plot(summarise(records))
    assert [axes.get_title() for axes in figure.axes] == ["m-x", "m-y"]
    for axes in figure.axes:
        assert [t.get_text() for t in axes.get_xticklabels()] == ["a", "b", "a\n+ b"]
        dots = [line for line in axes.lines if line.get_marker() == "."]
        assert [len(line.get_ydata()) for line in dots] == [4, 4, 4]
        np.testing.assert_allclose(dots[0].get_ydata(), [0, 10, 20, 30])


def test_random_weights_are_said_everywhere_and_only_then(tmp_path: Path) -> None:
    trained, random = [record()], [record(random_weights=["a"])]
    assert weights_warning(summarise(trained)) == ""
    assert "a are random" in weights_warning(summarise(random))
    assert "random" not in save_report(trained, tmp_path / "t.html")[0].read_text()
    page = save_report(random, tmp_path / "r.html")[0].read_text()
    assert "nothing here says how good" in page
    assert "(random weights)" in page


def test_a_long_warning_stays_inside_the_picture() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    names = [f"prithvi_eo_v2_{i}00_tl" for i in range(6)]
    figure = box_plot(summarise([record(random_weights=names)]))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert figure._suptitle is not None
    box = figure._suptitle.get_window_extent(canvas.get_renderer())
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y1 <= figure.bbox.height


def test_the_page_is_one_safe_file_with_the_figures(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>"
    records = [record(hostile, s, 0.25 * s) for s in range(3)] + [record("b", 0, 0.125, notes=["<b>note</b>"])]
    page, picture = save_report(records, tmp_path / "deep" / "r.html")
    text = page.read_text()
    assert "<script" not in text
    assert "<b>note" not in text
    assert not re.search(r"(src|href)=[\"']?(http|//)", text)
    assert ">25.0<" in text  # mean of 0, 25 and 50
    assert ">12.5<" in text
    assert np.asarray(Image.open(picture).convert("RGB")).std() > 5


def test_runs_that_were_given_up_are_left_out_of_scores_and_named() -> None:
    lost = {"failed": "the loss of seed 1 became nan", "test": {}}
    (summary,) = summarise([record(seed=0, value=0.4), record(seed=1, **lost), record(seed=2, value=0.6)])
    assert (summary.scores, summary.seeds) == ((0.4, 0.6), (0, 2))
    assert summary.mean == pytest.approx(0.5)
    assert summary.notes == ("a, seed 1: the loss of seed 1 became nan",)


def test_where_every_run_was_given_up_the_report_says_so_and_still_draws_the_others(tmp_path: Path) -> None:
    lost = {"failed": "the loss became nan", "test": {}}
    records = [record("a", s, **lost) for s in range(3)] + [record("b", s, 0.1 * s) for s in range(3)]
    summaries = summarise(records)
    assert np.isnan(summaries[0].mean)
    assert summaries[0].to_json()["mean"] is None
    json.dumps([s.to_json() for s in summaries], allow_nan=False)
    figure = box_plot(summaries)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["b"]
    page = save_report(records, tmp_path / "r.html")[0].read_text()
    assert "every run was given up" in page
    assert "a, seed 2: the loss became nan" in page
    assert ">nan<" not in page
    assert save_report(records[:3], tmp_path / "none.html")[1].exists()  # nothing at all to draw


def test_intervals_are_means_of_their_ends_over_seeds(tmp_path: Path) -> None:
    records = [record(seed=0, interval=[0.4, 0.6]), record(seed=1, interval=[0.5, 0.9])]
    (summary,) = summarise(records)
    assert summary.interval == pytest.approx((0.45, 0.75))
    assert "45.0 to 75.0" in save_report(records, tmp_path / "r.html")[0].read_text()
    assert summarise([record()])[0].interval is None


def test_two_heads_of_the_same_features_are_told_apart_by_what_was_asked_not_by_what_trials_chose() -> None:
    base = {"epochs": 5, "learning_rate": 0.01, "weight_decay": 0.1, "k": 20}
    linear = {
        "config": {**base, "head": "linear", "learning_rate": 0.0123},
        "trials": {"chosen": {"learning_rate": 0.0123, "weight_decay": 0.1}},
    }
    knn = {"config": {**base, "head": "knn", "k": 3}, "trials": {"chosen": {"k": 3}}}
    longer = {"config": {**base, "head": "linear", "epochs": 9, "learning_rate": 0.5}, "trials": linear["trials"]}
    figure = box_plot(summarise([record(**linear), record(**knn), record("b")]))
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["a\nlinear", "a\nknn", "b"]
    figure = box_plot(summarise([record(**linear), record(**longer)]))
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["a\nepochs 5", "a\nepochs 9"]
