"""Replay: state and offsets go back together or not at all, as planned."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from consumers.codec import decode
from consumers.events import Kind
from consumers.exclusion import Exclusions
from deploy.admin import checkpoints, exclusions
from deploy.admin.offsets.targets import Target
from deploy.admin.replay import command as replay
from deploy.admin.replay.request import ANEW, AS_IT_WAS, Log, ReplayRequest
from deploy.errors import Unsafe, UsageError
from learner.artifact import Store
from learner.store import commands
from learner.store.blobs import Disk
from tests.deploy.stores import SAMPLES, SEGMENT, A, B, change, clicks, consumed
from tests.fakes.brokers import Brokers
from tests.fakes.disk import tree
from tests.fakes.paper import Paper

NOW = 1_700_000_000.0
CUTS = [{A: 0, B: 0}, {A: 10, B: 5}, {A: 20, B: 12}, {A: 40, B: 30}]
AGO = Target(name="by-duration", value="P1D")


class Operator:
    """An operator with a log and a store of four versions."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root / "store", clicks(50, 40)
        self.root.mkdir()
        self.brokers = Brokers({A: 50, B: 40})
        consumed(self.root, self.log, CUTS)
        self.paper = Paper()

    def asked(self) -> Log:
        return Log(
            kinds={"clicks": Kind.CLICK},
            brokers=self.brokers,
            open=lambda: contextlib.closing(self.log.reader()),
        )

    def run(self, *, as_json: bool = True, **given: Any) -> Any:
        self.paper = Paper()
        code = replay.run(
            ReplayRequest(**given),
            self.asked(),
            Store(self.root),
            self.paper.output(as_json=as_json),
            clock=lambda: NOW,
        )
        assert code == 0
        return self.paper.objects[0] if as_json else self.paper.text

    def cancel(self) -> Any:
        paper = Paper()
        assert (
            replay.cancel(
                Store(self.root),
                self.asked(),
                paper.output(as_json=True),
                yes=True,
                clock=lambda: NOW,
            )
            == 0
        )
        return paper.objects[0]


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path)


def test_a_plan_names_version_offsets_and_what_is_read_again_and_writes_nothing(
    operator: Operator,
) -> None:
    before = tree(operator.root)
    plan = operator.run(version="v000003")
    assert (plan["version"], plan["mode"], plan["executed"]) == ("v000003", AS_IT_WAS, False)
    assert [
        (r["partition"], r["current"], r["restart"], r["records"], r["end"])
        for r in plan["partitions"]
    ] == [
        (0, 40, 10, 30, 50),
        (1, 30, 5, 25, 40),
    ]
    assert plan["superseded"] == ["v000005", "v000004"]
    assert tree(operator.root) == before


def test_a_plan_has_the_steps_and_samples_of_the_journal_and_the_measured_rate(
    operator: Operator,
) -> None:
    """The journal has a step behind the third version and one more than the newest."""
    store = Store(operator.root)
    for version in store.versions():
        change(operator.root, version.name, samples=1000 * version.step, samples_per_second=50.0)
    plan = operator.run(version="v000003")
    assert (plan["steps"], plan["samples"], plan["seconds"]) == (2, 2 * SAMPLES, 2 * SAMPLES / 50)
    last = operator.run(version="v000005")
    assert (last["records_to_reread"], last["steps"], last["samples"]) == (0, 0, 0)
    text = operator.run(version="v000003", as_json=False)
    assert "Learns 2 steps, 800 samples, about 16 s at the measured 50 samples/s." in text


def test_a_plan_estimates_the_samples_of_records_beyond_the_newest_version(
    operator: Operator,
) -> None:
    for version in Store(operator.root).versions():
        change(operator.root, version.name, samples=700 * version.step, samples_per_second=50.0)
    plan = operator.run(version="v000003", mode=ANEW)
    num_steps, per_record = 2, 700 * 4 / 70
    assert plan["samples"] == num_steps * 700 + 20 * per_record
    assert plan["seconds"] == plan["samples"] / 50
    (command,) = [plan for plan in [operator.run(version="v000003", mode=ANEW)] if plan]
    assert command["since"] == 2 * 700


def test_a_person_reads_the_same_as_a_table(operator: Operator) -> None:
    text = operator.run(version="v000003", as_json=False)
    assert "PLAN  restore v000003" in text
    assert "clicks     0       40       10       30              0" in text
    assert "Re-reads 55 records in 2 partitions" in text
    assert text.endswith("nothing written. Add --execute to apply exactly this plan.")


def test_what_is_executed_is_what_was_planned(operator: Operator) -> None:
    plan = operator.run(version="v000003")
    done = operator.run(version="v000003", execute=True, yes=True)
    command = commands.pending(operator.root, 0)
    assert command is not None
    assert (command.kind, command.digest, done["order"]) == ("replay", plan["digest"], 1)
    assert command.plan["version"] == "v000003"
    assert command.plan["until"] == {"clicks": {"0": 50, "1": 40}}
    assert command.plan["self"] == Store(operator.root).version("v000003").manifest["self"]


