"""Parts of the served score: silent when cold, of bounded size, and each right about its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from learner.parts.attributes import Attributes
from learner.parts.item_prior import ItemPrior, ItemPriorConfig
from learner.parts.lexical import Lexical, LexicalConfig
from learner.parts.metric import QueryMetric
from learner.parts.part import LearningPart, Outcomes, Pairs
from learner.parts.prototype import Prototype, PrototypeConfig
from learner.parts.registry import make_parts
from learner.parts.stateless import PAIR_MEMORY, RESIDUAL, TYPICAL_COSINE
from learner.request import ENCODER
from tests.learner.training import batches, trainer, weights_of
from tests.weighting.streams import DAY
from weighting.errors import SnapshotError
from weighting.sample import Attribute
from weighting.tasks import CLICK, PURCHASE, TaskName

Vector = NDArray[np.float32]
EAST, NORTH = np.eye(2, dtype=np.float32)
WIDTH, SCALE = 2, 8.0
INITIAL = {CLICK: 0.1, PURCHASE: 0.05}
OF_THE_TEXT = -SCALE * TYPICAL_COSINE
"""Of a text at a right angle to what is asked."""


def pairs(
    items: list[str],
    *,
    query: str = "red shoes",
    asked: Vector = EAST,
    texts: list[str] | None = None,
    attributes: list[dict[str, Attribute]] | None = None,
    client: int = 77,
) -> Pairs:
    """Items under one client's query; each text's vector points north, the query's is given."""
    number = len(items)
    return Pairs(
        queries=[query] * number,
        clients=[client] * number,
        items=items,
        texts=texts or items,
        attributes=attributes or [{"kind": "shoe"}] * number,
        query_vectors=np.tile(asked, (number, 1)),
        item_vectors=np.tile(NORTH, (number, 1)),
        given={name: np.full(number, np.nan) for name in (ENCODER, RESIDUAL, PAIR_MEMORY)},
    )


def outcomes(label: list[float], *, theta: float = 1.0, at: int = 0) -> Outcomes:
    number = len(label)
    return Outcomes(
        label=np.array(label),
        weight=np.ones(number),
        discount=np.ones(number),
        factor=np.ones(number),
        examination=np.full(number, theta),
        shown=np.ones(number, dtype=bool),
        lists=np.zeros(number, dtype=np.intp),
        time_us=np.full(number, at, dtype=np.int64),
        logit=np.full(number, -2.2),
    )


def learning() -> list[LearningPart]:
    parts = make_parts(width=WIDTH, logit_scale=SCALE).values()
    return [part for part in parts if isinstance(part, LearningPart)]


@pytest.mark.parametrize("part", learning(), ids=lambda part: type(part).__name__)
def test_a_cold_part_says_nothing(part: LearningPart) -> None:
    assert np.isnan(part.predict(pairs(["a", "b"]))).all()
    assert part.predict(pairs([])).shape == (len(part.columns), 0)


@pytest.mark.parametrize("part", learning(), ids=lambda part: type(part).__name__)
def test_what_is_said_of_a_pair_does_not_depend_on_its_neighbours_or_their_order(
    part: LearningPart,
) -> None:
    items = [f"shoes {i}" for i in range(8)]
    for at in range(20):
        label = [float((at + i) % 3 == 0) for i in range(8)]
        part.learn(CLICK, pairs(items), outcomes(label, theta=0.5, at=at))
    together = part.predict(pairs(items))
    assert np.isfinite(together).all()
    mixed = [5, 2, 7, 0, 1, 6, 4, 3]
    np.testing.assert_array_equal(
        part.predict(pairs([items[i] for i in mixed])), together[:, mixed]
    )
    for i, item in enumerate(items):
        np.testing.assert_array_equal(part.predict(pairs([item]))[:, 0], together[:, i])


@pytest.mark.parametrize("part", learning(), ids=lambda part: type(part).__name__)
@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"\x07"])
def test_bytes_that_are_no_snapshot_are_refused(part: LearningPart, data: bytes) -> None:
    with pytest.raises(SnapshotError, match="snapshot"):
        part.restore(data)


def test_a_discounted_showing_counts_for_its_discount_with_a_click_and_without() -> None:
    once, thrice = ItemPrior(), ItemPrior()
    labels = [1.0, 0.0, 0.0, 1.0]
    whole = outcomes(labels, theta=0.5)
    third = replace(whole, weight=np.full(4, 1 / 3), discount=np.full(4, 1 / 3))
    items = ["a", "a", "b", "b"]
    once.learn(CLICK, pairs(items), whole)
    for _ in range(3):
        thrice.learn(CLICK, pairs(items), third)
    asked = pairs(["a", "b"])
    np.testing.assert_allclose(thrice.predict(asked), once.predict(asked), rtol=1e-12)
    never = replace(whole, weight=np.zeros(4), discount=np.zeros(4))
    before = once.snapshot()
    once.learn(CLICK, pairs(items), never)
    assert once.snapshot() == before


