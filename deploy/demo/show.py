"""Output of the demo: progress while it runs, and a summary at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

_ROWS = (
    ("events", "events"),
    ("samples", "samples"),
    ("p(click)", "prior"),
    ("ESS/N", "weight_ess_ratio"),
    ("within-list AUC", "within_list_auc"),
    ("entropy/position", "position_normalized_entropy"),
    ("version", "version"),
    ("swaps", "swaps"),
    ("requests failed/sent", "requests"),
)
_PLAIN_EVERY_SECONDS = 10.0


class Show:
    """A live table on a terminal, elsewhere a plain line every ten seconds; on standard error."""

    def __init__(self) -> None:
        """Use standard error."""
        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._last_plain = float("-inf")

    def report(self, step: str, text: str) -> None:
        """Print one line about a step that is done."""
        ok = "[green]ok[/green]" if self._console.is_terminal else "ok"
        self._console.print(f"  {ok} {step:<11} {text}", soft_wrap=True)

    def progress(self, elapsed: float, total: float, values: Mapping[str, Any]) -> None:
        """Show the figures of now."""
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=4, transient=True)
                self._live.start()
            self._live.update(self._table(elapsed, total, values))
        elif elapsed - self._last_plain >= _PLAIN_EVERY_SECONDS:
            self._last_plain = elapsed
            known = [(title, values[key]) for title, key in _ROWS if values.get(key) is not None]
            figures = "  ".join(f"{title} {value}" for title, value in known)
            self._console.print(f"  t={elapsed:4.0f} s  {figures}", soft_wrap=True)

    def close(self) -> None:
        """Take the live table down."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _table(self, elapsed: float, total: float, values: Mapping[str, Any]) -> Table:
        table = Table(title=f"Steelyard, {elapsed:.0f} of {total:.0f} s", show_header=False)
        for title, key in _ROWS:
            value = values.get(key)
            table.add_row(title, "-" if value is None else str(value))
        return table

    def summary(self, result: Mapping[str, Any]) -> None:
        """Print all that was measured, and one query's ranking before and after."""
        self.close()
        for line in [*_stream_lines(result), *_quality_lines(result)]:
            self._console.print(line, markup=False, soft_wrap=True)


def _stream_lines(r: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n{r['world']}: {r['seconds']:.0f} s, {r['lists']:,} shown lists"
    names = ("events", "samples", "duplicates", "late", "dead_letters")
    yield "  " + "   ".join(f"{name.replace('_', ' ')} {r[name]:,}" for name in names)
    bounds, ess = f"[{r['prior_low']:.4f}, {r['prior_high']:.4f}]", r["weight_ess_ratio"]
    yield f"  p(click) {r['prior']:.4f} {bounds}   ESS/N {ess:.2f}"
    aucs, entropies = r["within_list_auc_quarters"], r["position_normalized_entropy_quarters"]
    quarters = "  ".join(
        "-" if auc is None or ne is None else f"{auc:.3f}/{ne:.3f}"
        for auc, ne in zip(aucs, entropies, strict=True)
    )
    yield f"  within-list AUC, entropy/position by quarter of the stream   {quarters}"
    if (gain := r["ndcg_gain"]) is not None:
        low, high = r["ndcg_gain_low"], r["ndcg_gain_high"]
        interval = f"{gain:+.3f} [{low:+.3f}, {high:+.3f}]"
        yield f"  NDCG@10 by clicks, ours less the shown order   {interval}"
    yield f"  versions published {r['versions_published']}   swapped in {r['versions_swapped']}"
    yield f"  requests {r['requests']:,}   failed {r['requests_failed']}"
    p50, p99 = r["freshness_p50_seconds"], r["freshness_p99_seconds"]
    if p50 is not None:
        yield f"  event to served   p50 {p50:.1f} s   p99 {p99:.1f} s"


def _quality_lines(r: Mapping[str, Any]) -> Iterator[str]:
    before, after = r["truth_error"]
    yield f"  mean |p(click) served - true p(click)|   before {before:.3f}   after {after:.3f}"
    methods = ("random", "bm25", "zero_shot", "click_counts", "served")
    for part, row in r["ndcg10"].items():
        means = "  ".join(f"{name} {row[name]:.3f}" for name in methods)
        yield f"  NDCG@10 {part:<16} {means}"
        for opponent in ("zero_shot", "click_counts"):
            value, low, high = row[f"gain_over_{opponent}"]
            yield f"          served over {opponent:<13} {value:+.4f} [{low:+.4f}, {high:+.4f}]"
    ranking = r["ranking"]
    yield f'  "{ranking["query"]}"'
    for name in ("before", "after"):
        yield f"    {name:<7}" + "  |  ".join(ranking[name])
