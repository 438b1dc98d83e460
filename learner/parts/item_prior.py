"""Prior of an item: its position-corrected rate of positive labels over all queries.

Legend: N pairs.

Item i has clicks c_i and exposure e_i (each showing counts for its examination probability), both
fading in event time with one half-life, as do the sums C and E over all items. With rate pi = C / E

    value = log (c_i + k) / (e_i pi + k),

the log of a rate ratio under a gamma prior of k expected clicks (DuMouchel 1999): 0 for an item
that does as well as the average, and shrunk to 0 where it was shown little.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from learner.parts.part import Array, Outcomes, Pairs
from weighting.checks import check_examination, check_labels, check_weights
from weighting.errors import SnapshotError
from weighting.tasks import TASKS, TaskName

FORMAT = 1
_DAY_US = 86_400_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemPriorConfig:
    """Shrinkage, memory and bound of the item rates.

    Attributes:
        pseudo_clicks: k, expected clicks that the average is worth.
        half_life_days: of clicks and exposure, in event time.
        max_items: per task; the item that was not shown for longest is forgotten first.
    """

    pseudo_clicks: float = 2.0
    half_life_days: float = 30.0
    max_items: int = 100_000


class _Rate:
    """Fading clicks and exposure up to a time."""

    __slots__ = ("clicks", "exposure", "time_us")

    def __init__(self, clicks: float = 0.0, exposure: float = 0.0, time_us: int = 0) -> None:
        self.clicks, self.exposure, self.time_us = clicks, exposure, time_us

    def add(self, clicks: float, exposure: float, time_us: int, half_life_us: float) -> None:
        """Add at a time; of two times out of order the later one stands."""
        keep = 2.0 ** (-max(time_us - self.time_us, 0) / half_life_us)
        self.clicks = keep * self.clicks + clicks
        self.exposure = keep * self.exposure + exposure
        self.time_us = max(self.time_us, time_us)


class ItemPrior:
    """Rate ratio of each item; silent about an item that was never shown.

    A rate is as of the item's last showing: while nothing is shown, nothing fades.
    """

    columns: Mapping[str, float] = {"item_prior": 0.5}

    def __init__(self, config: ItemPriorConfig | None = None) -> None:
        """Start without items."""
        self.config = config or ItemPriorConfig()
        self._items: dict[TaskName, OrderedDict[str, _Rate]] = {t: OrderedDict() for t in TASKS}
        self._all = {task: _Rate() for task in TASKS}

    def predict(self, task: TaskName, pairs: Pairs) -> Array:
        """Return the log rate ratios (1, N). Pure."""
        known, overall, k = self._items[task], self._all[task], self.config.pseudo_clicks
        if overall.exposure <= 0:
            return np.full((1, len(pairs.items)), np.nan)
        rate = overall.clicks / overall.exposure
        rows = [known.get(item) for item in pairs.items]
        numbers = [(np.nan, np.nan) if r is None else (r.clicks, r.exposure) for r in rows]
        clicks, exposure = np.array(numbers, dtype=np.float64).reshape(-1, 2).T
        found: Array = np.log((clicks + k) / (exposure * rate + k))
        return found[None, :]

    def learn(self, task: TaskName, pairs: Pairs, outcomes: Outcomes) -> None:
        """Count N pairs.

        Raises:
            WeightError: a label, weight or examination probability is NaN or out of range.
        """
        check_labels(outcomes.label)
        check_weights("weight", outcomes.weight)
        check_examination(outcomes.examination)
        clicks = outcomes.label * outcomes.weight
        exposure = np.where(outcomes.shown, outcomes.discount * outcomes.examination, 0.0)
        known, overall = self._items[task], self._all[task]
        half_life = self.config.half_life_days * _DAY_US
        rows = zip(
            pairs.items, clicks.tolist(), exposure.tolist(), outcomes.time_us.tolist(), strict=True
        )
        for item, c, e, at in rows:
            if not (c or e):
                continue
            overall.add(c, e, at, half_life)
            found = known.get(item)
            if found is None:
                found = known[item] = _Rate(time_us=at)
                if len(known) > self.config.max_items:
                    known.popitem(last=False)
            found.add(c, e, at, half_life)
            known.move_to_end(item)

    def snapshot(self) -> bytes:
        """Return all rates as msgpack, the item shown longest ago first."""
        tasks = {
            task: {
                "all": _plain(self._all[task]),
                "items": list(known),
                "rates": [_plain(rate) for rate in known.values()],
            }
            for task, known in self._items.items()
        }
        return msgspec.msgpack.encode({"format": FORMAT, "tasks": tasks})

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            SnapshotError: the bytes are not such a snapshot.
        """
        try:
            state: Mapping[str, Any] = msgspec.msgpack.decode(data)
            if state["format"] != FORMAT:
                raise SnapshotError("format", state["format"], FORMAT)
            for task in TASKS:
                own = state["tasks"][task]
                self._all[task] = _Rate(*own["all"])
                rows = zip(own["items"], own["rates"], strict=True)
                self._items[task] = OrderedDict((item, _Rate(*rate)) for item, rate in rows)
        except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            raise SnapshotError("item prior", repr(error), "an item prior's snapshot") from error


def _plain(rate: _Rate) -> tuple[float, float, int]:
    return rate.clicks, rate.exposure, rate.time_us