def test_a_rare_word_that_both_have_counts_more_than_a_common_one() -> None:
    lexical = Lexical()
    texts = [f"shoe model {i}" for i in range(50)] + ["shoe gore"]
    lexical.learn(CLICK, pairs(texts), outcomes([0.0] * 51))
    match, _, coverage = lexical.predict(
        pairs(["shoe gore", "shoe model 7", "lamp"], query="gore shoe netflix")
    )
    assert match[0] > 5 * match[1] > match[2] == 0
    assert coverage[0] == pytest.approx(1)
    assert (match <= 1).all()
    nothing = lexical.predict(pairs(["shoe gore"], query="netflix"))
    assert np.isnan(nothing).all(), "no word of it is in the catalogue"


def test_what_it_keeps_of_texts_follows_the_catalogue() -> None:
    """Sums over a text's terms are kept; they are those of all items learned so far."""
    lexical, shown = Lexical(), pairs(["red shoe", "shoe"], query="shoe")
    for number in range(5):
        lexical.learn(CLICK, pairs([f"shoe {number}"]), outcomes([0.0]))
        found, again = lexical.predict(shown), Lexical()
        again.restore(lexical.snapshot())
        np.testing.assert_array_equal(again.predict(shown), found)
        lexical.restore(Lexical().snapshot())
        lexical.restore(again.snapshot())
        np.testing.assert_array_equal(lexical.predict(shown), found)


@pytest.mark.parametrize("query", ["CAFÉ", "cafe\u0301", "ｃａｆé"])
def test_words_match_whatever_their_case_width_and_accents_are_written_as(query: str) -> None:
    lexical = Lexical()
    lexical.learn(CLICK, pairs(["cup"], texts=["Café cup"]), outcomes([0.0]))
    match, _, _ = lexical.predict(pairs(["cup"], texts=["Café cup"], query=query))
    assert match[0] > 0


def test_words_of_attributes_match_the_whole_item_and_not_its_text() -> None:
    lexical = Lexical()
    catalogue: list[dict[str, Attribute]] = [
        {"brand": "Acme", "price": 9.5, "tags": ["trail", "gore tex"]},
        {"brand": "Other", "new": True},
    ]
    shown = pairs(["a", "b"], texts=["running shoe"] * 2, attributes=catalogue, query="acme gore")
    lexical.learn(CLICK, shown, outcomes([0.0, 0.0]))
    match, whole, coverage = lexical.predict(shown)
    assert np.isnan([match, coverage]).all(), "no text has these words"
    assert whole[0] > whole[1] == 0


def test_attributes_that_come_later_or_behind_a_long_text_are_found_too() -> None:
    lexical, long = Lexical(), "shoe " * 1_000
    bare: list[dict[str, Attribute]] = [{}, {}]
    branded: list[dict[str, Attribute]] = [{"brand": "Acme"}, {}]
    lexical.learn(CLICK, pairs(["a", "b"], texts=[long] * 2, attributes=bare), outcomes([0.0] * 2))
    shown = pairs(["a", "b"], texts=[long] * 2, attributes=branded, query="acme")
    lexical.learn(CLICK, shown, outcomes([0.0, 0.0]))
    _, whole, _ = lexical.predict(shown)
    assert whole[0] > whole[1] == 0


@pytest.mark.parametrize("part", [ItemPrior(), Attributes()], ids=lambda part: type(part).__name__)
def test_a_showing_without_the_encoder_s_score_is_no_evidence(
    part: ItemPrior | Attributes,
) -> None:
    before = part.snapshot()
    left_out = replace(outcomes([1.0, 0.0]), factor=np.zeros(2))
    part.learn(CLICK, pairs(["a", "b"]), left_out)
    later = replace(outcomes([0.0, 0.0]), shown=np.zeros(2, dtype=bool))
    part.learn(CLICK, pairs(["a", "b"]), later)
    assert part.snapshot() == before


def test_a_brand_shown_where_it_does_not_belong_is_no_bad_brand() -> None:
    """Both are clicked as the rest of the score expects, which is seldom for one of them."""
    attributes = Attributes()
    brands: list[dict[str, Attribute]] = [{"brand": "fit"}, {"brand": "misplaced"}]
    for i in range(200):
        own = replace(
            outcomes([float(i % 2), float(i % 20 == 0)]),
            logit=np.array([0.0, np.log(0.05 / 0.95)]),
            lists=np.array([-1, -1]),
        )
        attributes.learn(CLICK, pairs(["a", "b"], attributes=brands), own)
    fit, misplaced = attributes.predict(pairs(["a", "b"], attributes=brands))[0]
    assert abs(fit - misplaced) < 0.1


