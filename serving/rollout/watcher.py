"""A new version appeared: verify its digests, load it beside the one in use, warm it, check it, swap, then move the alias.

The learner's announcements and an operator's orders are both looked for, every `poll_seconds`; listings never are. What an operator
ordered stays in use until the next order. What was refused stays refused until it is ordered by name.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from msgspec import Meta

from learner.artifact import Corrupt, Scorer, ScoringInput, Version, VersionMissing
from serving.errors import Refused
from serving.inference.slot import Serving, Slot
from serving.rollout.freshness import FreshEvents, Freshness
from serving.rollout.gate import GOLDEN, check_finite, check_golden, check_shape
from serving.telemetry import Telemetry
from weighting.constraints import Count, NotNegativeInt, Positive, check

log = logging.getLogger("steelyard.serving")

NUM_REFUSED_KEPT = 100


class Store(FreshEvents, Protocol):
    """What serving asks of the store (`learner.artifact.Store` is one)."""

    def announced(self) -> str | None:
        """Return the newest version that the learner offers."""
        ...

    def versions(self) -> list[Version]:
        """Return every version, newest last."""
        ...

    def version(self, name: str) -> Version:
        """Return the version of that name."""
        ...

    def load(self, version: Version, *, threads: int = 1) -> Scorer:
        """Return its scorer; every file that it opens has its digest checked first (`Corrupt`), the learner's own files are not read."""
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
    threads: Annotated[Count, Meta(description="Threads of the loaded scorer.")] = 1
    warm_candidates: Annotated[
        NotNegativeInt, Meta(description="Recent documents that a new version scores before use.")
    ] = 32
    max_shift_ratio: Annotated[
        Positive,
        Meta(
            le=1,
            description="Largest change of a golden probability from the version that serves; "
            "1 allows any.",
        ),
    ] = 0.5

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "watcher")


