"""The real server with a paced scorer: a batch takes as long as its documents say, in a sleep.

    python -m benchmarks.overloading.server --capacity C

Prints its URL on the first line; ends by SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from benchmarks.overloading.load import NUM_DOCUMENTS
from deploy.roles.serve import ServingRole
from deploy.settings.config import ServingConfig
from deploy.settings.tree import Settings
from learner.artifact import Document, Scores, ScoringInput
from learner.config import StoreConfig
from tests.fakes.scorer import FakeScorer, FakeStore


class PacedScorer(FakeScorer):
    """A scorer that sleeps: `capacity` requests of the load generator per second."""

    def __init__(self, capacity: float) -> None:
        """Name the version; `capacity` is in requests per second."""
        super().__init__("v000001")
        self._seconds_per_document = 1.0 / (capacity * NUM_DOCUMENTS)

    def score(self, requests: Sequence[ScoringInput]) -> list[Scores]:
        """Sleep, then score; unlike a fake for tests, remember nothing, and calculate nothing."""
        time.sleep(sum(len(r.documents) for r in requests) * self._seconds_per_document)
        return [self._same(len(request.documents)) for request in requests]

    @cache  # noqa: B019  # one scorer per process
    def _same(self, num_documents: int) -> Scores:
        return self._scores(ScoringInput(query="", documents=(Document(text=""),) * num_documents))


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capacity", type=float, required=True)
    capacity = parser.parse_args().capacity
    store = FakeStore()
    store.publish(1, PacedScorer(capacity))
    with tempfile.TemporaryDirectory() as folder:
        serving = ServingConfig(port=0)
        settings = replace(Settings(), serving=serving, store=StoreConfig(root=Path(folder)))
        role = ServingRole(settings, store=store)
        print(role.url, flush=True)
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        thread = threading.Thread(target=role.run)
        thread.start()
        stop.wait()
        role.stop()
        thread.join()


if __name__ == "__main__":
    main()
