"""Refused versions: remembered, put on record in the store, respected there, and overruled.

A server with traffic can judge what one without cannot. So a refusal binds all servers of a store,
and this one after a restart, until an operator makes the version champion or the learner announces
it once more. What failed for want of something on this machine binds this server alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Protocol

from learner.artifact import Refusal, StoreFailed
from serving.telemetry import Telemetry

log = logging.getLogger("steelyard.serving")

NUM_KEPT = 100
LOCAL_CHECKS = ("load", "warm")
"""Checks that may fail for want of memory, of an engine or of instructions here."""


class Record(Protocol):
    """The store as far as refusals go."""

    def refusal(self, name: str) -> Refusal | None:
        """Return what a server has on record against a version."""
        ...

    def refuse(self, refusal: Refusal) -> None:
        """Put a refusal on record; `StoreFailed` if that is not possible."""
        ...

    def withdraw_refusal(self, name: str) -> None:
        """Take a refusal off the record; `StoreFailed` if that is not possible."""
        ...


class Refusals:
    """Reasons of the newest hundred refused versions; of the loader thread."""

    def __init__(
        self,
        record: Record,
        telemetry: Telemetry,
        *,
        server: str,
        wall_clock: Callable[[], float],
    ) -> None:
        """Start with none.

        Args:
            record: shared with other servers.
            telemetry: counts.
            server: host and port of this one.
            wall_clock: seconds since the Unix epoch.
        """
        self._record, self._telemetry = record, telemetry
        self._server, self._wall_clock = server, wall_clock
        self._reasons: dict[str, str] = {}
        self._others: set[str] = set()  # of these, those that were found on record

    def __contains__(self, name: str) -> bool:
        """Return whether a version is refused."""
        return name in self._reasons

    def reasons(self) -> dict[str, str]:
        """Return a copy: version -> reason."""
        return self._reasons.copy()

    def add(self, name: str, reason: str, *, binding: bool) -> None:
        """Remember a refusal of this server; if it is binding, put it on record for all."""
        self._remember(name, reason)
        self._others.discard(name)
        if binding:
            at_us = int(self._wall_clock() * 1e6)
            refusal = Refusal(version=name, reason=reason, server=self._server, at_us=at_us)
            with self._writing(name):
                self._record.refuse(refusal)

    def stays(self, name: str) -> bool:
        """Return whether a refusal is on record; then remember it, and say so once.

        It is nobody's choice: an operator who makes a version champion withdraws its refusal.
        """
        found = self._record.refusal(name)
        if found is None:
            return False
        at = datetime.fromtimestamp(found.at_us / 1e6, UTC).isoformat(timespec="seconds")
        extra = {"version": name, "reason": found.reason, "server": found.server, "at": at}
        remedy = f"to take it all the same: steelyard checkpoints promote {name}"
        log.warning("version stays refused", extra={**extra, "remedy": remedy})
        self._remember(name, f"{found.reason} (refused by {found.server}, {at})")
        self._others.add(name)
        self._telemetry.swaps.labels("rejected").inc()
        return True

    def judge_anew(self, name: str) -> None:
        """Forget the refusal of a version that the learner announces once more."""
        extra = {"version": name, "reason": self._reasons.pop(name)}
        self._others.discard(name)
        log.info("refused version judged anew", extra={**extra, "because": "announced once more"})
        with self._writing(name):
            self._record.withdraw_refusal(name)

    def is_untried(self, name: str) -> bool:
        """Return whether a version is refused by what was on record, and not by checks of ours."""
        return name in self._reasons and name in self._others

    def is_withdrawn(self, name: str) -> bool:
        """Return whether a refusal that was found on record is there no more."""
        return name in self._others and self._record.refusal(name) is None

    def overrule(self, name: str, *, because: str) -> None:
        """Forget the refusal of a version, if it has one, that is taken all the same; say so."""
        reason = self._reasons.pop(name, None)
        self._others.discard(name)
        if reason is not None:
            extra = {"version": name, "reason": reason, "because": because}
            log.warning("refused version taken", extra=extra)

    def _remember(self, name: str, reason: str) -> None:
        self._reasons[name] = reason
        while len(self._reasons) > NUM_KEPT:
            oldest = next(iter(self._reasons))
            del self._reasons[oldest]
            self._others.discard(oldest)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Go on where the store cannot be written to, and say so."""
        try:
            yield
        except StoreFailed as error:
            extra = {"version": name, "error": str(error)}
            log.warning("other servers are not told of a refusal", extra=extra)