def test_nothing_is_kept_of_a_long_text_beyond_what_is_read() -> None:
    lexical = Lexical()
    lexical.learn(CLICK, pairs(["long"], texts=["word " * 1_000_000]), outcomes([0.0]))
    assert max(map(len, lexical._cached)) <= 4_001


def test_an_item_without_an_attribute_value_teaches_no_attribute_model() -> None:
    attributes = Attributes()
    before = attributes.snapshot()
    empty: list[dict[str, Attribute]] = [{}, {"tags": []}]
    attributes.learn(CLICK, pairs(["a", "b"], attributes=empty), outcomes([1.0, 1.0]))
    assert attributes.snapshot() == before


def test_an_item_is_counted_once_however_often_it_is_shown() -> None:
    once, often = Lexical(), Lexical()
    for lexical, times in ((once, 1), (often, 9)):
        for _ in range(times):
            lexical.learn(CLICK, pairs(["red shoe", "blue shoe"]), outcomes([0.0, 0.0]))
    assert once.snapshot() == often.snapshot()


def test_old_items_leave_the_statistics_of_a_catalogue_that_changes() -> None:
    lexical = Lexical(LexicalConfig(max_items=100, max_terms=1000))
    for i in range(500):
        lexical.learn(CLICK, pairs([f"old {i}"], texts=[f"lamp {i}"]), outcomes([0.0]))
    for i in range(150):
        lexical.learn(CLICK, pairs([f"new {i}"], texts=[f"shoe {i}"]), outcomes([0.0]))
    match, _, _ = lexical.predict(
        pairs(["one", "other"], query="lamp shoe", texts=["lamp x", "shoe x"])
    )
    assert match[0] > 1.2 * match[1], "the word of the old items has become rare"


@pytest.mark.parametrize("theta", [1.0, 0.5, 0.1])
def test_the_prior_of_an_item_does_not_depend_on_where_it_was_shown(theta: float) -> None:
    prior = ItemPrior()
    good = pairs(["good"] * 1000 + ["average"] * 1000)
    clicks = [float(i % 10 < 4 * theta) for i in range(1000)]
    half = [float(i % 10 < 2 * theta) for i in range(1000)]
    if theta < 0.5:
        clicks, half = ([float(i % 100 < n * 100 * theta) for i in range(1000)] for n in (0.4, 0.2))
    prior.learn(CLICK, good, outcomes(clicks + half, theta=theta))
    found = prior.predict(pairs(["good", "average", "never shown"]))[0]
    assert found[0] - found[1] == pytest.approx(np.log(2), abs=0.1)
    assert np.isnan(found[2])


def test_a_little_evidence_about_an_item_says_little() -> None:
    prior = ItemPrior()
    prior.learn(CLICK, pairs([f"{i}" for i in range(100)]), outcomes([0.1] * 100))
    prior.learn(CLICK, pairs(["lucky"]), outcomes([1.0]))
    prior.learn(CLICK, pairs(["liked"] * 50), outcomes([1.0] * 50))
    lucky, liked = prior.predict(pairs(["lucky", "liked"]))[0]
    assert 0 < 2 * lucky < liked


def test_a_rate_fades_in_event_time_and_a_late_record_turns_nothing_back() -> None:
    def after(days: int) -> float:
        prior = ItemPrior(ItemPriorConfig(half_life_days=30))
        prior.learn(CLICK, pairs(["a"] * 40 + ["b"] * 40), outcomes([1.0] * 40 + [0.0] * 40))
        later = outcomes([0.0] * 10 + [0.5] * 10, at=days * DAY)
        prior.learn(CLICK, pairs(["a"] * 10 + ["b"] * 10), later)
        prior.learn(CLICK, pairs(["c"]), outcomes([0.0], at=0))
        return float(prior.predict(pairs(["a"]))[0, 0])

    assert after(0) > after(60) > after(300)
    assert after(300) < 0 < after(0)


