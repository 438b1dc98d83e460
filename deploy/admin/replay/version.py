"""The version that a replay goes back to: whole, and all that comes after it still in the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deploy.admin import checkpoints, lineage
from deploy.admin.brokers import offsets_at
from deploy.admin.offsets import targets
from deploy.admin.offsets.scopes import printed
from deploy.admin.offsets.targets import Target
from deploy.admin.replay.request import Log, ReplayRequest
from deploy.errors import Unsafe
from deploy.settings.units import format_time
from learner.artifact import Corrupt, Store, Version
from weighting.provenance import TopicPartition


def choose(
    request: ReplayRequest,
    log: Log,
    store: Store,
    head: Version,
    first_excluded: Mapping[TopicPartition, int],
    *,
    now_us: int,
) -> Version:
    """Return the version to go back to.

    Args:
        request: how far back.
        log: what is retained.
        store: the versions.
        head: the newest manifest.
        first_excluded: per partition, the first record that is to be left out.
        now_us: microseconds since the Unix epoch.

    Raises:
        Unsafe: none fits; names the oldest, or the newest, that does.
    """
    chain = lineage.lineage(store, head)
    begins = log.brokers.beginning_offsets(log.events)
    ends = log.brokers.end_offsets(log.events)
    if request.version is not None:
        version = _named(request.version, store, chain, first_excluded)
    else:
        at_most = first_excluded
        if request.target is not None:
            at_most = _at_most(request.target, log, ends, chain, first_excluded, now_us)
        found = lineage.newest_within(chain, at_most)
        if found is None:
            oldest = _oldest_retained(chain, begins)
            raise Unsafe(f"no kept version is that old. {_instead(oldest)}")
        version = found
    _refuse_other_log(version, log, begins, ends, chain)
    try:
        store.verify(version)
    except Corrupt as error:
        older = [kept for kept in chain if kept.seq < version.seq]
        hint = _instead(older[0] if older else None, "newest")
        raise Unsafe(f"{version.name} is damaged: {error} {hint}") from error
    return version


def refuse_without_journal(version: Version, head: Version, store: Store) -> None:
    """Refuse to repeat the journal from `version` on where it cannot be repeated.

    Raises:
        Unsafe: a part of the journal is missing, or what counts was decided anew since.
    """
    if reason := _not_repeatable(version, head, store):
        raise Unsafe(
            f"as it was cannot be repeated: {reason}. Add --mode anew: each record still counts "
            "once, in the log's own order."
        )


def _named(
    name: str,
    store: Store,
    chain: Sequence[Version],
    first_excluded: Mapping[TopicPartition, int],
) -> Version:
    version = checkpoints.find(store, name)
    if version.kind != "checkpoint":
        raise Unsafe(
            f"{version.name} is a {version.manifest['kind']} and no state of its own. "
            "`steelyard checkpoints list` shows versions."
        )
    if lineage.newest_within([version], first_excluded) is None:
        hint = _instead(lineage.newest_within(chain, first_excluded), "newest")
        raise Unsafe(f"{version.name} contains records that are to be left out. {hint}")
    return version


def _at_most(
    target: Target,
    log: Log,
    ends: Mapping[TopicPartition, int],
    chain: Sequence[Version],
    first_excluded: Mapping[TopicPartition, int],
    now_us: int,
) -> dict[TopicPartition, int]:
    """Return per partition the first record at or after a time; each must have one."""
    time_us = targets.parse_when(target, now_us)
    found = offsets_at(log.brokers, sorted(ends), time_us)
    known = {
        tp: min(at[0], first_excluded.get(tp, at[0])) for tp, at in found.items() if at is not None
    }
    if unknown := [tp for tp in sorted(ends) if found.get(tp) is None]:
        hint = _instead(lineage.newest_within(chain, known), "newest")
        raise Unsafe(
            f"{target.shown()}: no record at or after {format_time(time_us)} in "
            f"{printed(unknown)}, so there is no offset for it: that is taken neither for the end "
            f"nor for the beginning. Give a version instead. {hint}"
        )
    return known


def _refuse_other_log(
    version: Version,
    log: Log,
    begins: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    chain: Sequence[Version],
) -> None:
    """Refuse a version after which the log lacks records, or is another log."""
    if not lineage.retained(version, begins):
        lost = [
            f"{topic}[{p}]@{offset} (retained from {begins[topic, p]})"
            for (topic, p), offset in version.next_offsets.items()
            if offset < begins.get((topic, p), 0)
        ]
        hint = _instead(_oldest_retained(chain, begins))
        raise Unsafe(
            f"{version.name} would go on with records that retention took: {', '.join(lost)}. "
            f"{hint}"
        )
    beyond = [tp for tp, offset in version.next_offsets.items() if offset > ends.get(tp, offset)]
    if beyond:
        raise Unsafe(
            f"{version.name} goes on behind the end of {printed(beyond)}: the log was truncated, "
            "or is another one."
        )
    ids = log.brokers.topic_ids()
    for topic, known in (version.manifest.get("inputs") or {}).items():
        if topic in ids and known.get("id") not in (None, "", ids[topic]):
            raise Unsafe(
                f"{topic} was recreated since {version.name}: its offsets mean other records now."
            )


def _not_repeatable(version: Version, head: Version, store: Store) -> str | None:
    """Return why the journal cannot be repeated from `version` on, None if it can."""
    if not version.manifest.get("journal"):
        return f"{version.name} has no place in a journal"
    if version.manifest.get("exclusions") != head.manifest.get("exclusions"):
        return f"since {version.name} exclusions came into force"
    if version.name not in {kept.name for kept in lineage.lineage(store, head)}:
        return f"{version.name} is superseded: the journal after it is of another timeline"
    names = [span[0] for span in head.manifest.get("timeline") or ()]
    start = version.manifest["journal"]["segment"]
    needed = names[names.index(start) :] if start in names else [start]
    gone = [name for name in needed if not (store.root / "journal" / name).is_file()]
    return f"journal segment {gone[0]} is gone" if gone else None


def _oldest_retained(
    chain: Sequence[Version], begins: Mapping[TopicPartition, int]
) -> Version | None:
    retained = [version for version in chain if lineage.retained(version, begins)]
    return min(retained, key=lambda version: version.seq, default=None)


def _instead(version: Version | None, which: str = "oldest") -> str:
    if version is None:
        return (
            "No kept version works: what is in all of them is only got rid of by learning anew in "
            "an empty store. Nothing was written."
        )
    return (
        f"The {which} version that still works: steelyard replay --from-checkpoint "
        f"{version.name}. Nothing was written."
    )
