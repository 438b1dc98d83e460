"""Operator commands that need Kafka: brokers, store and settings, wired to one call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from consumers.events import Kind
from consumers.kafka.admin import KafkaAdmin
from consumers.kafka.source import KafkaSource
from consumers.source import Source
from deploy.admin import lineage
from deploy.admin.offsets import describe as describing
from deploy.admin.offsets import reset as resetting
from deploy.admin.offsets.plan import Group, ResetRequest
from deploy.admin.replay import command as replaying
from deploy.admin.replay.request import Log, ReplayRequest
from deploy.process.terminal import Output
from deploy.settings.tree import Settings
from deploy.verification import log_sums, recount
from learner.artifact import Store


def describe(settings: Settings, out: Output, group: str | None, *, watch: bool) -> int:
    """Write the offsets of a group; see `describe.describe`."""
    store, about = Store(settings.store.root), _group(settings, group)
    with KafkaAdmin(settings.kafka) as brokers:
        return describing.describe(about, brokers, store, out, watch=watch)


def reset(settings: Settings, out: Output, group: str, request: ResetRequest) -> int:
    """Plan and move; see `reset.reset`."""
    store, about = Store(settings.store.root), _group(settings, group)
    with KafkaAdmin(settings.kafka) as brokers:
        return resetting.reset(request, about, brokers, store, out)


def replay(settings: Settings, out: Output, request: ReplayRequest, *, learn: str) -> int:
    """Plan, and leave the plan as a command; see `command.run`."""
    store = Store(settings.store.root)
    with KafkaAdmin(settings.kafka) as brokers:
        return replaying.run(request, _log(settings, brokers), store, out, learn=learn)


def cancel(settings: Settings, out: Output, *, yes: bool) -> int:
    """End a replay; see `command.cancel`."""
    store = Store(settings.store.root)
    with KafkaAdmin(settings.kafka) as brokers:
        return replaying.cancel(store, _log(settings, brokers), out, yes=yes)


def verify(
    settings: Settings,
    out: Output,
    version: str | None,
    since: str | None,
    *,
    deep: bool = False,
    pace: Callable[[], None] = lambda: None,
) -> int:
    """Recount from Kafka; see `recount.run`."""
    with KafkaAdmin(settings.kafka) as brokers:
        log = log_sums.Log(
            topics=_events(settings),
            beginning_offsets=brokers.beginning_offsets,
            open=lambda: _reader(settings),
            pace=pace,
        )
        store, again = Store(settings.store.root), None
        if deep:
            from deploy.verification.deep import deep as learn_again

            again = learn_again(settings, store, out)
        return recount.run(
            store,
            log,
            out,
            name=version,
            since=since,
            journal=lambda start, end: lineage.slices(store, start, end),
            deep=again,
        )


def _group(settings: Settings, name: str | None) -> Group:
    own = settings.kafka.group_id
    return Group(name=name or own, own=own, own_topics=tuple(settings.kafka.topics.kinds()))


def _log(settings: Settings, brokers: KafkaAdmin) -> Log:
    kinds = settings.kafka.topics.kinds()
    return Log(kinds=kinds, brokers=brokers, open=lambda: _reader(settings))


def _events(settings: Settings) -> list[str]:
    return [topic for topic, kind in settings.kafka.topics.kinds().items() if kind is not Kind.ITEM]


def _reader(settings: Settings) -> contextlib.AbstractContextManager[Source]:
    """Open the topics of events, read as the learner reads them."""
    return contextlib.closing(KafkaSource(settings.kafka, _events(settings)).start())