def test_an_item_shown_where_it_does_not_belong_is_no_bad_item() -> None:
    """Two items of one kind; one is also shown 900 times where the other parts expect nothing."""
    prior = ItemPrior()
    here, there = np.log(0.4 / 0.6), np.log(0.01 / 0.99)
    fitting = replace(outcomes([0.4] * 200), logit=np.full(200, here))
    prior.learn(CLICK, pairs(["shown well"] * 100 + ["shown anywhere"] * 100), fitting)
    foreign = replace(outcomes([0.01] * 900), logit=np.full(900, there))
    prior.learn(CLICK, pairs(["shown anywhere"] * 900), foreign)
    well, anywhere = prior.predict(pairs(["shown well", "shown anywhere"]))[0]
    assert well == pytest.approx(0, abs=1e-12)
    assert anywhere == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("part", [ItemPrior(), Attributes()], ids=lambda part: type(part).__name__)
def test_what_an_item_and_its_attributes_are_worth_is_told_by_showings_alone(
    part: LearningPart,
) -> None:
    """A purchase is not another showing, and those that did not buy had clicked."""
    before = part.snapshot()
    part.learn(PURCHASE, pairs(["a"] * 10, attributes=[{"brand": "x"}] * 10), outcomes([1.0] * 10))
    assert part.snapshot() == before


def test_a_prototype_carries_an_item_to_queries_like_those_that_found_it() -> None:
    prototype = Prototype(WIDTH, SCALE)
    for _ in range(10):
        prototype.learn(CLICK, pairs(["found", "ignored"]), outcomes([1.0, 0.0]))
    near = np.array([0.96, 0.28], dtype=np.float32)
    found, ignored, never = prototype.predict(pairs(["found", "ignored", "?"], asked=near))[0]
    assert found > ignored + 2
    assert never == ignored == pytest.approx(SCALE * (0.28 - TYPICAL_COSINE)), "of its text"
    away = prototype.predict(pairs(["found"], asked=NORTH))[0, 0]
    assert away < found / 2, "its text is no longer all that it stands for"


def test_a_click_far_down_says_more_about_a_prototype_up_to_a_bound() -> None:
    def said(theta: float) -> float:
        prototype = Prototype(WIDTH, SCALE, PrototypeConfig(largest_weight=3.0))
        prototype.learn(CLICK, pairs(["a"]), outcomes([1.0], theta=theta))
        return float(prototype.predict(pairs(["a"]))[0, 0])

    assert OF_THE_TEXT < said(1.0) < said(0.5) < said(0.2) == said(0.01)


def test_a_purchase_moves_the_prototype_further_than_a_click() -> None:
    def said(task: TaskName) -> float:
        prototype = Prototype(WIDTH, SCALE)
        prototype.learn(task, pairs(["a"]), outcomes([1.0]))
        return float(prototype.predict(pairs(["a"]))[0, 0])

    assert OF_THE_TEXT < said(CLICK) < said(PURCHASE)


def test_the_first_click_on_an_item_moves_its_prototype_by_little() -> None:
    """The text counts as four queries; where one that was silent began to speak, it would leap."""
    prototype = Prototype(WIDTH, SCALE)
    prototype.learn(CLICK, pairs(["other"]), outcomes([1.0]))
    before, *values = prototype.predict(pairs(["a"]))[0]
    for _ in range(40):
        prototype.learn(CLICK, pairs(["a"]), outcomes([1.0]))
        values += prototype.predict(pairs(["a"]))[0].tolist()
    steps = np.diff([before, *values])
    assert before == pytest.approx(OF_THE_TEXT)
    assert (steps > 0).all()
    assert steps.max() < SCALE / 4
    assert values[-1] > SCALE / 2


def test_the_item_without_a_click_for_longest_gives_its_place_to_a_new_one() -> None:
    prototype = Prototype(WIDTH, SCALE, PrototypeConfig(max_items=2))
    for item in ("a", "b", "a", "c"):
        prototype.learn(CLICK, pairs([item]), outcomes([1.0]))
    said = prototype.predict(pairs(["a", "b", "c"]))[0]
    assert (said > OF_THE_TEXT + 1).tolist() == [True, False, True]
    again = Prototype(WIDTH, SCALE, PrototypeConfig(max_items=2))
    again.restore(prototype.snapshot())
    for own in (prototype, again):
        own.learn(CLICK, pairs(["d"]), outcomes([1.0]))
    assert again.snapshot() == prototype.snapshot()


