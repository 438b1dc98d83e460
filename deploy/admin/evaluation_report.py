"""Report of an evaluation: one HTML file that needs nothing beside it.

There are no scripts, and whatever comes from data is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from deploy.admin import charts
from deploy.admin.charts import Estimate
from deploy.settings.units import format_time
from learner.artifact import Version
from learner.evaluation.block import FREQUENCIES, FREQUENCY, SCENARIO, WEIGHT_EDGES, Block, total
from learner.evaluation.rankings import GAINS
from learner.parts.attributes import coefficients_of
from weighting.estimators.attribute_choice import Coefficients

_MOST_PARTS = 24
_GAIN = GAINS[0]
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --quiet: #6b7280; --grid: #d9dde3;
  --line: #1f6feb; --paper: #ffffff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --quiet: #9aa4b2; --grid: #343b46;
  --line: #6ea8fe; --paper: #14181d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 720px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { margin-top: 2.5rem; } h3 { margin-bottom: 0.3rem; }
p.note, caption { color: var(--quiet); }
svg { width: 100%; height: auto; } svg text { font-size: 11px; fill: var(--quiet); }
.grid { stroke: var(--grid); } .zero { stroke: var(--quiet); stroke-dasharray: 4 3; fill: none; }
.line { stroke: var(--line); stroke-width: 2; fill: none; } .mark, .bar { fill: var(--line); }
.band { fill: var(--line); opacity: 0.18; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: 0.25rem 0.6rem 0.25rem 0;
  border-bottom: 1px solid var(--grid); }
td { overflow-wrap: anywhere; }
"""


