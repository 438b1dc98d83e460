"""Clicks that come after their lists were closed: what is served in whatever order they come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from consumers.events import Candidate, encode_click, encode_exposure
from consumers.pipeline import BatchConfig
from learner.artifact import Document, ScoringInput, Store
from learner.trainer import Trainer
from tests.consumers.bench import Bench
from tests.consumers.shop import START_US
from tests.consumers.single import empty
from tests.fakes.log import Log
from tests.learner.training import published, trainer
from tests.weighting.streams import SECOND
from weighting.sample import Batch
from weighting.tasks import CLICK

Array = NDArray[np.float64]
QUERY, NUM_LISTS = "red running shoes", 60
TEXTS = {"A": "trail running shoe, red", "B": "running socks", "C": "road running shoe, blue"}
CLICKED = range(0, NUM_LISTS, 3)
ORDERS = {"by time": 1, "all lists first": NUM_LISTS, "half of the lists first": NUM_LISTS // 2}
"""Number of lists that come before the clicks on them."""


def shown(log: Log, number: int, at: int | None = None) -> None:
    """A list of another client, one a second."""
    at, client = START_US + (number if at is None else at) * SECOND, f"c-{number}"
    value = encode_exposure(
        query_id=f"q-{number}",
        client_id=client,
        time_us=at,
        user_query=QUERY,
        hits=list(TEXTS),
        candidates=[Candidate(name, text) for name, text in TEXTS.items()],
    )
    log.append("exposures", 0, value, key=client.encode(), timestamp_us=at)


def clicked(log: Log, number: int, at: int | None = None) -> None:
    at, client = START_US + (number + 2 if at is None else at) * SECOND, f"c-{number}"
    value = encode_click(
        query_id=f"q-{number}", client_id=client, object_id="A", time_us=at, event_id=f"e{number}"
    )
    log.append("clicks", 0, value, key=client.encode(), timestamp_us=at)


def arrivals(together: int, log: Log) -> Iterator[None]:
    """Write the same events in an order; what is there is read and learned at each `yield`."""
    for start in range(0, NUM_LISTS, together):
        lists = range(start, start + together)
        for number in lists:
            shown(log, number)
        if together > 1:
            yield
        for number in lists:
            if number in CLICKED:
                clicked(log, number)
        if together > 1:
            yield
    yield
    for number in range(NUM_LISTS, NUM_LISTS + 16):  # others go on, and event time with them
        shown(log, number, at=number + 60)
        clicked(log, number, at=number + 60)
    yield


def asked(learner: Trainer, folder: Path) -> Array:
    """p(click) of the three products, as a server would answer."""
    store = Store(published(learner, folder).path.parents[1])
    documents = tuple(Document(id=name, text=text) for name, text in TEXTS.items())
    scorer = store.load(store.versions()[-1])
    (scores,) = scorer.score([ScoringInput(query=QUERY, documents=documents)])
    return scores.probability[CLICK]


def served(together: int, folder: Path) -> tuple[Trainer, list[Array]]:
    """The learner after all events, and p(click) after each step."""
    learner, log = trainer(tuning="top:1", loss="listwise", lr=1e-4), empty()
    bench = Bench(log, batch=BatchConfig(size=320, flush_seconds=1.0))
    found: list[Array] = []
    stream = bench.pipeline.batches()
    for _ in arrivals(together, log):
        quiet = 0
        while quiet < 60:
            item = next(stream)
            if isinstance(item, Batch):
                if item.samples:
                    learner.step(item.samples)
                    found.append(asked(learner, folder / f"{len(found)}"))
            else:
                quiet += log.exhausted
                bench.clock.advance(1)
    return learner, found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Trainer, list[Array]]]:
    stores = tmp_path_factory.mktemp
    return {order: served(number, stores("stores")) for order, number in ORDERS.items()}


@pytest.mark.parametrize("order", ORDERS)
def test_in_no_order_of_arrival_a_few_dozen_lists_make_a_click_certain_or_impossible(
    order: str, outcomes: dict[str, tuple[Trainer, list[Array]]]
) -> None:
    _, found = outcomes[order]
    assert len(found) > 1
    assert np.min(found) > 0.003
    assert np.max(found) < 0.9


@pytest.mark.parametrize("order", list(ORDERS)[1:])
def test_after_all_events_what_is_said_is_near_what_their_order_in_time_gives(
    order: str, outcomes: dict[str, tuple[Trainer, list[Array]]]
) -> None:
    (ordered, by_time), (learner, found) = outcomes["by time"], outcomes[order]
    assert learner.weigher.prior(CLICK) == pytest.approx(ordered.weigher.prior(CLICK), rel=0.2)
    logit = [np.log(each[-1] / (1 - each[-1])) for each in (by_time, found)]
    assert abs(logit[0] - logit[1]).max() < 2.5
    assert found[-1].argmax() == by_time[-1].argmax() == 0
