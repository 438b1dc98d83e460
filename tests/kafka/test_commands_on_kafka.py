"""Operator commands carried out by the real learner: while it runs, at its start, or not."""

from __future__ import annotations

import shutil
import time
import weakref
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deploy.admin import kafka_commands
from deploy.admin.offsets.plan import ResetRequest
from deploy.admin.offsets.scopes import Scope
from deploy.admin.offsets.targets import Target
from deploy.errors import Unsafe
from deploy.roles.learn import LearnRole
from learner.artifact import Store
from learner.config import StoreConfig
from learner.errors import Diverged
from learner.store import commands
from learner.store.blobs import Disk
from learner.trainer import Trainer
from learner.training.prepared import Prepared
from learner.training_step import StepReport
from tests.kafka.conftest import Cluster
from tests.kafka.learning import (
    NEWCOMER,
    Learner,
    Shop,
    contents,
    early,
    files_of,
    give,
    json_output,
    last_clients,
    open_shop,
    outcomes,
    trained,
)


class Killed(Exception):
    """Stands for whatever ends a process in the middle."""


@pytest.fixture(scope="module")
def shop(broker: Cluster) -> Shop:
    return open_shop(broker, num_events=1500)


@pytest.fixture(scope="module", autouse=True)
def learned(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose learner has read all of the log and was stopped."""
    root = tmp_path_factory.mktemp("learned") / "store"
    shop.begin()
    with Learner(shop.at(root)) as learner:
        learner.version(lambda version: version.step > 0)
        shop.end()
        wanted = shop.trained()
        learner.version(lambda version: trained(version).num >= wanted.num)
    newest = Store(root).versions()[-1]
    assert (trained(newest), newest.next_offsets) == (wanted, shop.ends)
    assert len(Store(root).versions()) > 3
    return root


@pytest.fixture
def root(learned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(learned, tmp_path / "store"))


def test_a_running_learner_goes_back_and_repeats_it_bit_by_bit(shop: Shop, root: Path) -> None:
    settings, store = shop.at(root), Store(root)
    states: list[Any] = []

    def each(report: StepReport, trainer: Trainer) -> None:
        states.append((commands.answered(root, 1) or {}).get("state"))

    with Learner(settings, each) as learner:
        before = learner.version(lambda version: version.epoch == 2)
        assert not states, "there was nothing left to learn"
        version = early(store)
        assert give(settings, version=version.name) == 1
        announced = [store.announced()]

        def look() -> str | None:
            announced.append(store.announced())
            answer = commands.answered(root, 1) or {}
            return "over" if answer.get("state") == commands.DONE else None

        learner.until(look)
        after = learner.version(lambda version: version.epoch == 3)
        progress = learner.role.registry.get_sample_value(
            "steelyard_replay_progress_ratio", {"target": "live"}
        )
    assert progress == 1
    assert states == [commands.TAKEN] * (before.step - version.step), (
        "each step was done again, once"
    )
    assert announced == sorted(announced, key=str), "what serves did not go back"
    assert (after.step, trained(after), after.next_offsets) == (
        before.step,
        trained(before),
        shop.ends,
    )
    assert contents(after) == contents(before)
    assert after.run_state.bit_exact
    (restore,) = [found for found in store.manifests() if found.kind == "restore"]
    assert (restore.parent, restore.run_state.commands_taken) == (version.name, 1)
    assert before.name not in {kept.name for kept in store.lineage(after.name)}


def test_a_command_given_while_nobody_learns_is_taken_at_the_next_start_also_under_other_settings(
    shop: Shop, root: Path
) -> None:
    store = Store(root)
    before = store.versions()[-1]
    settings = shop.at(root, lr=2e-4)
    command_id = give(settings, version=early(store).name, mode="anew")

    def each(report: StepReport, trainer: Trainer) -> None:
        if report.step > early_step + 3:
            raise Killed

    early_step = early(store).step
    with pytest.raises(Killed):
        LearnRole(settings).run(each)
    with Learner(settings) as learner:  # a crash in the middle of it
        learner.answered(command_id, commands.DONE)  # all is read; the last batch may wait yet
        learner.version(lambda version: trained(version).num >= trained(before).num)
    after = store.versions()[-1]
    assert (trained(after), after.next_offsets) == (trained(before), shop.ends)
    assert contents(after)["model.safetensors"] != contents(before)["model.safetensors"]
    assert store.announced() == after.name


def test_who_is_excluded_is_in_nothing_that_was_trained_on_from_then_on(
    shop: Shop, root: Path, tmp_path: Path
) -> None:
    store = Store(root)
    oldest = next(version for version in store.versions() if version.step > 0)
    assert NEWCOMER not in last_clients(2)
    without = shop.trained(without=NEWCOMER)
    assert without.num < shop.trained().num
    listed = tmp_path / "excluded"
    listed.write_text(f"client_id:{NEWCOMER}\n")
    settings = shop.at(root)
    with Learner(settings) as learner:
        learner.version(lambda version: version.epoch == 2)
        command_id = give(settings, exclude=listed)
        learner.answered(command_id, commands.DONE)
        learner.version(lambda version: trained(version).num >= without.num)
    after = store.versions()[-1]
    assert (trained(after), after.next_offsets) == (without, shop.ends)
    assert outcomes(after)["excluded"] > 0
    exclusions = after.run_state.exclusions
    assert exclusions is not None
    assert (exclusions.num, exclusions.command) == (1, command_id)
    assert not any(NEWCOMER.encode() in data for path, data in files_of(root / "control")), (
        "a list names nobody"
    )
    with Learner(settings) as learner:  # after a restart it holds, for a replay as well
        assert (
            learner.version(lambda version: version.epoch == 4).run_state.exclusions == exclusions
        )
        learner.answered(give(settings, version=after.name, mode="as-it-was"), commands.DONE)
        learner.answered(give(settings, version=oldest.name, mode="anew"), commands.DONE)
        learner.version(lambda version: trained(version).num >= without.num)
    again = store.versions()[-1]
    assert trained(again) == without
    assert again.run_state.exclusions is not None
    assert again.run_state.exclusions.sha256 == exclusions.sha256


def test_offsets_moved_back_are_read_again_and_what_dedup_still_knows_counts_once(
    shop: Shop, root: Path
) -> None:
    settings, store = shop.at(root), Store(root)
    topic = settings.kafka.topics.exposures
    assert topic is not None
    with Learner(settings) as learner:
        before = learner.version(lambda version: version.epoch == 2)
        group = settings.kafka.group_id
        request = ResetRequest(
            scope=Scope(topics=(topic,)),
            target=Target(name="shift-by", value="-1"),
            execute=True,
            yes=True,
        )
        out, written = json_output()
        assert kafka_commands.reset(settings, out, group, request) == 0
        learner.answered(written[-1]["order"], commands.DONE)
        after = learner.version(
            lambda version: version.epoch == 3 and version.next_offsets == shop.ends
        )
    assert outcomes(after) - outcomes(before) == {"duplicate": 2}
    assert trained(after) == trained(before)
    with Learner(settings) as learner:
        later = learner.version(lambda version: version.epoch == 4)
    for version in (after, later):
        (reset,) = version.run_state.resets
        assert reset.offsets == {
            topic: {p: (shop.ends[topic, p], shop.ends[topic, p] - 1) for p in range(2)}
        }
    assert store.announced() == later.name


def test_a_replay_that_is_cancelled_ends_where_it_began(shop: Shop, root: Path) -> None:
    settings, store = shop.at(root), Store(root)
    replaying, cancelled = Event(), Event()

    def each(report: StepReport, trainer: Trainer) -> None:
        replaying.set()
        assert cancelled.wait(60)

    with Learner(settings, each) as learner:
        before = learner.version(lambda version: version.epoch == 2)
        assert give(settings, version=early(store).name, mode="anew") == 1
        assert replaying.wait(60)
        out, written = json_output()
        assert kafka_commands.cancel(settings, out, yes=True) == 0
        cancelled.set()
        learner.answered(written[-1]["order"], commands.DONE)
        learner.answered(1, commands.WITHDRAWN)
        after = learner.version(lambda version: version.run_state.commands_taken == 2)
    assert (trained(after), after.next_offsets) == (trained(before), shop.ends)
    assert contents(after) == contents(before)
    assert store.announced() == after.name


def test_a_command_that_is_not_what_was_planned_is_refused_and_the_learner_goes_on(
    shop: Shop, root: Path
) -> None:
    settings, store = shop.at(root), Store(root)
    with Learner(settings) as learner:
        before = learner.version(lambda version: version.epoch == 2)
        first = give(settings, version=early(store).name)
        plan = commands.read(root, Disk(), first).plan
        learner.answered(first, commands.DONE)
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"self": "0" * 64}, "not the one that was planned with"),
            ({"version": "v999999"}, "v999999"),
            ({"mode": "backwards"}, "backwards"),
            ({"exclude": "0" * 64}, "exclusions"),
        ]
        for changes, reason in wrong:
            command = commands.write(
                root, Disk(), "replay", plan | changes, now_us=int(time.time() * 1e6)
            )
            assert reason in learner.answered(command.id, commands.REFUSED)["reason"]
        beyond = {"offsets": {settings.kafka.topics.clicks: {"0": 1 << 40}}}
        command = commands.write(root, Disk(), "reset", beyond, now_us=int(time.time() * 1e6))
        assert "is not between" in learner.answered(command.id, commands.REFUSED)["reason"]
        newest = learner.version(lambda version: version.run_state.commands_taken == first)
        last = give(settings, version=newest.name)
        learner.answered(last, commands.DONE)
    after = store.versions()[-1]
    assert (trained(after), after.next_offsets, after.run_state.commands_taken) == (
        trained(before),
        shop.ends,
        last,
    )


@pytest.mark.parametrize("mode", ["as-it-was", "anew"])
def test_a_shadow_is_learned_to_its_end_and_the_live_store_is_left_alone(
    shop: Shop, root: Path, tmp_path: Path, mode: str
) -> None:
    before = dict(files_of(root))
    version = early(Store(root))
    shadow = tmp_path / "shadow"
    give(shop.at(root), version=version.name, mode=mode, into="shadow", shadow_root=shadow)
    settings = replace(shop.at(root), store=StoreConfig(root=shadow, keep=100))
    LearnRole(settings).run()  # it ends by itself
    after = Store(shadow).versions()[-1]
    assert after.next_offsets == shop.ends
    if mode == "as-it-was":
        assert contents(after) == contents(Store(root).versions()[-1])
    else:  # what waits for the rest of its batch is in the state, and stays there
        assert 0 <= shop.trained().num - trained(after).num < settings.learner.batch_size
    assert commands.answered(shadow, 1) == {"state": commands.DONE}
    assert Store(shadow).announced() == after.name
    assert dict(files_of(root)) == before


def test_a_model_that_diverges_goes_back_and_leaves_those_steps_out(
    shop: Shop, tmp_path: Path
) -> None:
    bad: list[int] = []
    made: list[weakref.ref[Trainer]] = []
    num_left: list[int] = []

    class Spiky(Trainer):
        """Diverges once, in a step after a checkpoint."""

        def __init__(self, *given: Any) -> None:
            num_left.append(sum(model() is not None for model in made))
            super().__init__(*given)
            made.append(weakref.ref(self))

        def take(self, prepared: Prepared, counts: NDArray[np.float64] | None = None) -> StepReport:
            if not bad and self.step_number >= 8:
                bad.append(self.step_number + 1)
                raise Diverged(
                    first_step=bad[0], last_step=bad[0], reason="a loss far beyond the others"
                )
            return super().take(prepared, counts)

    root = tmp_path / "store"
    with Learner(shop.at(root), trainer=Spiky) as learner:
        learner.version(
            lambda version: (
                version.next_offsets == shop.ends and version.num_samples == shop.trained().num
            )
        )
    after = Store(root).versions()[-1]
    assert after.run_state.quarantine == ((bad[0], bad[0] + 1),)
    assert 0 < trained(after).num < shop.trained().num
    (restore,) = [found for found in Store(root).manifests() if found.kind == "restore"]
    assert restore.step < bad[0]
    assert Store(root).announced() == after.name
    assert num_left == [0, 0], "the model that diverged is gone before the next one is made"


def test_steps_under_other_settings_are_not_done_again_unless_asked_and_then_each_event_counts_once(
    shop: Shop, tmp_path: Path
) -> None:
    settings = shop.at(tmp_path / "store")

    def each(report: StepReport, trainer: Trainer) -> None:
        if Store(tmp_path / "store").versions() and report.step > 5:
            raise Killed

    with pytest.raises(Killed):
        LearnRole(
            replace(settings, learner=replace(settings.learner, publish_every_seconds=3600.0))
        ).run(each)
    other = replace(settings, learner=replace(settings.learner, lr=2 * settings.learner.lr))
    with pytest.raises(Unsafe, match="--accept-config"):
        LearnRole(other).run()
    with pytest.raises(Killed):  # and again, before there is a checkpoint under them
        LearnRole(
            replace(other, learner=replace(other.learner, publish_every_seconds=3600.0)),
            accept_config=True,
        ).run(each)
    with Learner(other) as learner:
        learner.version(lambda version: trained(version).num >= shop.trained().num)
    after = Store(tmp_path / "store").versions()[-1]
    assert (trained(after), after.next_offsets) == (shop.trained(), shop.ends)
