"""Hot swap: find a new version, check it, load it beside the one in use, swap, move the alias.

Every `poll_seconds` the watcher reads the learner's announcement and the operator's choice, never
a listing. A version that an operator chose stays in use until the next choice. A version that was
refused stays refused until it is announced anew, or an operator asks for it by name. One that fails
in use is given up for the former one.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from msgspec import Meta

from learner.artifact import (
    Corrupt,
    Scorer,
    Version,
    VersionMissing,
    Warmable,
)
from serving.errors import Refused
from serving.inference.slot import LoadedModel, Slot
from serving.rollout.comparison import Replayed
from serving.rollout.freshness import FreshEvents, Freshness
from serving.rollout.gate import Gate, GateConfig
from serving.rollout.refusals import LOCAL_CHECKS, Record, Refusals
from serving.telemetry import Telemetry
from weighting.constraints import Count, NotNegative, NotNegativeInt, Positive, check

log = logging.getLogger("steelyard.serving")

_TEXTS_TOGETHER = 4


class Store(FreshEvents, Record, Protocol):
    """The store as serving uses it (`learner.artifact.Store` is one)."""

    def announced(self) -> str | None:
        """Return the newest version that the learner offers."""
        ...

    def readable(self) -> list[Version]:
        """Return every version that this release can read, newest last."""
        ...

    def version(self, name: str) -> Version:
        """Return the version of that name."""
        ...

    def load(self, version: Version, *, threads: int = 1) -> Scorer:
        """Return its scorer, or raise `Corrupt`.

        Every file that it opens has its digest checked first; the learner's own are not read.
        """
        ...

    def aliases(self) -> dict[str, str | None]:
        """Return the movable names."""
        ...

    def promote(self, version: Version) -> None:
        """Make it champion, and the champion previous."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WatcherConfig:
    """Polling of the store, and the checks of a new version."""

    poll_seconds: Annotated[Positive, Meta(description="Time between looks at the store.")] = 0.1
    threads: Annotated[Count, Meta(description="Threads of torch; under `up` the learner's.")] = 1
    warm_seconds: Annotated[
        NotNegative,
        Meta(
            description="Longest time for which a new version encodes ahead the texts that the one "
            "in use knows, while no request waits; newest first."
        ),
    ] = 5.0
    rollback_failures: Annotated[
        NotNegativeInt,
        Meta(
            description="Failures among the newest 100 answers of a version after which the former "
            "one, if it failed less than half as often, comes back by itself; 0 never."
        ),
    ] = 5

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "watcher")


def _at_once(task: Callable[[], object], seconds: float) -> bool:
    task()
    return True


