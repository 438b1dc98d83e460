"""Rows of hashed coefficients: told apart, found again, replaced by age."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weighting.streams import SECOND, Doc, sample
from weighting.errors import SnapshotError
from weighting.estimators.coefficient_table import OWN, CoefficientTable
from weighting.estimators.conditional import Conditional, ConditionalConfig
from weighting.estimators.logistic import DiagonalLogistic
from weighting.features import FieldConfig

BITS = 12


def filled(hash_bits: int, *, seed: int = 0, load: float = 4.0) -> CoefficientTable:
    """A table in which more keys than rows were learned."""
    table = CoefficientTable(hash_bits, 0)
    keys = np.random.default_rng(seed).integers(0, 1 << 32, int(load * 2**hash_bits)).tolist()
    for time_us, key in enumerate(keys):
        if table.rows((key,)) == [table.unknown]:
            table.variance[table.take(key, time_us)] = 0.5
    return table


@pytest.mark.parametrize("time_us", [50, 100, 150])
def test_a_row_that_a_sample_uses_is_not_taken_for_another_key_of_it(time_us: int) -> None:
    """Four keys fill a set of rows; a fifth comes together with one of them, at any time."""
    model = DiagonalLogistic(hash_bits=4)
    keys = [4, 8, 12, 16]
    for key in keys:
        model.learn_one({key: 1.0}, True, time_us=100)
    before = [model.logit_one({key: 1.0}) for key in keys]
    model.learn_one({36: 1.0, 4: 1.0}, False, time_us=time_us)
    after = [model.logit_one({key: 1.0}) for key in [*keys, 36]]
    assert 0 < after[0] < before[0], "its own share of the update, and no other's"
    assert after[-1] < 0
    assert sum(value == 0 for value in after) == 1, "one of the others made room"


def test_a_key_never_learned_passes_for_another_as_rarely_as_stated() -> None:
    """A full table of 2^16 rows: 2^16 / 2^32 of two million keys are about thirty."""
    table = filled(16)
    asked = np.random.default_rng(1).integers(0, 1 << 32, 2_000_000).tolist()
    num_found = sum(row != table.unknown for row in table.rows(asked))
    assert 10 < num_found < 60


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, (1 << 32) - 1), st.integers(0, 50)), max_size=60))
def test_a_row_belongs_to_one_key_until_it_is_the_oldest_of_a_full_set(
    learned: list[tuple[int, int]],
) -> None:
    table = CoefficientTable(3, 0)
    held: dict[int, dict[int, int]] = {0: {}, 1: {}}  # set -> key -> time
    for key, time_us in learned:
        own = held[key % 2]
        (row,) = table.rows((key,))
        assert (row != table.unknown) == (key in own)
        if row != table.unknown:
            continue
        if len(own) == 4:
            oldest = min(own.values())
            before = set(own)
        table.take(key, time_us)
        found = {k for k in own if table.rows((k,)) != [table.unknown]}
        if len(own) == 4:
            (gone,) = before - found
            assert own[gone] == oldest
            del own[gone]
        own[key] = time_us
        assert table.rows((key,)) != [table.unknown]


def test_keys_with_rows_of_their_own_are_never_replaced() -> None:
    table = CoefficientTable(2, 3)
    own = table.rows([OWN, OWN + 2])
    for row in own:
        table.mean[row] = 1.0
    for key in range(100):
        table.take(key, key)
    assert table.rows([OWN, OWN + 2]) == own
    assert [table.mean[row] for row in own] == [1.0, 1.0]
    assert table.unknown not in own


def test_a_table_of_another_size_or_damaged_is_refused() -> None:
    table, state = CoefficientTable(BITS, 1), filled(BITS).snapshot()
    with pytest.raises(SnapshotError, match="num_own"):
        table.restore(state)
    whole = CoefficientTable(BITS, 0)
    with pytest.raises(SnapshotError, match="rows"):
        whole.restore({**state, "tag": state["tag"][:-4]})
    with pytest.raises(SnapshotError, match="rows"):
        whole.restore({**state, "row": b"\xff" * len(state["row"])})
    whole.restore(state)
    assert whole.snapshot() == state


def show(model: Conditional, query: str, *, at: int, label: int = 1) -> None:
    shown = [
        sample(int(i == 0) * label, query=query, item_id=f"{query}-{i}", at=at * SECOND)
        for i in range(10)
    ]
    labels = [float(s.label) for s in shown]
    model.learn(model.predict(shown), labels, [1.0] * len(shown))


def memory() -> Conditional:
    config = ConditionalConfig(fields=FieldConfig(hash_bits=BITS))
    return Conditional(config, initial=0.1, with_position=True)


def test_lists_of_queries_never_seen_keep_their_order_when_the_table_is_full() -> None:
    model = memory()
    for n in range(2_000):  # of ten pairs each, in 4,096 rows
        show(model, f"query {n}", at=n)
    for n in range(500):
        said = model.predict_first(f"new {n}", [Doc(f"new {n}-{i}") for i in range(10)])
        assert np.ptp(said) == 0


def test_what_is_shown_again_and_again_outlives_what_is_shown_once() -> None:
    model = memory()
    docs = [Doc(f"often-{i}") for i in range(10)]
    for n in range(1_500):
        if n % 25 == 0:
            show(model, "often", at=n)
        show(model, f"query {n}", at=n)
    liked, *others = model.predict_first("often", docs)
    assert liked > max(others) + 0.5
    assert min(others) < max(model.predict_first("never", docs))


def test_a_row_taken_over_has_nothing_of_the_key_before_it() -> None:
    """Neither its coefficient nor a further column; the number of rows in use stays."""
    table = CoefficientTable(2, 0, ["moment"])
    for key in (4, 8, 12, 16):
        row = table.take(key, time_us=key)
        table.mean[row], table.variance[row], table.extra["moment"][row] = 2.0, 0.5, 3.0
    assert table.num_taken == 4
    row = table.take(20, time_us=20)
    assert (table.mean[row], table.variance[row], table.extra["moment"][row]) == (0.0, 1.0, 0.0)
    assert table.num_taken == 4


def test_a_row_is_kept_by_a_further_column_alone() -> None:
    """As a coefficient can return to where it started while its moments have not."""
    table, restored = CoefficientTable(2, 1, ["moment"]), CoefficientTable(2, 1, ["moment"])
    (row,) = table.rows([OWN])
    table.extra["moment"][row] = 3.0
    restored.restore(table.snapshot())
    assert restored.extra["moment"][row] == 3.0
    assert restored.snapshot() == table.snapshot()
    with pytest.raises(SnapshotError, match="columns"):
        CoefficientTable(2, 1).restore(table.snapshot())