def test_going_back_in_time_takes_the_newest_version_below_the_first_record_of_that_time(
    operator: Operator,
) -> None:
    operator.brokers.times = {A: (20, 0), B: (11, 0)}
    assert operator.run(target=AGO)["version"] == "v000003", "v000004 contains clicks[1]@11"
    operator.brokers.times = {A: (20, 0), B: (12, 0)}
    assert operator.run(target=AGO)["version"] == "v000004"


def test_a_partition_without_a_record_since_then_is_a_refusal_that_names_what_fits_the_others(
    operator: Operator,
) -> None:
    operator.brokers.times = {A: (20, 0), B: None}
    with pytest.raises(
        Unsafe, match=r"no record at or after .* in clicks\[1\].*--from-checkpoint v000004"
    ):
        operator.run(target=AGO, execute=True, yes=True)
    operator.brokers.silent = True
    with pytest.raises(Unsafe, match="Without an answer nothing is assumed"):
        operator.run(target=AGO, execute=True, yes=True)
    assert commands.pending(operator.root, 0) is None


def test_a_time_before_every_version_is_refused_with_the_oldest(
    operator: Operator,
) -> None:
    change(operator.root, "v000002", offsets={"clicks": {"0": 3, "1": 3}})
    operator.brokers.times = {A: (0, 0), B: (0, 0)}
    with pytest.raises(
        Unsafe,
        match=r"no kept version is that old\. The oldest version that still works: steelyard "
        "replay --from-checkpoint v000002",
    ):
        operator.run(target=AGO)


def test_a_version_whose_records_retention_took_is_refused_with_the_oldest_that_works(
    operator: Operator,
) -> None:
    operator.brokers.begins[A] = 15
    with pytest.raises(
        Unsafe, match=r"clicks\[0\]@10 \(retained from 15\).*--from-checkpoint v000004"
    ):
        operator.run(version="v000003", execute=True, yes=True)
    operator.brokers.begins[A] = 45
    with pytest.raises(Unsafe, match="No kept version works"):
        operator.run(version="v000003")


def test_a_log_that_ends_before_the_version_or_was_recreated_is_refused(operator: Operator) -> None:
    change(operator.root, "v000004", inputs={"clicks": {"id": "old", "num_partitions": 2}})
    operator.brokers.ids = {"clicks": "new"}
    with pytest.raises(Unsafe, match="clicks was recreated since v000004"):
        operator.run(version="v000004")
    operator.brokers.ends[A] = 15
    with pytest.raises(Unsafe, match=r"behind the end of clicks\[0\]"):
        operator.run(version="v000004")


def test_a_damaged_version_is_refused_with_the_one_before(operator: Operator) -> None:
    damaged = Store(operator.root).version("v000004").path / "model.safetensors"
    damaged.chmod(0o640)
    damaged.write_bytes(b"x")
    with pytest.raises(Unsafe, match=r"v000004 is damaged.*--from-checkpoint v000003"):
        operator.run(version="v000004")