class Watcher:
    """The loader thread; a test calls `poll` instead of starting it.

    Owns the next scorer until it is in the slot; from then on the inference thread uses it.
    """

    def __init__(
        self,
        store: Store,
        slot: Slot,
        telemetry: Telemetry,
        config: WatcherConfig,
        *,
        replayed: Callable[[LoadedModel], Sequence[Replayed]] = lambda model: (),
        gate: Gate | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
        when_idle: Callable[[Callable[[], object], float], bool] = _at_once,
        first_loaded: Callable[[], None] = lambda: None,
        server: str = "",
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Take the collaborators; `start` starts the thread.

        Args:
            store: holds the versions.
            slot: to swap.
            telemetry: counts checks, swaps and freshness.
            config: interval and strictness.
            replayed: newest requests that a model answered, with its scores (`Batcher.replayed`).
            gate: judges new versions; left out, one with the defaults.
            clock: monotonic seconds, for the swap's duration.
            wait: waits that many seconds, and returns True to end; left out, until `close`.
            when_idle: runs a task when no request waits; False if that was not in time
                (`Batcher.when_idle`).
            first_loaded: called when the first version is loaded, before it answers anything.
            server: host and port of this one, for what it puts on record.
            wall_clock: seconds since the Unix epoch, for the same.
        """
        self._store, self._slot, self._telemetry, self._config = store, slot, telemetry, config
        self._replayed, self._clock = replayed, clock
        self._gate = gate or Gate(GateConfig())
        self._stop = threading.Event()
        self._wait = wait or self._stop.wait
        self._when_idle, self._first_loaded = when_idle, first_loaded
        self._refusals = Refusals(store, telemetry, server=server, wall_clock=wall_clock)
        self._thread: threading.Thread | None = None
        self.freshness = Freshness(store, slot, telemetry)
        self._begun = False
        self._last_champion: str | None = None
        self._last_announced: str | None = None
        self._last_failure = ""

    def start(self) -> None:
        """Start the loader thread."""
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread after the poll it is in."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    @property
    def healthy(self) -> bool:
        """False if the loader thread has ended by itself."""
        return self._thread is None or self._stop.is_set() or self._thread.is_alive()

    @property
    def refused(self) -> Mapping[str, str]:
        """Reasons by version, for the newest hundred that were refused."""
        return self._refusals.reasons()

    def _run(self) -> None:
        while True:
            self.poll()
            if self._wait(self._config.poll_seconds):
                return

    def poll(self) -> None:
        """Look once; a store that cannot be read is counted, logged once, and tried again."""
        try:
            self._look()
            self._last_failure = ""
        # The store is outside this process: no error of it may end the thread.
        except Exception as error:
            self._telemetry.gate_checks.labels("announcement", "failed").inc()
            failure = f"{type(error).__name__}: {error}"
            if failure != self._last_failure:
                log.warning("store cannot be read", extra={"error": failure})
            self._last_failure = failure

    def _look(self) -> None:
        self.freshness.update()
        self._roll_back_failing()
        refused_before = set(self._refusals.reasons())
        aliases, announced = self._store.aliases(), self._store.announced()
        champion, previous = aliases.get("champion"), aliases.get("previous")
        if not self._begun:
            # An earlier process answered with the champion, and was rolled back from `previous`.
            self.freshness.begin(champion)
            self._begun, self._last_announced = True, previous
        new = announced if announced != self._last_announced else None
        if champion is not None and self._is_chosen(champion, new):
            refused = self._stays_refused(champion)
            self._last_champion = champion
            if not refused:
                self._take(champion, by_operator=self._slot.current is not None)
        if new is not None and self._follows_learner(aliases.get("pinned")):
            if new in refused_before:
                self._refusals.judge_anew(new)
            refused = self._is_refused(new)
            self._last_announced = new
            if not refused:
                self._take(new, by_operator=False)
        if self._slot.current is None:
            self._take_another(champion, previous)

    def _is_chosen(self, champion: str, new: str | None) -> bool:
        """Return whether the champion is another one, or was promoted in spite of a refusal."""
        if champion != self._last_champion:
            return True
        # What another server had made champion can be promoted too: the alias stays the same
        return champion != new and self._refusals.is_withdrawn(champion)

    def _take_another(self, champion: str | None, previous: str | None) -> None:
        """Take the former champion where nothing can be served, else one that nobody tried."""
        if previous and not self._is_refused(previous):
            self._take(previous, by_operator=False)
        if self._slot.current is None and champion and self._refusals.is_untried(champion):
            self._refusals.overrule(champion, because="no other can be served")
            self._take(champion, by_operator=False)

    def _roll_back_failing(self) -> None:
        """Go back to the former version if the one in use fails, and the former did not."""
        current, former = self._slot.held
        limit = self._config.rollback_failures
        if current is None or former is None or not limit or former.name in self._refusals:
            return
        failures = current.num_failures
        if failures < limit or 2 * former.num_failures >= failures:
            return
        started = self._clock()
        answers = len(current.outcomes)
        reason = f"{failures} of its newest {answers} answers failed: rolled back to {former.name}"
        log.error("version rolled back", extra={"version": current.name, "reason": reason})
        self._slot.swap(former)
        self._refusals.add(current.name, f"failures: {reason}", binding=True)
        self._report_swap(former, current, self._clock() - started, reason="failures")
        # The alias too, so that no restart and no other replica takes the failing one
        with contextlib.suppress(Refused), self._check("promote"):
            if self._store.aliases().get("champion") == current.name:
                self._store.promote(former.version)
                self._last_champion = former.name

    def _follows_learner(self, pinned: str | None) -> bool:
        """Return whether announcements count: a pin holds them back, unless it cannot be served."""
        return pinned is None or pinned in self._refusals

    def _is_refused(self, name: str) -> bool:
        return name in self._refusals or self._stays_refused(name)

    def _stays_refused(self, name: str) -> bool:
        """Return whether a version that is not in use has a refusal on record."""
        current = self._slot.current
        if current is not None and current.name == name:
            return False
        return self._refusals.stays(name)

    def _take(self, name: str, *, by_operator: bool) -> None:
        """Take `name` into use if it passes the checks.

        1. Check its digests and numbers. 2. Load it beside the one in use. 3. Warm it with the
        texts that the one in use knows. 4. Probe it, and, unless an operator chose it, compare it
        with the model in use (`serving.rollout.gate`). 5. Swap, in one assignment. 6. Move the
        alias.
        """
        current, previous = self._slot.held
        if current is not None and current.name == name:
            return
        started = self._clock()
        if previous is not None and previous.name == name:
            model, checked = previous, "not again: it was in use before"
            model.outcomes.clear()  # it is judged by what comes
        else:
            try:
                model, checked = self._load(name, current, compared=not by_operator)
            except Refused as refused:
                self._refuse(name, refused)
                return
            if current is not None and not by_operator and self._refusals.stays(name):
                return  # another server refused it in the meantime
        if current is None:
            self._first_loaded()
        self._slot.swap(model)  # 5
        self._refusals.overrule(name, because="it was made champion")
        self._report_swap(model, current, self._clock() - started, checked=checked)
        with contextlib.suppress(Refused), self._check("promote"):  # 6
            self._promote(model.version)

    def _load(
        self, name: str, current: LoadedModel | None, *, compared: bool
    ) -> tuple[LoadedModel, str]:
        """Return a version that passed the checks, and what it was compared with."""
        checked = "alone: no other is in use" if current is None else "alone: made champion"
        with self._check("load"):  # 1, 2
            version = self._store.version(name)
            scorer = self._store.load(version, threads=self._config.threads)
        if current is not None:
            with self._check("warm"):  # 3
                self._encode_ahead(scorer, current.scorer)
        probes = self._gate.probe(scorer, self._check)  # 4
        if current is not None and compared:
            recent = self._replayed(current)
            self._gate.compare(version, scorer, current, recent, self._check)
            checked = f"on {len(recent)} recent requests" if recent else "without traffic"
        return LoadedModel(version=version, scorer=scorer, probes=probes), checked

    def _encode_ahead(self, scorer: Scorer, current: Scorer) -> None:
        """Let a scorer encode what the one in use knows, a few texts at a time.

        Otherwise every text would be encoded anew by the first request for it, all of them in the
        moments after the swap. It is done while no request waits, and by the thread that answers:
        two threads that share the interpreter would hold each other up.
        """
        if not isinstance(scorer, Warmable) or not isinstance(current, Warmable):
            return
        if scorer.fixed != current.fixed:  # other tokens
            return
        end = self._clock() + self._config.warm_seconds
        texts = current.kept()
        for begin in range(0, len(texts), _TEXTS_TOGETHER):
            few = texts[begin : begin + _TEXTS_TOGETHER]
            left = end - self._clock()
            if left <= 0 or not self._when_idle(functools.partial(scorer.keep, few), left):
                return

    def _promote(self, version: Version) -> None:
        """Move the alias forward, never back: another replica or an operator may have moved it."""
        champion = self._store.aliases().get("champion")
        if champion is None or self._seq(champion) < version.seq:
            self._store.promote(version)
            self._last_champion = version.name

    def _seq(self, name: str) -> int:
        """Return a version's number, -1 if it cannot be read: then any other is better."""
        try:
            return self._store.version(name).seq
        except (Corrupt, VersionMissing):
            return -1

    @contextlib.contextmanager
    def _check(self, check: str) -> Iterator[None]:
        """Count one check; any error inside it becomes a refusal by that name."""
        try:
            yield
        # A broken version may raise anything, and must not end the thread.
        except Exception as error:
            self._telemetry.gate_checks.labels(check, "failed").inc()
            reason = f"{type(error).__name__}: {error}"
            if isinstance(error, Refused):
                reason = str(error)
            log.warning("check failed", extra={"check": check, "reason": reason})
            if isinstance(error, Refused):
                raise
            raise Refused(
                check, reason
            ) from error  # no local: its traceback would keep the version
        self._telemetry.gate_checks.labels(check, "ok").inc()

    def _refuse(self, name: str, refused: Refused) -> None:
        log.warning("version refused", extra={"version": name, "reason": str(refused)})
        self._telemetry.swaps.labels("rejected").inc()
        self._refusals.add(name, str(refused), binding=refused.check not in LOCAL_CHECKS)

    def _report_swap(
        self,
        model: LoadedModel,
        before: LoadedModel | None,
        duration_seconds: float,
        *,
        reason: str = "operator",
        checked: str = "not again: it was in use before",
    ) -> None:
        event_time_us = model.version.event_time_us
        event_seconds = math.nan if event_time_us is None else event_time_us / 1e6
        self._telemetry.swaps.labels("ok").inc()
        self._telemetry.swap_duration.observe(duration_seconds)
        self._telemetry.model_event_timestamp.set(event_seconds)
        self._telemetry.model.info({"version": model.name})
        if before is not None and model.version.seq < before.version.seq:
            self._telemetry.rollbacks.labels(reason).inc()
        name_before = None if before is None else before.name
        extra = {"version": model.name, "before": name_before, "checked": checked}
        log.info("version swapped", extra=extra)