def render(
    version: Version,
    span: str,
    whole: Mapping[str, Block],
    parts: Mapping[str, Sequence[Block]],
    versions: Sequence[Version],
) -> str:
    """Return the page.

    Args:
        version: that was evaluated.
        span: which samples, in words.
        whole: task -> sums of these samples.
        parts: task -> the same in parts, oldest first.
        versions: for the table, newest first.
    """
    body = [
        f"<h1>Is it better than the order that the shop showed?</h1>"
        f"<p>{escape(version.name)}, {escape(span)}. Every sample was scored before it was "
        f"learned. Gains are ours less the shop's, corrected for position; "
        f"intervals are 95&nbsp;%.</p>"
    ]
    body += [_task(task, block, parts[task]) for task, block in whole.items()]
    body += _attributes(coefficients_of(version.evaluation))
    body.append(_versions(versions))
    title = escape(f"Evaluation of {version.name}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _task(task: str, block: Block, parts: Sequence[Block]) -> str:
    figures = block.figures()
    body = [f"<h2>{escape(task)}</h2>"]
    if not block.num_samples:
        return body[0] + '<p class="note">No samples yet.</p>'
    body.append(_headline(figures))
    estimates = [e for e in map(_of_part, _at_most(_MOST_PARTS, parts)) if e is not None]
    body += _section(
        "Gain over time",
        f"NDCG@10 gain of {len(estimates)} parts of about equal size, by their latest event time.",
        charts.over_time(estimates, label=f"{task}: gain over time") if estimates else None,
    )
    for heading, dimension, order in (
        ("Gain by lists that the query had before", FREQUENCY, FREQUENCIES),
        ("Gain by scenario", SCENARIO, ()),
    ):
        gains = block.gains(dimension)
        names = [name for name in order if name in gains] or list(gains)
        rows = [_estimate(name, gains[name]) for name in names]
        chart = charts.side_by_side(rows, label=f"{task}: {heading}") if rows else None
        body += _section(heading, "NDCG@10 gain.", chart)
    body += _section(
        "Reliability",
        "Share of positives against the mean prediction, where the items were shown.",
        _reliability(task, block),
    )
    shares = block.weights / max(block.weights.sum(), 1.0)
    body += _section(
        "Weights in the loss",
        "Share of the samples by their weight, on a logarithmic scale.",
        charts.bars(_weight_names(), shares.tolist(), label=f"{task}: weights")
        if block.weights.any()
        else None,
    )
    rows_of = [(name, f"{value:.4f}") for name, value in sorted(figures.items())]
    body.append(_table(("figure", "value"), rows_of))
    return "".join(body)


def _attributes(attributes: Mapping[str, Coefficients]) -> list[str]:
    rows = [
        Estimate(name=f"{name}, {of}", value=value, low=low, high=high)
        for name, found in attributes.items()
        for of, (value, low, high) in found.intervals().items()
    ]
    if not rows:
        return []
    return _section(
        "Attributes",
        "How much each attribute counts in what is clicked: coefficients of the lift of its value "
        "under any query, and under the words of the query beyond that.",
        charts.side_by_side(rows, label="attributes"),
    )


def _headline(figures: Mapping[str, float]) -> str:
    if _GAIN not in figures:
        return '<p class="note">Too few lists with a positive to compare the two orders.</p>'
    low, high = figures[f"{_GAIN}_low"], figures[f"{_GAIN}_high"]
    verdict = "no difference is certain yet"
    if low > 0 or high < 0:
        verdict = "our order is better" if low > 0 else "the shop's order is better"
    return (
        f"<p><strong>NDCG@10 {figures[_GAIN]:+.4f}</strong> "
        f"({low:+.4f} to {high:+.4f}): {verdict}. "
        f"Ours has {figures['ndcg']:.4f}, the shop's {figures['shown_ndcg']:.4f}.</p>"
    )


def _section(heading: str, note: str, chart: str | None) -> list[str]:
    content = chart or '<p class="note">Nothing to show yet.</p>'
    return [f"<h3>{escape(heading)}</h3>", f'<p class="note">{escape(note)}</p>', content]


def _at_most(most: int, parts: Sequence[Block]) -> list[Block]:
    """Join neighbours, so that at most so many parts are left."""
    groups = np.array_split(np.arange(len(parts)), min(most, max(len(parts), 1)))
    return [total([parts[i] for i in group]) for group in groups if len(group)]


def _of_part(block: Block) -> Estimate | None:
    figures = block.figures()
    return _estimate(format_time(block.time_us), figures) if _GAIN in figures else None


def _estimate(name: str, figures: Mapping[str, float]) -> Estimate:
    low, high = figures[f"{_GAIN}_low"], figures[f"{_GAIN}_high"]
    return Estimate(name=name, value=figures[_GAIN], low=low, high=high)


def _reliability(task: str, block: Block) -> str | None:
    found = block.reliability()
    columns = zip(found.predicted, found.observed, found.number, strict=True)
    points = [(float(p), float(o), float(n)) for p, o, n in columns if n > 0]
    return charts.reliability(points, label=f"{task}: reliability") if points else None


def _weight_names() -> list[str]:
    """Return the lower edge of each bin; of the first, its upper one."""
    return [f"<{WEIGHT_EDGES[0]:.3g}", *(f"{edge:.3g}" for edge in WEIGHT_EDGES)]


def _versions(versions: Sequence[Version]) -> str:
    rows = []
    for version in versions:
        figures = version.evaluation
        gain = figures.get(f"click_{_GAIN}")
        ends = figures.get(f"click_{_GAIN}_low"), figures.get(f"click_{_GAIN}_high")
        interval = "" if None in ends else f" ({ends[0]:+.4f} to {ends[1]:+.4f})"
        event = "" if version.event_time_us is None else format_time(version.event_time_us)
        shown = "" if gain is None else f"{gain:+.4f}{interval}"
        samples = f"{version.num_samples:,}"
        rows.append((version.name, format_time(version.created_us), event, samples, shown))
    header = ("version", "made", "newest event", "samples", "NDCG@10 gain of clicks, latest")
    return "<h2>Versions</h2>" + _table(header, rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
