"""Several ranks step as one: equal bits on all, a single rank's within rounding."""

from __future__ import annotations

from functools import cache
from itertools import chain

import msgspec
import numpy as np
import pytest

from learner.process_group import ProcessGroup, SingleProcess
from tests.learner.ranked import KINDS, NUM_STEPS, Ended, learner, shares, steps, together
from weighting.sample import Sample

Found = list[dict[str, Ended]]


@pytest.fixture(scope="module", params=[2, 4], ids="{} ranks".format)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return together(request.param, tmp_path_factory.mktemp("ranks"))


@cache
def alone(kind: str, busy: int, world: int) -> Ended:
    """One rank on what all of them bring, in rank order."""

    def union(step: int) -> list[Sample]:
        return list(chain.from_iterable(shares(step, busy, world)))

    return steps(learner(**KINDS[kind]), union)


def test_every_scenario_ends_on_the_same_bytes_on_every_rank(found: Found) -> None:
    for name in found[0]:
        for other in found[1:]:
            if name not in ("a score", "a gradient"):
                assert other[name] == found[0][name], name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("dropout", "in batch")])
def test_the_parameters_are_those_of_one_rank_on_all_samples(found: Found, kind: str) -> None:
    ended, expected = found[0][kind], alone(kind, len(found), len(found))
    # A softmax does not depend on the bias: its gradient is rounding, of which AdamW makes steps
    if kind == "listwise":
        ended, expected = without_bias(ended), without_bias(expected)
    close(ended, expected)


def without_bias(ended: Ended) -> Ended:
    others = {name: values for name, values in ended.parameters.items() if name != "bias"}
    return msgspec.structs.replace(ended, parameters=others)


def test_a_rank_that_never_has_samples_changes_nothing(found: Found) -> None:
    close(found[0]["one is empty"], alone("full", len(found) - 1, len(found)))


def close(ended: Ended, expected: Ended) -> None:
    """Ten times nearer than one step goes."""
    assert ended.results == ["ok"] * NUM_STEPS
    assert ended.losses == pytest.approx(expected.losses, abs=1e-5)
    assert ended.learned == expected.learned
    for name, values in expected.parameters.items():
        np.testing.assert_allclose(ended.parameters[name], values, atol=1e-5, err_msg=name)
    # The estimators learn all samples in one order
    assert ended.digests["estimator.msgpack"] == expected.digests["estimator.msgpack"]


def test_the_same_schedule_gives_the_same_bits(found: Found) -> None:
    for own in found:
        assert own["full again"] == own["full"]


def test_ranks_do_not_drop_the_same_activations(found: Found) -> None:
    assert len(set(found[0]["seeded"].num_micro_batches)) == len(found)


@pytest.mark.parametrize("what", ["a score", "a gradient"])
def test_what_is_not_finite_on_one_rank_is_seen_by_all(found: Found, what: str) -> None:
    for own in found:
        assert own[what].results == ["ok", "nonfinite", "ok"]
        assert own[what].digests == found[0][what].digests


def test_memory_that_runs_out_on_one_rank_splits_the_step_of_all(found: Found) -> None:
    world = len(found)
    most = len(shares(2, world, world)[-1])
    assert found[0]["tight"].num_micro_batches[:2] == [1, 1]
    assert found[0]["tight"].num_micro_batches[2] >= most / 4
    close(found[0]["tight"], alone("full", world, world))
    # A step is a function of its number of micro-batches: a journal can replay it
    for own in found:
        assert own["tight as journaled"] == own["tight"]


def test_a_step_without_any_samples_has_a_number_and_nothing_else(found: Found) -> None:
    ended = found[0]["all are empty"]
    assert ended.results == ["ok"] * NUM_STEPS
    assert ended.losses == [0.0] * NUM_STEPS
    assert ended.learned == (0, 0)


def test_a_step_left_out_counts_the_samples_of_all_ranks(found: Found) -> None:
    world = len(found)
    num_samples = sum(len(share) for step in (0, 1) for share in shares(step, world, world))
    assert found[0]["skipped"].num_micro_batches == [2, num_samples]


def test_a_group_of_one_process_answers_itself() -> None:
    group: ProcessGroup = SingleProcess()
    assert (group.rank, group.world) == (0, 1)
    assert (group.gather(b"own"), group.broadcast(b"own")) == ([b"own"], b"own")
    group.sum_([])
    group.close()
