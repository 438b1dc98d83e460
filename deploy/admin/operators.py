"""The operator's commands that need Kafka, wired: brokers, store and settings to one call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from consumers.events import Kind
from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.source import KafkaSource
from consumers.source import Source
from deploy.admin import lineage, offsets
from deploy.admin import replay as replays
from deploy.process.terminal import Output
from deploy.settings.tree import Settings
from deploy.verification import recount as verifying
from learner.artifact import Store


def describe(settings: Settings, out: Output, group: str | None, *, watch: bool) -> int:
    """Write where a group stands; see `offsets.describe`."""
    with KafkaAdmin(settings.kafka) as admin:
        return offsets.describe(
            _group(settings, group), admin, Store(settings.store.root), out, watch=watch
        )


def reset(settings: Settings, out: Output, group: str, request: offsets.ResetRequest) -> int:
    """Plan and move; see `offsets.reset`."""
    with KafkaAdmin(settings.kafka) as admin:
        return offsets.reset(
            request, _group(settings, group), admin, Store(settings.store.root), out
        )


def replay(settings: Settings, out: Output, request: replays.ReplayRequest, *, learn: str) -> int:
    """Plan and order; see `replay.run`."""
    with KafkaAdmin(settings.kafka) as admin:
        return replays.run(
            request, _log(settings, admin), Store(settings.store.root), out, learn=learn
        )


def cancel(settings: Settings, out: Output, *, yes: bool) -> int:
    """End a replay; see `replay.cancel`."""
    with KafkaAdmin(settings.kafka) as admin:
        return replays.cancel(Store(settings.store.root), _log(settings, admin), out, yes=yes)


def verify(
    settings: Settings,
    out: Output,
    version: str | None,
    since: str | None,
    *,
    deep: bool = False,
    pace: Callable[[], None] = lambda: None,
) -> int:
    """Recount from Kafka; see `verify.run`."""
    with KafkaAdmin(settings.kafka) as admin:
        log = verifying.Log(
            topics=_events(settings),
            beginning_offsets=admin.beginning_offsets,
            open=lambda: _reader(settings),
            pace=pace,
        )
        store, again = Store(settings.store.root), None
        if deep:
            from deploy.verification import relearn as learning

            again = learning.deep(settings, store, out)
        return verifying.run(
            store,
            log,
            out,
            name=version,
            since=since,
            journal=lambda start, end: lineage.slices(store, start, end),
            deep=again,
        )


def _group(settings: Settings, name: str | None) -> offsets.Group:
    own = settings.kafka.group_id
    return offsets.Group(name=name or own, own=own, own_topics=tuple(settings.kafka.topics.kinds()))


def _log(settings: Settings, admin: KafkaAdmin) -> replays.Log:
    return replays.Log(
        kinds=settings.kafka.topics.kinds(), admin=admin, open=lambda: _reader(settings)
    )


def _events(settings: Settings) -> list[str]:
    return [topic for topic, kind in settings.kafka.topics.kinds().items() if kind is not Kind.ITEM]


def _reader(settings: Settings) -> contextlib.AbstractContextManager[Source]:
    """Open the topics of events, read as the learner reads them."""
    return contextlib.closing(KafkaSource(settings.kafka, _events(settings)).start())
