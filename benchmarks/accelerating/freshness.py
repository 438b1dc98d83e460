"""Training while versions are published and served from the same device.

A sample is as old as its step's beginning: what Kafka and the join add is not in here.
"""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from learner.artifact import Document, ScoringInput, Store
from learner.store.blobs import Disk
from learner.store.checkpoint import Checkpointer
from learner.store.writer import BackgroundWriter
from learner.trainer import Trainer
from tests.learner.saving import cut, start
from tests.learner.training import batches, config, text
from weighting.config import WeigherConfig
from weighting.weigher import Weigher

_NUM_DOCUMENTS = 100
_POLL_SECONDS = 0.01


class _Serving(threading.Thread):
    """Loads each version that is announced, and notes when it first answered."""

    def __init__(self, store: Store) -> None:
        super().__init__(daemon=True)
        self._store = store
        self._ended = threading.Event()
        self.answered: dict[str, float] = {}
        self.rank_seconds: list[float] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._answer()
        except BaseException as error:
            self.error = error

    def _answer(self) -> None:
        documents = tuple(Document(text=text(number)) for number in range(_NUM_DOCUMENTS))
        loaded, scorer = None, None
        while not self._ended.is_set():
            name = self._store.announced()
            if name is not None and name != loaded:
                scorer, loaded = self._store.load(self._store.version(name)), name
            if scorer is None or loaded is None:
                time.sleep(_POLL_SECONDS)
                continue
            began = time.perf_counter()
            query = f"query number {len(self.rank_seconds)}"
            scorer.score([ScoringInput(query=query, documents=documents)])
            self.answered.setdefault(loaded, time.monotonic())
            self.rank_seconds.append(time.perf_counter() - began)
            time.sleep(_POLL_SECONDS)

    def end(self) -> None:
        self._ended.set()
        self.join()
        if self.error is not None:
            raise self.error


def freshness(device: str, *, model: str, tuning: str, precision: str, num_seconds: float) -> Any:
    """Learn for a while alone, then as long with publishing and serving; return both rates."""
    settings = config(
        model=model, tuning=tuning, precision=precision, device=device, lr=1e-5, loss="listwise"
    )
    stream = batches(200)
    with TemporaryDirectory() as folder:
        disk, root = Disk(), Path(folder)
        checkpointer = Checkpointer(root, disk, time.time)
        start(checkpointer, root, disk)
        trainer = Trainer(settings, Weigher(WeigherConfig()))
        for batch in stream[:5]:
            trainer.step(batch)
        alone, _ = _learn(trainer, stream, num_seconds, None)
        serving = _Serving(Store(root, device=device))
        serving.start()
        writer = BackgroundWriter(checkpointer)
        try:
            beside, begun = _learn(trainer, stream, num_seconds, writer)
            writer.close()
            time.sleep(10 * _POLL_SECONDS)
        finally:
            serving.end()
    ages = [at - begun[name] for name, at in serving.answered.items() if name in begun]
    return {
        "freshness_p50_seconds": statistics.median(ages) if ages else None,
        "versions_served": len(ages),
        "training_loses": 1 - beside / alone,
        "samples_per_second_alone": alone,
        "rank_100_p50_ms": statistics.median(serving.rank_seconds) * 1e3,
    }


def _learn(
    trainer: Trainer, stream: Any, num_seconds: float, writer: BackgroundWriter | None
) -> tuple[float, dict[str, float]]:
    """Learn for so long; return samples per second, and when the newest step of a version began."""
    begun: dict[str, float] = {}
    in_flight, num_samples, number = 0.0, 0, 0
    first = time.monotonic()
    while (now := time.monotonic()) - first < num_seconds:
        batch = stream[number % len(stream)]
        trainer.step(batch)
        number, num_samples = number + 1, num_samples + len(batch)
        if writer is None:
            continue
        saved = writer.poll()
        if saved is not None and saved.version is not None:
            begun[saved.version.name] = in_flight
        if writer.submit(trainer.copied(), cut(trainer.step_number)):
            in_flight = now
    return num_samples / (time.monotonic() - first), begun
