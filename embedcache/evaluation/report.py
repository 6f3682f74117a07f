"""Summaries of result records: a table, a box plot over seeds, a page that needs no network."""

from __future__ import annotations

import base64
import html
import io
import os
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedcache.evaluation.record import RunRecord, split_label
from embedcache_stores.durable import replace_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRIC_NAMES = {"accuracy": "accuracy", "f1_micro": "F1 (micro)", "miou": "mean IoU"}
RANDOM_MARK = "random weights"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All seeds of one dataset, features and configuration."""

    dataset: str
    features: str
    head: str
    config: dict[str, Any]
    metric: str
    scores: tuple[float, ...]
    """Primary metric on test, one per seed that was not given up, 0 to 1."""
    seeds: tuple[int, ...]
    """Seeds of those scores."""
    interval: tuple[float, float] | None = None
    """95 % bootstrap interval over test samples, mean over seeds of its ends."""
    chosen: tuple[str, ...] = ()
    """Fields of the configuration that trials chose."""
    random_weights: tuple[str, ...]
    """Stores whose backbone was never trained."""
    notes: tuple[str, ...] = ()
    split: str | None = None
    """Named split, with the first digits of its digest; None for the stores' own."""

    @property
    def setting(self) -> str:
        """Dataset and named split: only scores of one setting may be compared."""
        return self.dataset if self.split is None else f"{self.dataset}, {self.split}"

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN where all were given up."""
        return float(np.mean(self.scores)) if self.scores else float("nan")

    @property
    def std(self) -> float:
        """Standard deviation over seeds (n - 1; 0 for one seed)."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form for ``--json``."""
        if not self.scores:
            return {**asdict(self), "mean": None, "std": None, "min": None, "max": None}
        return {**asdict(self), "mean": self.mean, "std": self.std, "min": min(self.scores), "max": max(self.scores)}


def summarise(records: Iterable[RunRecord]) -> list[Summary]:
    """Group records by dataset, features and configuration; datasets as they appear, single stores before ensembles."""
    groups: dict[tuple[str, ...], list[RunRecord]] = {}
    for record in records:
        key = (record.setting, record.features, repr(sorted(record.config.items())), repr(record.fingerprints))
        groups.setdefault(key, []).append(record)
    out = []
    for runs in groups.values():
        ordered = sorted(runs, key=lambda r: r.seed)
        first = ordered[0]
        done = [r for r in ordered if r.failed is None]
        lost = tuple(f"{r.features}, seed {r.seed}: {r.failed}" for r in ordered if r.failed is not None)
        ends = [r.interval for r in done if r.interval is not None]
        out.append(
            Summary(
                dataset=first.dataset,
                features=first.features,
                head=str(first.config["head"]),
                config=dict(first.config),
                metric=first.metric,
                scores=tuple(r.score for r in done),
                seeds=tuple(r.seed for r in done),
                interval=(float(np.mean([e[0] for e in ends])), float(np.mean([e[1] for e in ends]))) if ends else None,
                chosen=tuple(first.trials["chosen"]) if first.trials else (),
                random_weights=tuple(first.random_weights),
                notes=(*first.notes, *lost),
                split=split_label(first.split) if first.split else None,
            )
        )
    settings = list(dict.fromkeys(s.setting for s in out))
    return sorted(out, key=lambda s: (settings.index(s.setting), s.features.count("+")))


def weights_warning(summaries: Sequence[Summary]) -> str:
    """Return a sentence if any figure comes from a backbone that was never trained, else an empty string."""
    names = sorted({name for s in summaries for name in s.random_weights})
    if not names:
        return ""
    return (
        f"The weights of {', '.join(names)} are random: nothing here says how good "
        f"{'this backbone is' if len(names) == 1 else 'these backbones are'}."
    )


def box_plot(summaries: Sequence[Summary]) -> Figure:
    """Draw the paper's Figure 2: one box per features and dataset, each over its seeds, every seed as a dot."""
    from matplotlib.figure import Figure

    datasets = list(dict.fromkeys(s.setting for s in summaries if s.scores))
    widest = max((sum(s.setting == d for s in summaries) for d in datasets), default=1)
    width = max(4.2, 1.0 + 1.35 * widest) * max(1, len(datasets))
    figure = Figure(figsize=(width, 4.4), layout="constrained")
    for position, dataset in enumerate(datasets, start=1):
        axes = figure.add_subplot(1, len(datasets), position)
        here = [s for s in summaries if s.setting == dataset and s.scores]
        scores = [[100 * v for v in s.scores] for s in here]
        axes.boxplot(scores, widths=0.5, medianprops={"color": "#b3402a", "linewidth": 1.6}, showfliers=False)
        for i, values in enumerate(scores, start=1):
            spread = np.linspace(-0.09, 0.09, len(values)) if len(values) > 1 else [0.0]
            axes.plot(i + np.asarray(spread), values, ".", color="#2b5d8a", alpha=0.7, markersize=6)
        axes.set_xticks(range(1, len(here) + 1), [_label(s, here) for s in here], fontsize=8)
        axes.set_ylabel(f"test {METRIC_NAMES.get(here[0].metric, here[0].metric)} (%)")
        axes.set_title(dataset, fontsize=11)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    warning = weights_warning(summaries)
    if warning:
        figure.suptitle(textwrap.fill(warning, width=int(15 * width)), fontsize=8, color="#b3402a")
    return figure