def test_what_all_queries_share_tells_no_two_items_apart() -> None:
    """All queries have a direction in common; 49 of 50 want the upper of two items."""
    draw, width, number = np.random.default_rng(0), 8, 1200
    wanted = np.where(draw.random(number) < 0.98, 1.0, -1.0)
    queries = np.zeros((number, width), dtype=np.float32)
    queries[:, 0] = draw.normal(1.0, 0.2, number)
    queries[:, 3] = 0.2 * wanted + draw.normal(0.0, 0.1, number)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)

    def right(*, with_metric: bool) -> float:
        """Share for which the right item is ahead, mean of those that want each."""
        prototype = Prototype(width, SCALE)
        metric = prototype._metric if with_metric else QueryMetric(width, most=1e5)

        def shown(i: int) -> Pairs:
            plain = pairs(["upper", "lower"])
            vectors = (
                np.tile(queries[i], (2, 1)),
                np.tile(np.eye(width, dtype=np.float32)[7], (2, 1)),
            )
            return replace(plain, query_vectors=vectors[0], item_vectors=vectors[1])

        for i in range(200):
            liked = [float(wanted[i] > 0), float(wanted[i] < 0)]
            prototype.learn(CLICK, shown(i), outcomes(liked))
        prototype._metric = metric
        said = [prototype.predict(shown(i))[0] for i in range(200, number)]
        is_right = np.array(
            [(a > b) == (w > 0) for (a, b), w in zip(said, wanted[200:], strict=True)]
        )
        return float(np.mean([is_right[wanted[200:] == w].mean() for w in (-1, 1)]))

    assert right(with_metric=True) > right(with_metric=False) + 0.1


def test_what_one_query_was_clicked_for_is_kept_when_another_query_comes() -> None:
    """Less its own mean, nothing would be left of a query that all but a few showings were of."""
    prototype = Prototype(WIDTH, SCALE)
    for _ in range(60):
        prototype.learn(CLICK, pairs(["found", "ignored"]), outcomes([1.0, 0.0]))
    before = prototype.predict(pairs(["found", "ignored"]))[0]
    other = np.array([0.6, 0.8], dtype=np.float32)
    prototype.learn(CLICK, pairs(["another"], asked=other), outcomes([0.0]))
    after = prototype.predict(pairs(["found", "ignored"]))[0]
    assert after[0] - after[1] > (before[0] - before[1]) / 2


def test_an_item_never_shown_has_what_its_brand_learned_from_others() -> None:
    attributes = Attributes()
    for i in range(200):
        brands: list[dict[str, Attribute]] = [{"brand": "trusted"}, {"brand": "other"}]
        shown = pairs([f"a {i}", f"b {i}"], attributes=brands)
        attributes.learn(CLICK, shown, outcomes([float(i % 4 == 0), float(i % 40 == 0)]))
    new: list[dict[str, Attribute]] = [{"brand": "trusted"}, {"brand": "other"}, {"brand": "?"}, {}]
    trusted, other, unknown, none = attributes.predict(pairs(["x"] * 4, attributes=new))[0]
    assert trusted - other > 1
    assert np.isnan([unknown, none]).all()
    counts = attributes.coefficients()["brand"]
    assert counts.alone > 0.5
    assert counts.alone_error < 0.4, "learned from the two of a list, where one was chosen"


@pytest.mark.parametrize("theta", [1.0, 0.25])
def test_the_effect_of_an_attribute_does_not_depend_on_where_its_items_are_shown(
    theta: float,
) -> None:
    attributes = Attributes()
    here: list[dict[str, Attribute]] = [{"brand": "here"}]
    first: list[dict[str, Attribute]] = [{"brand": "first"}]
    for i in range(800):
        low = outcomes([float(i % 8 < 4 * theta)], theta=theta)
        attributes.learn(CLICK, pairs(["a"], attributes=here), low)
        attributes.learn(CLICK, pairs(["b"], attributes=first), outcomes([float(i % 2)]))
    found = attributes.predict(pairs(["a", "b"], attributes=[*here, *first]))[0]
    assert abs(found[0] - found[1]) < 0.4


@pytest.mark.parametrize("tuning", ["full", "top:1", "frozen"])
def test_the_starting_encoder_stays_where_it_was_while_the_encoder_moves(tuning: str) -> None:
    own = trainer(tuning=tuning)
    texts = ["red shoe", "a blue lamp", "wool"]
    before, parameters = own.ranker.starting_vectors(texts), weights_of(own)
    start = own.files()["start.safetensors"]
    for batch in batches(4):
        own.step(batch)
    moved = weights_of(own)
    changed = [n for n in moved if n.startswith("encoder") and (moved[n] != parameters[n]).any()]
    assert bool(changed) == (tuning != "frozen")
    own.ranker.starting.load(own.ranker.starting.tensors())  # nothing kept: encode again
    np.testing.assert_array_equal(own.ranker.starting_vectors(texts), before)
    files = own.files()
    assert files["start.safetensors"] == start
    other = trainer(tuning=tuning, seed=3)
    other.restore(files.__getitem__)
    np.testing.assert_array_equal(other.ranker.starting_vectors(texts), before)