def test_as_it_was_needs_the_journal_and_anew_does_not(operator: Operator) -> None:
    (operator.root / "journal" / SEGMENT).unlink()
    with pytest.raises(Unsafe, match=r"journal segment 000001-0000 is gone.*--mode anew"):
        operator.run(version="v000003")
    assert operator.run(version="v000003", mode=ANEW)["mode"] == ANEW


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "how far back: got none, expected exactly one of --from-checkpoint"),
        ({"version": "v000002", "target": AGO}, "got --from-checkpoint and --by-duration"),
        ({"version": "v000002", "mode": "fast"}, "--mode: got 'fast', expected as-it-was or anew"),
        ({"version": "v000002", "into": "sea"}, "--into"),
        ({"version": "v000002", "shadow_root": Path("x")}, "only with --into shadow"),
        ({"exclude": Path("x"), "mode": AS_IT_WAS}, "with --exclude the mode is anew"),
    ],
)
def test_what_cannot_be_meant_is_usage(
    operator: Operator, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        operator.run(**given)


# --- leaving out ---


def test_exclusions_are_hashed_before_they_are_written_and_the_restart_lies_before_the_first(
    operator: Operator, tmp_path: Path
) -> None:
    file = tmp_path / "out.txt"
    file.write_text("# a robot\nclient_id:c-15\n\nevent_id:e-1-13\nclicks[0]@30-33\n")
    done = operator.run(exclude=file, execute=True, yes=True)
    assert (done["version"], done["mode"], done["num_excluded"]) == ("v000003", ANEW, 3), (
        "c-15 is at clicks[0]@15"
    )
    written = b"".join(
        data for path, data in tree(operator.root).items() if path.startswith("control/")
    )
    assert b"c-15" not in written
    assert b"e-1-13" not in written
    key = (operator.root / "control" / "exclusions.key").read_bytes()
    listed = exclusions.load(operator.root, Disk(), done["exclude"])
    assert (len(listed.client_ids), len(listed.event_ids), len(listed.slices)) == (1, 1, 1)
    assert (operator.root / "control" / "exclusions.key").stat().st_mode & 0o777 == 0o640
    left_out = Exclusions(listed, key)
    covered = [r.offset for r in operator.log.records[A] if left_out.covers(decode(Kind.CLICK, r))]  # type: ignore[arg-type]
    assert covered == [15, 30, 31, 32], "the pipeline finds what was meant"


def test_a_version_that_contains_what_is_to_be_left_out_is_refused(
    operator: Operator, tmp_path: Path
) -> None:
    file = tmp_path / "out.txt"
    file.write_text("client_id:c-15\n")
    with pytest.raises(
        Unsafe, match=r"v000004 contains records that are to be left out.*--from-checkpoint v000003"
    ):
        operator.run(exclude=file, version="v000004")
    file.write_text("client_id:c-0\n")
    change(operator.root, "v000002", offsets={"clicks": {"0": 3, "1": 3}})
    with pytest.raises(Unsafe, match="no kept version is that old"):
        operator.run(exclude=file)


def test_what_is_left_out_already_stays_left_out(operator: Operator, tmp_path: Path) -> None:
    key = exclusions.key_of(operator.root, Disk())
    assert exclusions.key_of(operator.root, Disk()) == key, "made once"
    file = tmp_path / "out.txt"
    file.write_text("client_id:c-45\n")
    before = exclusions.read_file(file, key)
    name = exclusions.write(operator.root, Disk(), before)
    change(operator.root, "v000005", exclusions={"sha256": name, "num": 1, "order": 1})
    assert operator.run(version="v000004", mode=ANEW)["exclude"] == name
    with pytest.raises(Unsafe, match="since v000004 exclusions came into force"):
        operator.run(version="v000004")
    file.write_text("client_id:c-35\n")
    assert operator.run(exclude=file)["num_excluded"] == 2


@pytest.mark.parametrize("line", ["c-15", "client_id:", "clicks[0]@9-9", "clicks@9-10", "user:x"])
def test_a_line_that_names_nothing_is_usage_with_its_number(
    operator: Operator, tmp_path: Path, line: str
) -> None:
    file = tmp_path / "out.txt"
    file.write_text(f"# x\n{line}\n")
    with pytest.raises(UsageError, match=r"out\.txt:2: expected client_id:ID"):
        operator.run(exclude=file)


# --- beside the store ---


def test_a_shadow_is_a_store_of_its_own_with_the_order_in_it_and_the_live_one_is_left_alone(
    operator: Operator, tmp_path: Path
) -> None:
    before, root = tree(operator.root), tmp_path / "shadow"
    done = operator.run(version="v000003", into="shadow", shadow_root=root, execute=True, yes=True)
    assert tree(operator.root) == before
    shadow = Store(root)
    assert [version.name for version in shadow.versions()] == ["v000003", "v000005"]
    for version in shadow.versions():
        shadow.verify(version)
    command = commands.pending(root, 0)
    assert command is not None
    assert (command.plan["version"], command.plan["into"]) == ("v000003", "shadow")
    assert f"--set store.root={root}" in done["command"]
    assert (root / "journal" / SEGMENT).samefile(operator.root / "journal" / SEGMENT)
    assert [int(claim.name) for claim in (root / "epoch").iterdir()] == [1], (
        "its learner claims the next one"
    )
    with pytest.raises(UsageError, match="is not empty"):
        operator.run(version="v000003", into="shadow", shadow_root=root, execute=True, yes=True)


# --- and back again ---


def test_a_command_that_was_not_taken_is_withdrawn(operator: Operator) -> None:
    operator.run(version="v000003", execute=True, yes=True)
    assert operator.cancel() == {"order": 1, "state": "withdrawn"}
    assert commands.pending(operator.root, 0) is None


def test_a_replay_that_goes_on_is_ended_by_going_back_to_the_last_checkpoint_before_it(
    operator: Operator,
) -> None:
    operator.run(version="v000003", execute=True, yes=True)
    going_on = {"mode": AS_IT_WAS, "until": {}, "order": 1}
    change(operator.root, "v000005", orders_taken=1, replay=going_on)
    done = operator.cancel()
    assert (done["version"], done["cancels"], done["order"]) == ("v000004", 1, 2)
    command = commands.pending(operator.root, 1)
    assert command is not None
    assert command.plan["until"] == {"clicks": {"0": 20, "1": 12}} == command.plan["restart"], (
        "nothing is read again before it is live"
    )


def test_there_is_nothing_to_cancel_without_a_replay(operator: Operator) -> None:
    with pytest.raises(Unsafe, match="no replay waits or goes on"):
        operator.cancel()


def test_the_way_back_is_not_pruned_while_a_replay_goes_on(operator: Operator) -> None:
    change(
        operator.root,
        "v000005",
        orders_taken=1,
        replay={"mode": ANEW, "until": {}, "order": 1},
        parent=None,
    )
    paper = Paper()
    checkpoints.prune(Store(operator.root), paper.output(as_json=True), superseded=True, yes=True)
    assert paper.objects[0]["retired"] == ["v000002", "v000003"]
    assert json.loads((operator.root / "control" / "announced.json").read_bytes()) == {
        "version": "v000005"
    }