def save_report(records: Iterable[RunRecord], out: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write an HTML page and, beside it, its box plot as PNG; return both paths.

    The page is one file: no script, no font and no picture is fetched from anywhere.
    """
    page = Path(out)
    picture = page.with_suffix(".png")
    page.parent.mkdir(parents=True, exist_ok=True)
    summaries = summarise(records)
    buffer = io.BytesIO()
    box_plot(summaries).savefig(buffer, format="png", dpi=150)
    picture.write_bytes(buffer.getvalue())
    replace_atomically(page, _page(summaries, base64.b64encode(buffer.getvalue()).decode()))
    return page, picture


def _label(summary: Summary, among: Sequence[Summary]) -> str:
    """Features one member a line; the head too, where the same features stand there twice."""
    name = summary.features.replace("+", "\n+ ")
    if sum(s.features == summary.features for s in among) > 1:
        same = [s for s in among if s.features == summary.features]
        free = {k for s in same for k in s.chosen}
        changed = {k for s in same for k in s.config if s.config[k] != summary.config.get(k)} - free
        if len({s.head for s in same}) == len(same):
            changed = {"head"}  # what else differs is a consequence
        values = {k: summary.config.get(k) for k in sorted(changed)}
        name += "\n" + ", ".join(str(v) if k == "head" else f"{k} {v}" for k, v in values.items())
    return name


_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}th,td{padding:.35rem .6rem;border-bottom:1px solid #ddd;text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}.warn{background:#fbeae6;border-left:4px solid #b3402a;padding:.6rem 1rem}
img{max-width:100%;height:auto}td.best{font-weight:600}small{color:#666}
"""


def _page(summaries: Sequence[Summary], picture: str) -> str:
    warning = weights_warning(summaries)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>embedcache report</title>",
        '<meta name=viewport content="width=device-width,initial-scale=1">',
        f"<style>{_STYLE}</style><h1>Frozen features, compared</h1>",
    ]
    if warning:
        parts.append(f"<p class=warn role=note>{html.escape(warning)}</p>")
    parts.append(f'<img alt="Box plot of test scores over seeds" src="data:image/png;base64,{picture}">')
    for setting in dict.fromkeys(s.setting for s in summaries):
        parts += _table(setting, [s for s in summaries if s.setting == setting])
    parts.append(
        "<p><small>Spread is the standard deviation over seeds. The interval is a bootstrap over test images, "
        "averaged over seeds; it says how far other test images of the same kind could move the score.</small>"
    )
    return "\n".join(parts) + "\n"


def _table(dataset: str, here: Sequence[Summary]) -> list[str]:
    best = max((s.mean for s in here if s.scores), default=0.0)
    metric = METRIC_NAMES.get(here[0].metric, here[0].metric)
    rows = [
        f"<h2>{html.escape(dataset)}</h2><div class=scroll><table><tr><th>features<th>head<th class=n>test {metric} %"
        "<th class=n>spread<th class=n>95 % interval<th class=n>lowest<th class=n>highest<th class=n>seeds"
    ]
    for s in here:
        mark = f" <small>({RANDOM_MARK})</small>" if s.random_weights else ""
        if not s.scores:
            rows.append(
                f"<tr><td>{html.escape(s.features)}{mark}<td>{html.escape(s.head)}<td colspan=6>every run was given up"
            )
            continue
        span = f"{100 * s.interval[0]:.1f} to {100 * s.interval[1]:.1f}" if s.interval else "-"
        rows.append(
            f"<tr><td>{html.escape(s.features)}{mark}<td>{html.escape(s.head)}"
            f"<td class='n{' best' if s.mean == best else ''}'>{100 * s.mean:.1f}<td class=n>{100 * s.std:.1f}"
            f"<td class=n>{span}"
            f"<td class=n>{100 * min(s.scores):.1f}<td class=n>{100 * max(s.scores):.1f}<td class=n>{len(s.scores)}"
        )
    rows.append("</table></div>")
    notes = sorted({n for s in here for n in s.notes})
    rows += [f"<p><small>{html.escape(n)}</small>" for n in notes]
    return rows
