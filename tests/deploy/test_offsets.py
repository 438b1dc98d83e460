"""Offsets: plans in Kafka's words; nothing written without --execute, no offset invented."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.admin.offsets import describe
from deploy.admin.offsets import reset as resetting
from deploy.admin.offsets.plan import Group, ResetRequest
from deploy.admin.offsets.scopes import Scope, one_scope, partitions_of, read_csv, to_csv
from deploy.admin.offsets.targets import Target, moves, one_target
from deploy.errors import Unsafe, UsageError
from learner.artifact import Store
from learner.store import commands
from learner.store.blobs import Disk
from tests.fakes.brokers import Brokers
from tests.fakes.paper import Paper
from tests.learner.saving import saved

NOW = 1_700_000_000.0
OWN = ("clicks", "exposures")
CLICKS = Scope(topics=("clicks",))


def brokers() -> Brokers:
    found = Brokers(
        {("clicks", 0): 100, ("clicks", 1): 110, ("exposures", 0): 1000}, {("clicks", 0): 5}
    )
    found.groups["other"] = {("clicks", 0): 60, ("clicks", 1): 70}
    return found


def reset(
    paper: Paper,
    asked: Brokers,
    root: Path,
    target: Target | None,
    *,
    group: str = "other",
    as_json: bool = True,
    **given: object,
) -> int:
    request = ResetRequest(**{"scope": CLICKS, "target": target, **given})  # type: ignore[arg-type]
    whose = Group(name=group, own="steelyard", own_topics=OWN)
    return resetting.reset(
        request, whose, asked, Store(root), paper.output(as_json=as_json), clock=lambda: NOW
    )


def proposed(paper: Paper) -> dict[int, tuple[int, str]]:
    return {
        row["partition"]: (row["proposed"], row["clamped"])
        for row in paper.objects[-1]["partitions"]
    }


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Target(name="to-earliest"), {0: (5, "no"), 1: (0, "no")}),
        (Target(name="to-latest"), {0: (100, "no"), 1: (110, "no")}),
        (Target(name="to-current"), {0: (60, "no"), 1: (70, "no")}),
        (Target(name="shift-by", value="-65"), {0: (5, "to earliest"), 1: (5, "no")}),
        (Target(name="shift-by", value="41"), {0: (100, "to latest"), 1: (110, "to latest")}),
        (Target(name="to-offset", value="105"), {0: (100, "to latest"), 1: (105, "no")}),
    ],
)
def test_each_target_means_what_it_means_in_kafka_and_says_where_it_was_clamped(
    tmp_path: Path, target: Target, expected: dict[int, tuple[int, str]]
) -> None:
    paper, asked = Paper(), brokers()
    assert reset(paper, asked, tmp_path, target) == 0
    assert proposed(paper) == expected
    assert asked.groups["other"] == {("clicks", 0): 60, ("clicks", 1): 70}, "a plan writes nothing"


def test_a_time_is_looked_up_and_its_record_time_is_shown(tmp_path: Path) -> None:
    paper, asked = Paper(), brokers()
    asked.times = {
        ("clicks", 0): (40, 1_699_992_801_000_000),
        ("clicks", 1): (41, 1_699_992_802_500_000),
    }
    assert (
        reset(paper, asked, tmp_path, Target(name="by-duration", value="PT2H"), as_json=False) == 0
    )
    assert [line.split()[-1] for line in paper.written if line.startswith("clicks")] == [
        "2023-11-14T20:13:21Z",
        "2023-11-14T20:13:22.500000Z",
    ]


def test_a_partition_without_a_record_at_that_time_is_refused_and_no_other_offset_is_taken(
    tmp_path: Path,
) -> None:
    asked = brokers()
    asked.times = {("clicks", 0): (40, 0), ("clicks", 1): None}
    with pytest.raises(
        Unsafe, match=r"no record at or after .* in clicks\[1\], so there is no offset"
    ):
        reset(
            Paper(),
            asked,
            tmp_path,
            Target(name="to-datetime", value="2023-11-14T20:00:00"),
            execute=True,
            yes=True,
        )
    assert asked.groups["other"] == {("clicks", 0): 60, ("clicks", 1): 70}


def test_brokers_that_do_not_answer_for_a_time_are_a_refusal(tmp_path: Path) -> None:
    asked = brokers()
    asked.silent = True
    with pytest.raises(Unsafe, match="Without an answer nothing is assumed"):
        reset(
            Paper(),
            asked,
            tmp_path,
            Target(name="by-duration", value="P1D"),
            execute=True,
            yes=True,
        )


@pytest.mark.parametrize("value", ["yesterday", "P", "-PT1H", "2h30"])
def test_a_duration_that_is_none_is_usage(tmp_path: Path, value: str) -> None:
    with pytest.raises(UsageError, match="--by-duration"):
        reset(Paper(), brokers(), tmp_path, Target(name="by-duration", value=value))


def test_a_time_that_has_not_come_is_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has not come yet"):
        reset(
            Paper(), brokers(), tmp_path, Target(name="to-datetime", value="2099-01-01T00:00:00Z")
        )


def test_a_partition_without_a_current_offset_cannot_be_shifted(tmp_path: Path) -> None:
    asked = brokers()
    del asked.groups["other"][("clicks", 1)]
    with pytest.raises(Unsafe, match=r"no current offset of clicks\[1\]"):
        reset(Paper(), asked, tmp_path, Target(name="shift-by", value="-1"))


def test_a_foreign_group_without_members_is_moved_and_read_back(tmp_path: Path) -> None:
    paper, asked = Paper(), brokers()
    assert (
        reset(paper, asked, tmp_path, Target(name="to-offset", value="50"), execute=True, yes=True)
        == 0
    )
    assert asked.groups["other"] == {("clicks", 0): 50, ("clicks", 1): 50}
    assert paper.objects[-1]["stored"] == {"clicks": {"0": 50, "1": 50}}
    assert len(paper.written) == 1, "one object"


def test_a_group_that_does_not_exist_can_be_given_offsets(tmp_path: Path) -> None:
    asked = brokers()
    assert (
        reset(
            Paper(), asked, tmp_path, Target(name="to-latest"), group="new", execute=True, yes=True
        )
        == 0
    )
    assert asked.groups["new"] == {("clicks", 0): 100, ("clicks", 1): 110}


def test_a_group_with_members_is_left_alone(tmp_path: Path) -> None:
    asked = brokers()
    asked.states["other"] = ("Stable", 3)
    with pytest.raises(Unsafe, match="Stable with 3 members"):
        reset(
            Paper(), asked, tmp_path, Target(name="to-offset", value="50"), execute=True, yes=True
        )
    assert asked.groups["other"] == {("clicks", 0): 60, ("clicks", 1): 70}


def test_offsets_that_are_not_what_was_proposed_afterwards_are_exit_1(tmp_path: Path) -> None:
    paper, asked = Paper(), brokers()
    asked.deaf = True
    assert (
        reset(
            paper,
            asked,
            tmp_path,
            Target(name="to-offset", value="50"),
            execute=True,
            yes=True,
            as_json=False,
        )
        == 1
    )
    assert "clicks[0]: proposed 50, stored 60" in paper.text


def test_executing_needs_yes_where_there_is_nobody_and_asks_where_there_is(tmp_path: Path) -> None:
    asked = brokers()
    with pytest.raises(UsageError, match="add --yes"):
        reset(Paper(), asked, tmp_path, Target(name="to-offset", value="50"), execute=True)
    no = Paper(answer=False)
    assert reset(no, asked, tmp_path, Target(name="to-offset", value="50"), execute=True) == 1
    assert no.reported == ["nothing written"]
    assert asked.groups["other"] == {("clicks", 0): 60, ("clicks", 1): 70}
    assert (
        reset(
            Paper(answer=True), asked, tmp_path, Target(name="to-offset", value="50"), execute=True
        )
        == 0
    )


# --- our learner's own group ---


def test_our_own_group_is_planned_from_the_checkpoint_and_moved_by_a_command(
    tmp_path: Path,
) -> None:
    saved(tmp_path, 1, 5)  # v000003 is at clicks 50 and 55
    paper, asked = Paper(), brokers()
    asked.groups["steelyard"] = {("clicks", 0): 1}
    assert (
        reset(
            paper,
            asked,
            tmp_path,
            Target(name="shift-by", value="-30"),
            group="steelyard",
            execute=True,
            yes=True,
        )
        == 0
    )
    command = commands.pending(tmp_path, 0)
    assert command is not None
    assert (command.kind, command.plan["offsets"]) == ("reset", {"clicks": {"0": 20, "1": 25}})
    assert (paper.objects[-1]["digest"], paper.objects[-1]["order"]) == (command.digest, command.id)
    assert asked.groups["steelyard"] == {("clicks", 0): 1}, "what Kafka has of it is advisory"


def test_our_own_group_is_warned_and_told_the_replay_that_counts_nothing_twice(
    tmp_path: Path,
) -> None:
    saved(tmp_path, 1, 5)
    paper = Paper()
    reset(
        paper,
        brokers(),
        tmp_path,
        Target(name="shift-by", value="-30"),
        group="steelyard",
        as_json=False,
    )
    assert "count twice" in paper.text
    assert "steelyard replay --from-checkpoint v000002" in paper.text
    assert paper.written[-1].startswith("nothing written")
    asked = brokers()
    asked.times = {("clicks", 0): (40, 0), ("clicks", 1): (40, 0)}
    reset(
        paper,
        asked,
        tmp_path,
        Target(name="by-duration", value="PT2H"),
        group="steelyard",
        as_json=False,
    )
    assert "steelyard replay --by-duration PT2H" in paper.text
    assert commands.newest(tmp_path, Disk()) is None


def test_skipping_forwards_says_that_it_loses(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    paper = Paper()
    reset(paper, brokers(), tmp_path, Target(name="to-latest"), group="steelyard")
    assert paper.objects[-1]["records_to_skip"] == 50 + 55
    assert any("never count" in warning for warning in paper.objects[-1]["warnings"])


def test_our_own_group_has_only_the_topics_that_the_learner_reads(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    asked = brokers()
    asked.ends[("foreign", 0)] = 9
    with pytest.raises(UsageError, match="'foreign' does not exist"):
        reset(
            Paper(),
            asked,
            tmp_path,
            Target(name="to-latest"),
            group="steelyard",
            scope=Scope(topics=("foreign",)),
        )


def test_without_a_checkpoint_there_is_nothing_to_move(tmp_path: Path) -> None:
    with pytest.raises(Unsafe, match="no checkpoint yet"):
        reset(Paper(), brokers(), tmp_path, Target(name="to-latest"), group="steelyard")


# --- scope, target and file ---


def test_exactly_one_target_and_one_scope_or_the_list_of_them() -> None:
    with pytest.raises(UsageError, match="target: got none, expected exactly one of --to-earliest"):
        one_target({"to-earliest": False, "to-offset": None})
    with pytest.raises(UsageError, match="got --to-earliest and --to-offset"):
        one_target({"to-earliest": True, "to-offset": 0})
    assert one_target({"to-earliest": False, "shift-by": 0}) == Target(
        name="shift-by", value="0"
    ), "zero was given"
    with pytest.raises(UsageError, match="scope: got --topic and --all-topics"):
        one_scope(("clicks",), True, None)
    with pytest.raises(UsageError, match="the file says where to"):
        one_target({"to-earliest": True}, none=True)


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("nope", "does not exist"),
        ("clicks:7", "has no partition 7"),
        ("clicks:", "expected TOPIC"),
        ("clicks:a", "expected"),
    ],
)
def test_a_scope_that_is_not_there_is_usage(topic: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        partitions_of(Scope(topics=(topic,)), {"clicks": 2}, ())


def test_partitions_of_a_topic_may_be_named() -> None:
    assert partitions_of(Scope(topics=("clicks:1", "clicks:1,0")), {"clicks": 2}, ()) == [
        ("clicks", 0),
        ("clicks", 1),
    ]


def test_an_exported_plan_is_kafkas_csv_and_comes_back_as_the_same_plan(tmp_path: Path) -> None:
    paper, asked, file = Paper(), brokers(), tmp_path / "plan.csv"
    assert (
        reset(
            paper, asked, tmp_path, Target(name="to-offset", value="50"), export=True, as_json=False
        )
        == 0
    )
    assert paper.written == ["clicks,0,50", "clicks,1,50"]
    assert paper.reported[0].startswith("PLAN")
    file.write_text("\n".join(paper.written))
    assert (
        reset(Paper(), asked, tmp_path, None, scope=Scope(from_file=file), execute=True, yes=True)
        == 0
    )
    assert asked.groups["other"] == {("clicks", 0): 50, ("clicks", 1): 50}


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["clicks", "shop.eu-1_x"]), st.integers(0, 9)),
        st.integers(0, 2**40),
        min_size=1,
    )
)
def test_any_plan_survives_the_way_through_csv(wanted: dict[tuple[str, int], int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.csv"
        file.write_text("\n".join(to_csv(wanted)))
        assert read_csv(file, "g") == wanted


@pytest.mark.parametrize(
    "line",
    [
        "clicks,0",
        "clicks,x,1",
        "TOPIC,PARTITION,OFFSET",
        "another,clicks,0,1",
        "clicks,0,1\nclicks,0,2",
    ],
)
def test_a_file_that_is_no_plan_for_this_group_is_usage_with_its_line(
    tmp_path: Path, line: str
) -> None:
    file = tmp_path / "plan.csv"
    file.write_text(line)
    with pytest.raises(UsageError, match=r"plan\.csv:[12]: "):
        read_csv(file, "g")


@given(st.integers(-50, 200), st.integers(0, 60), st.integers(0, 60))
def test_a_move_never_leaves_what_is_retained(wanted: int, begin: int, length: int) -> None:
    tp = ("clicks", 0)
    (move,) = moves({tp: 10}, {tp: wanted}, {tp: begin}, {tp: begin + length})
    assert begin <= move.proposed <= begin + length
    assert (move.clamped == "no") == (move.proposed == wanted)


# --- describe ---


def test_a_group_is_described_with_its_lag(tmp_path: Path) -> None:
    paper = Paper()
    whose = Group(name="other", own="steelyard", own_topics=OWN)
    assert describe.describe(whose, brokers(), Store(tmp_path), paper.output(as_json=True)) == 0
    assert [
        (row["committed"], row["end"], row["lag"]) for row in paper.objects[0]["partitions"]
    ] == [(60, 100, 40), (70, 110, 40)]


def test_of_our_own_group_the_checkpoint_is_what_counts_and_the_order_is_told(
    tmp_path: Path,
) -> None:
    saved(tmp_path, 5)
    asked = brokers()
    reset(
        Paper(),
        asked,
        tmp_path,
        Target(name="to-latest"),
        group="steelyard",
        execute=True,
        yes=True,
    )
    paper = Paper()
    whose = Group(name="steelyard", own="steelyard", own_topics=OWN)
    assert describe.describe(whose, asked, Store(tmp_path), paper.output(as_json=True)) == 0
    described = paper.objects[0]
    assert (described["checkpoint"], described["order"]) == (
        "v000002",
        {"id": 1, "kind": "reset", "state": "pending"},
    )
    assert {(row["topic"], row["partition"]): row["lag"] for row in described["partitions"]}[
        ("clicks", 0)
    ] == 50


def test_a_group_that_is_not_there_is_exit_1(tmp_path: Path) -> None:
    paper = Paper()
    assert (
        describe.describe(
            Group(name="nope", own="s", own_topics=()), brokers(), Store(tmp_path), paper.output()
        )
        == 1
    )
    assert paper.written == ["group nope does not exist"]


def test_watching_writes_one_object_a_round_until_interrupted(tmp_path: Path) -> None:
    paper, rounds = Paper(), []

    def wait(seconds: float) -> None:
        rounds.append(seconds)
        if len(rounds) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        describe.describe(
            Group(name="other", own="s", own_topics=()),
            brokers(),
            Store(tmp_path),
            paper.output(as_json=True),
            watch=True,
            wait=wait,
        )
    assert len(paper.objects) == 3