class Watcher:
    """The loader thread: one `poll` at a time, in `start`ed life or called by a test.

    Owns the next scorer until it is in the slot; from then on the inference thread uses it.
    """

    def __init__(
        self,
        store: Store,
        slot: Slot,
        telemetry: Telemetry,
        config: WatcherConfig,
        *,
        recent: Callable[[], Sequence[ScoringInput]] = tuple,
        golden: Sequence[ScoringInput] = GOLDEN,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        """Take the collaborators; `start` starts the thread.

        Args:
            store: where versions are.
            slot: what to swap.
            telemetry: where checks, swaps and freshness are counted.
            config: how often, how careful.
            recent: the newest requests, to warm with (`Batcher.recent`).
            golden: requests that every version answers before it is used.
            clock: monotonic seconds, for the swap's duration.
            wait: waits that many seconds, and returns True to end; left out, until `close`.
        """
        self._store, self._slot, self._telemetry, self._config = store, slot, telemetry, config
        self._recent, self._golden, self._clock = recent, golden, clock
        self._stop = threading.Event()
        self._wait = wait or self._stop.wait
        self._thread: threading.Thread | None = None
        self.freshness = Freshness(store, slot, telemetry)
        self._refused: dict[str, str] = {}
        self._begun = False
        self._seen_champion: str | None = None
        self._seen_announced: str | None = None
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
        """Whether the loader thread turns, has not been started, or was told to end."""
        return self._thread is None or self._stop.is_set() or self._thread.is_alive()

    @property
    def refused(self) -> Mapping[str, str]:
        """Why which versions are not served; the newest hundred."""
        return self._refused.copy()

    def _run(self) -> None:
        while True:
            self.poll()
            if self._wait(self._config.poll_seconds):
                return

    def poll(self) -> None:
        """Look once; a store that cannot be read is counted and said once, and looked at again at the next poll."""
        try:
            self._look()
            self._last_failure = ""
        except (
            Exception
        ) as error:  # the store is outside this process: nothing that it does may end the thread
            self._telemetry.gate_checks.labels("announcement", "failed").inc()
            failure = f"{type(error).__name__}: {error}"
            if failure != self._last_failure:
                log.warning("store cannot be read", extra={"error": failure})
            self._last_failure = failure

    def _look(self) -> None:
        self.freshness.settle()
        aliases, announced = self._store.aliases(), self._store.announced()
        champion, previous = aliases.get("champion"), aliases.get("previous")
        if not self._begun:
            # What the champion contains was answered before this process; what was rolled back from is not taken again.
            self.freshness.begin(champion)
            self._begun, self._seen_announced = True, previous
        if champion is not None and champion != self._seen_champion:
            self._seen_champion = champion
            self._offer(champion, ordered=self._slot.current is not None)
        pinned = aliases.get(
            "pinned"
        )  # an order holds until the next; but one that cannot be served holds nothing
        if (
            announced is not None
            and announced != self._seen_announced
            and (pinned is None or pinned in self._refused)
        ):
            self._seen_announced = announced
            if announced not in self._refused:
                self._offer(announced, ordered=False)
        if previous is not None and self._slot.current is None and previous not in self._refused:
            self._offer(previous, ordered=False)

    def _offer(self, name: str, *, ordered: bool) -> None:
        """Take `name` into use if it is fit.

        1. Check its digests. 2. Load it beside the one in use. 3. Warm it with recent requests. 4. Check shapes, finiteness and,
        unless an operator ordered it, golden requests against the version in use. 5. Swap, in one assignment. 6. Move the alias.
        """
        held = self._slot.held
        if held[0] is not None and held[0].name == name:
            return
        started = self._clock()
        try:
            serving = (
                held[1]
                if held[1] is not None and held[1].name == name
                else self._load(name, against=None if ordered else held[0])
            )
        except Refused as refused:
            self._refuse(name, refused)
            return
        self._slot.swap(serving)  # 5
        self._refused.pop(name, None)
        self._told(serving, held[0], self._clock() - started)
        with contextlib.suppress(Refused), self._check("promote"):  # 6
            self._promote(serving.version)

    def _load(self, name: str, *, against: Serving | None) -> Serving:
        with self._check("load"):  # 1, 2
            version = self._store.version(name)
            scorer = self._store.load(version, threads=self._config.threads)
        with self._check("warm"):  # 3
            if warm := self._warm_requests():
                scorer.score(warm)
            golden = scorer.score(self._golden)
        with self._check("shape"):  # 4
            check_shape(self._golden, golden)
        with self._check("finite"):
            check_finite(golden)
        if against is not None:
            with self._check("golden"):
                check_golden(golden, against.golden, self._config.max_shift_ratio)
        return Serving(version=version, scorer=scorer, golden=golden)

    def _warm_requests(self) -> list[ScoringInput]:
        """Return the newest requests, cut to `warm_candidates` documents together."""
        left, warm = self._config.warm_candidates, []
        for request in reversed(self._recent()):
            if left <= 0:
                break
            warm.append(ScoringInput(query=request.query, documents=request.documents[:left]))
            left -= len(request.documents)
        return warm

    def _promote(self, version: Version) -> None:
        """Move the alias forward; another replica may have moved it further, and an order may have moved it back."""
        champion = self._store.aliases().get("champion")
        if champion is None or self._seq(champion) < version.seq:
            self._store.promote(version)
            self._seen_champion = version.name

    def _seq(self, name: str) -> int:
        """Return a version's number, -1 when it cannot be read: then any other is better."""
        try:
            return self._store.version(name).seq
        except (Corrupt, VersionMissing):
            return -1

    @contextlib.contextmanager
    def _check(self, check: str) -> Iterator[None]:
        """Count one check; whatever goes wrong in it is a refusal by that name."""
        try:
            yield
        except (
            Exception
        ) as error:  # a broken version may raise anything, and must not end the thread
            self._telemetry.gate_checks.labels(check, "failed").inc()
            refused = (
                error
                if isinstance(error, Refused)
                else Refused(check, f"{type(error).__name__}: {error}")
            )
            log.warning("check failed", extra={"check": check, "reason": str(refused)})
            raise refused from error
        self._telemetry.gate_checks.labels(check, "ok").inc()

    def _refuse(self, name: str, refused: Refused) -> None:
        self._refused[name] = str(refused)
        while len(self._refused) > NUM_REFUSED_KEPT:
            del self._refused[next(iter(self._refused))]
        self._telemetry.swaps.labels("rejected").inc()
        log.warning("version refused", extra={"version": name, "reason": str(refused)})

    def _told(self, serving: Serving, before: Serving | None, duration_seconds: float) -> None:
        event_time_us = serving.version.event_time_us
        self._telemetry.swaps.labels("ok").inc()
        self._telemetry.swap_duration.observe(duration_seconds)
        self._telemetry.model_event_timestamp.set(
            math.nan if event_time_us is None else event_time_us / 1e6
        )
        self._telemetry.model.info({"version": serving.name})
        if before is not None and serving.version.seq < before.version.seq:
            self._telemetry.rollbacks.labels("operator").inc()
        log.info(
            "version swapped",
            extra={"version": serving.name, "before": None if before is None else before.name},
        )
