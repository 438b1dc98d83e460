"""Contributions of each list to steps: counted, bounded, and forgotten when no more can come.

Legend: n units, each the samples of one list in one step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from learner.errors import Corrupt
from weighting.sample import Sample
from weighting.tasks import TASKS

FORMAT = 1
_DAY_US = 86_400_000_000
_UNSEEN_US = 30 * _DAY_US
"""Horizon of a task of which no sample has come yet."""


class _Snapshot(msgspec.Struct, array_like=True):
    format: int
    now_us: int
    horizons_us: dict[str, int]
    lists: list[tuple[int, int, int]]
    num_dropped: int


class Contributions:
    """Number of steps that each list has added to, at most `most` of them.

    A sample of a list comes at most the tasks' windows after the one before, as the join says
    them; a list is kept for their sum and a day. Lists are told apart by 64 bits of a hash: two
    that are taken for one add less, never more. Samples without a list are a unit of their own,
    which comes once, and are not kept.

    Attributes:
        most: steps that a list may add to.
        num_dropped: units refused because their list had added to as many.
    """

    def __init__(self, most: int) -> None:
        """Start without any list."""
        self.most = most
        self.num_dropped = 0
        self._now_us = 0
        self._horizons_us: dict[str, int] = {}
        self._lists: OrderedDict[int, tuple[int, int]] = OrderedDict()  # number, event time

    def __len__(self) -> int:
        """Return the number of lists that are kept."""
        return len(self._lists)

    def admit(self, units: Sequence[Sequence[Sample]]) -> list[bool]:
        """Count the n units of a step; return which of them may add to it."""
        for s in (s for unit in units for s in unit):
            self._now_us = max(self._now_us, s.emitted_us)
            horizon = max(self._horizons_us.get(s.task, 0), s.window_us, s.attribution_us)
            self._horizons_us[s.task] = horizon
        admitted = [self._admit(unit[0].list_id) for unit in units]
        self._forget()
        return admitted

    def _admit(self, list_id: str) -> bool:
        if not list_id:
            return True
        name = list_id.encode("utf-8", "surrogatepass")
        key = int.from_bytes(blake2b(name, digest_size=8).digest(), "little")
        number, _ = self._lists.pop(key, (0, 0))
        admitted = number < self.most
        self._lists[key] = (number + admitted, self._now_us)
        self.num_dropped += not admitted
        return admitted

    def _forget(self) -> None:
        horizon = sum(self._horizons_us.get(task, _UNSEEN_US) for task in TASKS) + _DAY_US
        while self._lists:
            key, (_, time_us) = next(iter(self._lists.items()))
            if time_us >= self._now_us - horizon:
                return
            del self._lists[key]

    def snapshot(self) -> bytes:
        """Return the state as msgpack."""
        lists = [(key, number, time) for key, (number, time) in self._lists.items()]
        state = _Snapshot(FORMAT, self._now_us, self._horizons_us, lists, self.num_dropped)
        return msgspec.msgpack.encode(state, order="sorted")

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`.

        Raises:
            Corrupt: it is of another format.
        """
        state = msgspec.msgpack.decode(data, type=_Snapshot)
        if state.format != FORMAT:
            found = f"format {state.format}"
            raise Corrupt("contributions of lists", expected=f"format {FORMAT}", found=found)
        self._now_us = state.now_us
        self._horizons_us = dict(state.horizons_us)
        self._lists = OrderedDict((key, (number, time)) for key, number, time in state.lists)
        self.num_dropped = state.num_dropped
