"""Charts as inline SVG: a line with its interval, intervals side by side, bars, reliability.

Each function returns one `<svg>` element. Names are escaped; colours come from the page's CSS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 640.0, 240.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 16.0, 12.0, 32.0
_ROW = 30.0
_NAME_WIDTH = 150.0
_LONGEST_NAME = 22
_NUM_TICKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A value with its 95 % interval, under a name."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class _Axis:
    """A scale from values to pixels."""

    low: float
    high: float
    begin: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        step = (self.high - self.low) / _NUM_TICKS
        return [self.low + i * step for i in range(_NUM_TICKS + 1)]


def over_time(estimates: Sequence[Estimate], *, label: str) -> str:
    """Draw estimates in their order as a line with a band; a line at 0.

    Args:
        estimates: of parts of equal size; their names stand below the first and the last.
        label: of the chart, for who cannot see it.
    """
    x = _Axis(0.0, max(len(estimates) - 1.0, 1.0), _LEFT, _WIDTH - _RIGHT)
    y = _vertical([0.0, *_ends(estimates)])
    upper = [(x.at(i), y.at(each.high)) for i, each in enumerate(estimates)]
    lower = [(x.at(i), y.at(each.low)) for i, each in enumerate(estimates)]
    line = [(x.at(i), y.at(each.value)) for i, each in enumerate(estimates)]
    points = "".join(
        f'<circle class="mark" cx="{px:.1f}" cy="{py:.1f}" r="3"><title>{_said(each)}</title>'
        f"</circle>"
        for (px, py), each in zip(line, estimates, strict=True)
    )
    ends = [(x.begin, "start", estimates[0].name), (x.end, "end", estimates[-1].name)]
    names = "".join(
        f'<text x="{px:.1f}" y="{_HEIGHT - 10:.1f}" text-anchor="{anchor}">{escape(name)}</text>'
        for px, anchor, name in ends[: len(estimates)]
    )
    body = (
        f'<polygon class="band" points="{_path([*upper, *lower[::-1]])}"/>'
        f'<polyline class="line" points="{_path(line)}"/>'
    )
    return _svg(_HEIGHT, label, _grid(y) + _zero(y) + body + points + names)


def side_by_side(estimates: Sequence[Estimate], *, label: str) -> str:
    """Draw each estimate as a point with its interval, one row each; a line at 0."""
    height = _TOP + _ROW * len(estimates) + _BOTTOM
    low, high = _bounds([0.0, *_ends(estimates)])
    x = _Axis(low, high, _NAME_WIDTH, _WIDTH - 3 * _RIGHT)
    rows = []
    for i, each in enumerate(estimates):
        cy = _TOP + _ROW * (i + 0.5)
        rows.append(
            f"<g><title>{_said(each)}</title>"
            f'<text x="{_NAME_WIDTH - 12:.1f}" y="{cy + 4:.1f}" text-anchor="end">'
            f"{escape(_short(each.name))}</text>"
            f'<line class="line" x1="{x.at(each.low):.1f}" x2="{x.at(each.high):.1f}" '
            f'y1="{cy:.1f}" y2="{cy:.1f}"/>'
            f'<circle class="mark" cx="{x.at(each.value):.1f}" cy="{cy:.1f}" r="4"/></g>'
        )
    zero = f'<line class="zero" x1="{x.at(0):.1f}" x2="{x.at(0):.1f}" y1="{_TOP}" '
    zero += f'y2="{height - _BOTTOM:.1f}"/>'
    ticks = "".join(
        f'<text x="{x.at(tick):.1f}" y="{height - 10:.1f}" text-anchor="middle">{tick:+.3f}</text>'
        for tick in x.ticks()
    )
    return _svg(height, label, zero + "".join(rows) + ticks)


def bars(names: Sequence[str], values: Sequence[float], *, label: str) -> str:
    """Draw values >= 0 as bars, with about six of their names below."""
    y = _Axis(0.0, max([*values, 1e-12]), _HEIGHT - _BOTTOM, _TOP)
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(values), 1)
    every = max(1, round(len(values) / 6))
    drawn = []
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        left, top = _LEFT + i * step, y.at(value)
        drawn.append(
            f'<rect class="bar" x="{left + 1:.1f}" y="{top:.1f}" width="{max(step - 2, 1):.1f}" '
            f'height="{y.begin - top:.1f}"><title>{escape(name)}: {value:.3g}</title></rect>'
        )
        if i % every == 0:
            drawn.append(
                f'<text x="{left + step / 2:.1f}" y="{_HEIGHT - 10:.1f}" text-anchor="middle">'
                f"{escape(name)}</text>"
            )
    return _svg(_HEIGHT, label, _grid(y, ".2f") + "".join(drawn))


def reliability(points: Iterable[tuple[float, float, float]], *, label: str) -> str:
    """Draw observed shares against mean predictions, and the diagonal where they are equal.

    Args:
        points: mean prediction, share of positives and number of samples of each bin.
        label: of the chart, for who cannot see it.
    """
    found = list(points)
    x = _Axis(0.0, 1.0, _LEFT, _WIDTH - _RIGHT)
    y = _Axis(0.0, 1.0, _HEIGHT - _BOTTOM, _TOP)
    line = [(x.at(predicted), y.at(observed)) for predicted, observed, _ in found]
    marks = "".join(
        f'<circle class="mark" cx="{px:.1f}" cy="{py:.1f}" r="4"><title>predicted {p:.3f}, '
        f"observed {o:.3f}, {n:,.0f} samples</title></circle>"
        for (px, py), (p, o, n) in zip(line, found, strict=True)
    )
    ticks = "".join(
        f'<text x="{x.at(tick):.1f}" y="{_HEIGHT - 10:.1f}" text-anchor="middle">{tick:.2f}</text>'
        for tick in x.ticks()
    )
    diagonal = (
        f'<polyline class="zero" points="{_path([(x.at(0), y.at(0)), (x.at(1), y.at(1))])}"/>'
    )
    body = f'<polyline class="line" points="{_path(line)}"/>'
    return _svg(_HEIGHT, label, _grid(y, ".2f") + diagonal + body + marks + ticks)


def _svg(height: float, label: str, body: str) -> str:
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" '
        f'xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    )


def _ends(estimates: Iterable[Estimate]) -> list[float]:
    return [end for each in estimates for end in (each.low, each.value, each.high)]


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.01
    return low - room, high + room


def _vertical(values: Sequence[float]) -> _Axis:
    low, high = _bounds(values)
    return _Axis(low, high, _HEIGHT - _BOTTOM, _TOP)


def _grid(y: _Axis, digits: str = "+.3f") -> str:
    return "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y.at(tick):.1f}" '
        f'y2="{y.at(tick):.1f}"/><text x="{_LEFT - 8}" y="{y.at(tick) + 4:.1f}" '
        f'text-anchor="end">{tick:{digits}}</text>'
        for tick in y.ticks()
    )


def _zero(y: _Axis) -> str:
    at = f"{y.at(0):.1f}"
    return f'<line class="zero" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>'


def _path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{px:.1f},{py:.1f}" for px, py in points)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "\u2026"


def _said(each: Estimate) -> str:
    return escape(f"{each.name}: {each.value:+.4f} ({each.low:+.4f} to {each.high:+.4f})")
