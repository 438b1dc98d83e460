"""Steps of the journal between two versions, where they can be taken again to the byte."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.roles import wiring
from deploy.settings.tree import Settings
from learner.artifact import Corrupt, Store, Version
from learner.process_group import SingleProcess
from learner.store.blobs import Disk
from learner.store.journal.records import JournalPosition, Outcome, Step
from learner.store.journal.tail import read_tail


class Unlearnable(Exception):
    """Steps between two versions cannot be learned again here to the byte."""


def refuse_other_environment(settings: Settings, since: Version, until: Version) -> None:
    """Refuse versions made under other settings, in another environment, or by several ranks.

    Raises:
        Unlearnable: names the version and what differs.
    """
    config = wiring.config_sha256(settings)
    environment = wiring.fingerprint(settings, SingleProcess())
    for version in (since, until):
        if version.journal is None:
            raise Unlearnable(f"{version.name}: no journal: not learned again here")
        if version.run_state.world_size != 1:
            raise Unlearnable(f"{version.name}: several ranks: not learned again here")
        if version.manifest["config_sha256"] != config:
            raise Unlearnable(
                f"{version.name} was made under other settings: give those of its learner"
            )
        known = version.manifest["fingerprint"]
        other = sorted(key for key, value in environment.items() if known.get(key) != value)
        if other:
            raise Unlearnable(
                f"{version.name} was made in another environment ({', '.join(other)}): equal "
                "within a tolerance only"
            )


def refuse_commands_between(store: Store, since: Version, until: Version) -> None:
    """Refuse where an operator command, or a new environment, lies between two versions.

    Raises:
        Unlearnable: learning again would rightly end on other bytes.
    """
    before, after = since.run_state, until.run_state
    if before.bit_exact != after.bit_exact or before.exclusions != after.exclusions:
        raise Unlearnable(
            f"between {since.name} and {until.name} the environment or the exclusions changed"
        )
    for between in _passed(store.manifests(), since, until):
        replay = between.run_state.replay
        anew = between.kind == "restore" and replay is not None and replay.mode == "anew"
        if between.kind == "reset" or anew:
            raise Unlearnable(
                f"between {since.name} and {until.name} lies an operator command ({between.kind}, "
                f"{between.name}): begin behind it"
            )


def journaled_steps(
    store: Store, since: Version, until: Version
) -> list[tuple[JournalPosition, Step, Outcome | None]]:
    """Return the journal from one version to the other: each step, with the place behind it.

    Raises:
        Corrupt: the journal does not lead there.
        Unlearnable: the journal is gone, or is of another timeline.
    """
    start, end = place_of(since)[0], place_of(until)[0]
    if not any(span.holds(start) for span in until.timeline):
        raise Unlearnable(
            f"the journal behind {since.name} is gone, or {until.name} did not come from it"
        )
    steps: list[tuple[JournalPosition, Step, Outcome | None]] = []
    if start == end:
        return steps
    tail = read_tail(store.root, Disk(), until.timeline, start)
    for place, record in tail.records:
        if isinstance(record, Step):
            steps.append((place, record, None))
        elif steps:
            steps[-1] = (place, steps[-1][1], record)
        if place == end:
            return steps
    expected = f"whole records up to byte {end.byte}"
    why = tail.damage.reason if tail.damage else "the end of the journal"
    raise Corrupt(f"journal/{end.segment}", expected=expected, found=why)


def place_of(version: Version) -> tuple[JournalPosition, int]:
    """Return a version's place in the journal, and its number of polls of the next record."""
    assert version.journal is not None
    return version.journal.place, sum(version.journal.skip)


def _passed(manifests: Iterable[Version], since: Version, until: Version) -> list[Version]:
    """Return the manifests between two versions that are in the timeline of the later one."""
    superseded = until.run_state.superseded
    return [
        manifest
        for manifest in manifests
        if since.seq < manifest.seq < until.seq
        and not any(first <= manifest.seq < end for first, end in superseded)
    ]
