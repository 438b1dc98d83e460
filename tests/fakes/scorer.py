"""A store and scorers in memory, as serving uses `learner.artifact`.

Faults are values, and every call is recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from learner.artifact import (
    Corrupt,
    Refusal,
    Scorer,
    Scores,
    ScoringInput,
    Version,
    VersionMissing,
)
from weighting.provenance import Offsets


def make_version(seq: int, *, event_time_us: int | None = 1_795_471_692_000_000) -> Version:
    return Version(
        name=f"v{seq:06d}",
        seq=seq,
        epoch=1,
        created_us=1_795_471_700_000_000,
        event_time_us=event_time_us,
        step=seq,
        num_samples=seq,
        next_offsets=Offsets(),
        evaluation={"auc": 0.75},
        files={},
        manifest={"weighting": {"scheme": "uniform"}},
        path=Path(f"v{seq:06d}"),
    )


class FakeScorer:
    """Scores by a document's text, else by the version's number / 1000.

    So an answer shows which version gave it.
    """

    def __init__(
        self,
        version: str,
        by_text: Mapping[str, float] | None = None,
        *,
        purchase: float = 0.5,
        explains: bool = False,
        value: Mapping[str, float] | None = None,
    ) -> None:
        """`score` waits for `gate`, where one is set, and `fault` may raise.

        One that `explains` has two parts: half of a logit each.
        """
        self.version = version
        self.calls: list[list[ScoringInput]] = []
        self.threads: set[int] = set()
        self.gate: threading.Event | None = None
        self.fault: Callable[[Sequence[ScoringInput]], None] = lambda requests: None
        self._by_text, self._purchase = by_text or {}, purchase
        self._explains = explains
        self._value = value

    def score(self, requests: Sequence[ScoringInput]) -> list[Scores]:
        self.calls.append(list(requests))
        self.threads.add(threading.get_ident())
        if self.gate is not None:
            self.gate.wait()
        self.fault(requests)
        return [self._scores(request) for request in requests]

    def _scores(self, request: ScoringInput) -> Scores:
        default = int(self.version[1:]) / 1000
        scores = [self._by_text.get(document.text, default) for document in request.documents]
        click: NDArray[np.float64] = np.array(scores, dtype=np.float64)
        purchase: NDArray[np.float64] = np.full_like(click, self._purchase)
        prior = {"click": 0.25, "purchase": 0.125}
        probability = {"click": click, "purchase": purchase}
        with np.errstate(invalid="ignore"):  # tests ask for what is no probability
            half = (np.log(click) - np.log1p(-click)) / 2
        return Scores(
            probability=probability,
            score=click.copy(),
            prior=prior,
            contributions={"first": half, "second": half} if self._explains else {},
            value=None
            if self._value is None
            else np.array([self._value.get(document.text, 1.0) for document in request.documents]),
        )


class FakeStore:
    """Versions by name; `corrupt` names those with a wrong digest."""

    def __init__(self) -> None:
        self.scorers: dict[str, Scorer] = {}
        self.fresh: dict[str, list[tuple[int, int]]] = {}
        self.corrupt: set[str] = set()
        self.loaded: list[str] = []
        self.failure: Exception | None = None
        self.on_load: Callable[[str], None] = lambda name: None
        self._versions: dict[str, Version] = {}
        aliases = ("champion", "challenger", "previous")
        self._aliases: dict[str, str | None] = dict.fromkeys(aliases)
        self._announced: str | None = None
        self.refusals: dict[str, Refusal] = {}

    def refusal(self, name: str) -> Refusal | None:
        return self.refusals.get(name)

    def refuse(self, refusal: Refusal) -> None:
        self.refusals[refusal.version] = refusal

    def withdraw_refusal(self, name: str) -> None:
        self.refusals.pop(name, None)

    def add(
        self,
        seq: int,
        scorer: Scorer | None = None,
        *,
        event_time_us: int | None = 1_795_471_692_000_000,
    ) -> Version:
        version = make_version(seq, event_time_us=event_time_us)
        self._versions[version.name] = version
        self.scorers[version.name] = scorer or FakeScorer(version.name)
        return version

    def publish(self, seq: int, scorer: Scorer | None = None) -> Version:
        version = self.add(seq, scorer)
        self._announced = version.name
        return version

    def announced(self) -> str | None:
        if self.failure is not None:
            raise self.failure
        return self._announced

    def readable(self) -> list[Version]:
        return sorted(self._versions.values(), key=lambda version: version.seq)

    def version(self, name: str) -> Version:
        if name not in self._versions:
            raise VersionMissing(name, root=Path("store"), known=sorted(self._versions))
        return self._versions[name]

    def load(self, version: Version, *, threads: int = 1) -> Scorer:
        if version.name in self.corrupt:
            file = f"{version.name}/model.safetensors"
            raise Corrupt(file, expected="sha256 aaaa", found="sha256 bbbb")
        self.loaded.append(version.name)
        self.on_load(version.name)
        return self.scorers[version.name]

    def aliases(self) -> dict[str, str | None]:
        return dict(self._aliases)

    def pin(self, name: str | None) -> None:
        self._aliases["pinned"] = name

    def promote(self, version: Version) -> None:
        if self._aliases.get("pinned") not in (None, version.name):
            return
        champion = self._aliases["champion"]
        self._aliases |= {"champion": version.name, "previous": champion}

    def fresh_events(self, after: str | None, upto: str) -> list[tuple[int, int]]:
        floor = 0 if after is None else int(after[1:])
        names = [name for name in self.fresh if floor < int(name[1:]) <= int(upto[1:])]
        return sorted(pair for name in names for pair in self.fresh[name])
