"""Affinity of a client: it helps those with a taste, and says nothing of the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from learner.artifact import ScoringInput
from learner.parts.client_affinity import ClientAffinity, ClientAffinityConfig
from learner.parts.part import Outcomes, Pairs, Part
from learner.parts.stateless import CLIENT_COLUMNS, OWN_ENCODER, PAIR_MEMORY, RESIDUAL, Given
from learner.request import ENCODER
from learner.served import ServedScore
from learner.trainer import Trainer
from tests.learner.test_parts import outcomes, pairs
from tests.learner.test_scorer import columns, live, requests
from tests.learner.training import batches, reader, trainer
from tests.weighting.streams import DAY
from weighting.errors import SnapshotError, WeightError
from weighting.sample import Attribute, client_hash
from weighting.schemes.ratio import ImportanceRatio
from weighting.tasks import CLICK, PURCHASE, TASKS

Array = NDArray[np.float64]
Brands = NDArray[np.int_]
ANN, BOB, GUEST = (client_hash(name) for name in ("ann", "bob", "guest"))
WIDTH = 8
NUM_BRANDS, NUM_CLIENTS, LIST_SIZE = 6, 20, 10
_LIKED, _LEVEL = 2.0, -1.5
"""Logits: what a liked brand adds, and any item before."""


@dataclass(frozen=True)
class Shop:
    """A shop of items in kinds and brands; a query asks for a kind, and the encoder knows it.

    Attributes:
        taste: client -> the brand that it likes; all like the first where nothing is named.
        shared: share of the lists in which a client is a guest.
    """

    taste: dict[int, int]
    shared: float = 0.0

    def pairs(self, kind: int, brands: Brands, client: int, logit: Array) -> Pairs:
        number, nothing = len(brands), np.full(len(brands), np.nan)
        vectors = np.zeros((number, WIDTH), dtype=np.float32)
        vectors[:, kind] = 1.0
        return Pairs(
            queries=[f"kind {kind}"] * number,
            clients=[client] * number,
            items=[f"item {kind} {brand}" for brand in brands],
            texts=[f"item {kind} {brand}" for brand in brands],
            attributes=[{"brand": f"brand {b}", "kind": f"kind {kind}"} for b in brands.tolist()],
            query_vectors=vectors,
            item_vectors=vectors,
            given={ENCODER: logit, OWN_ENCODER: nothing, RESIDUAL: nothing, PAIR_MEMORY: nothing},
        )

    def liked(self, client: int, brands: Brands) -> Array:
        return np.where(brands == self.taste.get(client, 0), _LIKED, 0.0)


def taught(shop: Shop, *, lists: int, seed: int) -> ServedScore:
    """A score that learned so many lists, each before it was told the clicks."""
    draw = np.random.default_rng(seed)
    parts: dict[str, Part] = {name: Given(name, 0.5) for name in (RESIDUAL, PAIR_MEMORY)}
    parts |= {ENCODER: Given(ENCODER, 1.0), "client_affinity": ClientAffinity(WIDTH)}
    initial = dict.fromkeys(TASKS, float(expit(_LEVEL)))
    served = ServedScore(ImportanceRatio(0.0).invert, parts, initial)
    clients = list(shop.taste)
    for number in range(lists):
        client = clients[int(draw.integers(len(clients)))]
        brands = draw.integers(NUM_BRANDS, size=LIST_SIZE)
        theta = 1 / np.arange(1, LIST_SIZE + 1) ** 0.5
        wanted = shop.liked(client, brands)
        clicked = (draw.random(LIST_SIZE) < theta * expit(_LEVEL + wanted)).astype(np.float64)
        signed = GUEST if draw.random() < shop.shared else client
        # The encoder knows what all like
        known = wanted if len(set(shop.taste.values())) == 1 else np.zeros(LIST_SIZE)
        asked = shop.pairs(int(draw.integers(WIDTH)), brands, signed, known)
        said = served.ask(CLICK, asked)
        told = replace(
            outcomes(clicked.tolist(), at=number * 1_000_000),
            examination=theta,
            logit=served.logit(CLICK, said),
        )
        served.learn(CLICK, asked, said, told)
    return served


def quality(served: ServedScore, shop: Shop, *, asking: dict[int, int], seed: int) -> Array:
    """NDCG of held-out lists, one for each kind and client: `asking` is who is said to ask."""
    draw, found = np.random.default_rng(1000 + seed), []
    for client, signed in asking.items():
        for kind in range(WIDTH):
            brands = draw.permutation(np.arange(LIST_SIZE) % NUM_BRANDS)
            gains = expit(_LEVEL + shop.liked(client, brands))
            is_common = len(set(shop.taste.values())) == 1
            known = shop.liked(client, brands) if is_common else np.zeros(LIST_SIZE)
            asked = shop.pairs(kind, brands, signed, known)
            order = np.argsort(-served.logit(CLICK, served.ask(CLICK, asked)), kind="stable")
            discount = 1 / np.log2(np.arange(2, LIST_SIZE + 2))
            found.append((gains[order] * discount).sum() / (np.sort(gains)[::-1] * discount).sum())
    return np.array(found)


def moved(served: ServedScore, shop: Shop, client: int) -> float:
    """Root mean square of what a client's affinity adds to each brand, in logits."""
    asked = shop.pairs(0, np.arange(NUM_BRANDS), client, np.zeros(NUM_BRANDS))
    added = served.contributions(CLICK, served.ask(CLICK, asked))
    both = np.sum([added[name] for name in CLIENT_COLUMNS], axis=0)
    return float(both.std())


def tastes(*, common: bool = False) -> dict[int, int]:
    names = [client_hash(f"client {i}") for i in range(NUM_CLIENTS)]
    return {client: 0 if common else i % NUM_BRANDS for i, client in enumerate(names)}


def same(taste: dict[int, int]) -> dict[int, int]:
    return {client: client for client in taste}


def unsigned(taste: dict[int, int]) -> dict[int, int]:
    return dict.fromkeys(taste, 0)


def test_lists_of_clients_with_a_taste_are_ordered_better_and_those_of_others_as_before() -> None:
    gains = []
    for seed in range(4):
        shop = Shop(tastes())
        served = taught(shop, lists=300, seed=seed)
        plain = quality(served, shop, asking=unsigned(shop.taste), seed=seed)
        signed = quality(served, shop, asking=same(shop.taste), seed=seed)
        gains.append(float((signed - plain).mean()))
        strangers = {client: client_hash(f"new {client}") for client in shop.taste}
        unknown = quality(served, shop, asking=strangers, seed=seed)
        np.testing.assert_array_equal(unknown, plain)
    low = np.mean(gains) - 3.2 * np.std(gains, ddof=1) / 2  # Student's t, three degrees of freedom
    assert low > 0.05


def test_where_clients_have_no_taste_of_their_own_hardly_anything_is_lost() -> None:
    """After 300 lists of 20 clients: .002 of NDCG, .2 of a logit for any client."""
    losses = []
    for seed in range(4):
        shop = Shop(tastes(common=True))
        served = taught(shop, lists=300, seed=seed)
        plain = quality(served, shop, asking=unsigned(shop.taste), seed=seed)
        losses.append(plain - quality(served, shop, asking=same(shop.taste), seed=seed))
        assert max(moved(served, shop, client) for client in shop.taste) < 0.2
    assert np.mean(losses) < 0.002


def test_an_id_that_all_share_says_nothing_and_harms_nobody() -> None:
    shop = Shop(tastes(), shared=1.0)
    served = taught(shop, lists=200, seed=0)
    asked = shop.pairs(0, np.arange(NUM_BRANDS), GUEST, np.zeros(NUM_BRANDS))
    assert np.isnan(served.ask(CLICK, asked)[-2:]).all()
    half = Shop(tastes(), shared=0.5)
    served = taught(half, lists=400, seed=0)
    plain = quality(served, half, asking=unsigned(half.taste), seed=0)
    signed = quality(served, half, asking=same(half.taste), seed=0)
    assert moved(served, half, GUEST) == 0
    assert (signed - plain).mean() > 0.05


def chosen(
    affinity: ClientAffinity,
    *,
    client: int = ANN,
    brand: str = "x",
    times: int = 1,
    told: Outcomes | None = None,
) -> None:
    """Let a client click one of two brands, x or else y, and not the other, so many times."""
    other = "y" if brand == "x" else "x"
    attributes: list[dict[str, Attribute]] = [{"brand": brand}, {"brand": other}]
    for at in range(times):
        shown = pairs([f"of {brand}", f"of {other}"], client=client, attributes=attributes)
        affinity.learn(CLICK, shown, told or outcomes([1.0, 0.0], at=at))


def liking(affinity: ClientAffinity, client: int = ANN) -> float:
    """What is said for brand x, less what is said for brand y."""
    attributes: list[dict[str, Attribute]] = [{"brand": "x"}, {"brand": "y"}]
    x, y = affinity.predict(pairs(["c", "d"], client=client, attributes=attributes))[1]
    return float(x - y)


def two_tastes(**config: float) -> ClientAffinity:
    """Ann likes x and Bob does not, among others who are divided."""
    affinity = ClientAffinity(2, ClientAffinityConfig(hash_bits=8, **config))
    others = [(client_hash(f"other {i}"), "xy"[i % 2]) for i in range(10)]
    for client, brand in ((ANN, "x"), (BOB, "y"), *others):
        chosen(affinity, client=client, brand=brand, times=5)
    return affinity


def test_a_taste_is_told_beside_that_of_all() -> None:
    affinity = two_tastes()
    assert liking(affinity, ANN) > 0.3
    assert liking(affinity, BOB) < -0.3
    alike = ClientAffinity(2)
    for client in (ANN, BOB):
        for _ in range(5):
            chosen(alike, client=client)
    assert liking(alike, ANN) == pytest.approx(0, abs=1e-6)


def test_what_all_clients_do_says_nothing_even_of_the_only_one() -> None:
    """The one client's taste is that of all."""
    affinity = ClientAffinity(2)
    chosen(affinity, client=GUEST, times=20)
    shown: list[dict[str, Attribute]] = [{"brand": "x"}, {"brand": "y"}]
    said = affinity.predict(pairs(["c", "d"], client=GUEST, attributes=shown))
    np.testing.assert_allclose(said, 0, atol=1e-5)


def test_what_the_rest_of_the_score_expected_says_nothing_of_the_client() -> None:
    carol, affinity = client_hash("carol"), two_tastes()
    expected = replace(outcomes([1.0, 0.0]), logit=np.array([8.0, -8.0]))
    chosen(affinity, client=carol, brand="x", times=5, told=expected)
    assert abs(liking(affinity, carol)) < 0.1 * liking(affinity, ANN)


@pytest.mark.parametrize("theta", [0.5, 0.1])
def test_a_taste_does_not_depend_on_where_items_were_shown(theta: float) -> None:
    """Brand x is clicked twice as often as expected, in as many expected clicks."""

    def after(theta: float) -> float:
        affinity, rate = ClientAffinity(2), 2 * float(expit(-2.2)) * theta
        for _ in range(round(200 / theta)):
            chosen(affinity, client=ANN, told=outcomes([rate, 0.0], theta=theta))
            chosen(affinity, client=BOB, told=outcomes([0.0, rate], theta=theta))
        return liking(affinity, ANN)

    assert after(theta) == pytest.approx(after(1.0), rel=1e-3)
    assert after(theta) > 0.4


def test_a_discounted_click_counts_for_its_discount() -> None:
    once, thrice = two_tastes(), two_tastes()
    third = replace(outcomes([1.0, 0.0]), weight=np.full(2, 1 / 3), discount=np.full(2, 1 / 3))
    chosen(once, told=outcomes([1.0, 0.0]))
    for _ in range(3):
        chosen(thrice, told=third)
    assert liking(thrice) == pytest.approx(liking(once), rel=1e-5)
    assert liking(once) > liking(two_tastes())
    before = once.snapshot()
    chosen(once, told=replace(third, weight=np.zeros(2), discount=np.zeros(2)))
    chosen(once, told=replace(third, factor=np.zeros(2)))
    assert once.snapshot() == before


def test_a_taste_fades_in_event_time_and_a_late_record_turns_nothing_back() -> None:
    def after(days: int) -> float:
        affinity = two_tastes(half_life_days=30.0)
        chosen(affinity, client=BOB, brand="y", told=outcomes([1.0, 0.0], at=days * DAY))
        chosen(affinity, client=BOB, brand="y", told=outcomes([1.0, 0.0], at=0))
        return liking(affinity, ANN)

    assert after(0) > after(30) > after(300) > 0
    assert after(300) < 0.05


def test_a_client_whose_taste_changes_is_followed() -> None:
    affinity = two_tastes(half_life_days=30.0)
    later = outcomes([1.0, 0.0], at=300 * DAY)
    for client, brand in ((ANN, "y"), (BOB, "x")):
        chosen(affinity, client=client, brand=brand, times=2, told=later)
    assert liking(affinity, ANN) < -0.1


def test_a_new_client_has_nothing_of_the_one_whose_room_it_takes() -> None:
    affinity = ClientAffinity(2, ClientAffinityConfig(hash_bits=2))
    for number in range(4):
        chosen(affinity, client=client_hash(f"old {number}"), brand="x", times=9)
    later = outcomes([1.0, 0.0], at=3_000 * DAY)
    new = {client_hash(f"new {number}"): "xxyy"[number] for number in range(4)}
    for client, brand in new.items():
        chosen(affinity, client=client, brand=brand, told=later)
    for client, brand in new.items():
        assert (liking(affinity, client) > 0) == (brand == "x")


def test_a_purchase_adds_to_what_the_click_said() -> None:
    affinity = two_tastes()
    before = liking(affinity)
    bought = pairs(["a"], client=ANN, attributes=[{"brand": "x"}])
    affinity.learn(PURCHASE, bought, outcomes([1.0]))
    assert liking(affinity) > before + 0.02


def test_clients_that_come_once_do_not_push_out_one_with_a_history() -> None:
    affinity = two_tastes()
    before = liking(affinity)
    for number in range(3_000):
        chosen(affinity, client=client_hash(f"once {number}"), brand=f"{number % 7}")
    assert liking(affinity) > before / 2
    assert len(affinity.snapshot()) < 256 * 220 + 2_500


def test_a_list_without_a_client_teaches_nothing_and_is_told_nothing() -> None:
    affinity = two_tastes()
    before = affinity.snapshot()
    chosen(affinity, client=0)
    assert affinity.snapshot() == before
    assert np.isnan(affinity.predict(pairs(["a"], client=0))).all()
    assert np.isnan(affinity.predict(pairs(["a"], client=GUEST))).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_refused_and_nothing_learned(bad: float) -> None:
    affinity = two_tastes()
    before = affinity.snapshot()
    vectors = np.array([[0.5, bad]], dtype=np.float32)
    with pytest.raises(WeightError, match="item vector"):
        affinity.learn(CLICK, replace(pairs(["a"]), item_vectors=vectors), outcomes([1.0]))
    assert affinity.snapshot() == before


@pytest.mark.parametrize("name", ["profiles", "shared", "shown", "width"])
def test_a_snapshot_that_is_cut_or_not_finite_is_refused(name: str) -> None:
    state = msgspec.msgpack.decode(two_tastes().snapshot())
    own = state[name]
    state[name] = own[:-4] if isinstance(own, bytes) else [*own[:-1], np.nan] if own != 2 else 3
    with pytest.raises(SnapshotError):
        ClientAffinity(2, ClientAffinityConfig(hash_bits=8)).restore(msgspec.msgpack.encode(state))


def test_a_purchase_is_not_told_by_a_profile_that_has_learned_its_click() -> None:
    shop = Shop(tastes())
    served = taught(shop, lists=100, seed=0)
    brands = np.arange(NUM_BRANDS)
    known = shop.pairs(0, brands, next(iter(shop.taste)), np.zeros(NUM_BRANDS))
    unknown = replace(known, clients=[0] * NUM_BRANDS)
    assert (served.ask(CLICK, known)[-2:] != 0).any()
    np.testing.assert_array_equal(served.ask(PURCHASE, known), served.ask(PURCHASE, unknown))


def of_clients(*names: str) -> Trainer:
    """A trainer whose lists come from clients in turn."""
    own = trainer(tuning="frozen")
    for number, batch in enumerate(batches(6)):
        client = client_hash(names[number % len(names)])
        own.step([msgspec.structs.replace(s, client=client) for s in batch])
    return own


def test_only_a_request_of_a_known_client_is_scored_otherwise() -> None:
    scorer = live(of_clients("ann", "bob"))
    request = requests(3)[2]
    (plain,) = scorer.score([request])
    (stranger,) = scorer.score([msgspec.structs.replace(request, client=GUEST)])
    (known,) = scorer.score([msgspec.structs.replace(request, client=ANN)])
    for name, column in columns(plain).items():
        assert columns(stranger)[name].tobytes() == column.tobytes(), name
    assert (known.score != plain.score).any()
    for name in CLIENT_COLUMNS:
        assert (plain.contributions[name] == 0).all()
        assert (known.contributions[name] != 0).any()


def test_a_batch_of_requests_keeps_clients_apart() -> None:
    scorer = live(of_clients("ann", "bob"))
    asked = [
        ScoringInput(query=r.query, documents=r.documents, client=client)
        for r, client in zip(requests(3), (ANN, 0, BOB), strict=True)
    ]
    for one, found in zip(asked, scorer.score(asked), strict=True):
        (alone,) = scorer.score([one])
        np.testing.assert_allclose(found.score, alone.score, rtol=4e-3)
        has_client = [bool((found.contributions[name] != 0).any()) for name in CLIENT_COLUMNS]
        assert has_client == [one.client != 0] * 2


def test_what_is_known_of_clients_is_restored_and_holds_no_id() -> None:
    own, again = of_clients("ann", "bob-7f3a"), trainer(tuning="frozen")
    files = own.files()
    assert all(b"bob-7f3a" not in data for data in files.values())
    again.restore(reader(files))
    request = msgspec.structs.replace(requests(3)[2], client=ANN)
    (expected,), (found,) = live(own).score([request]), live(again).score([request])
    for name, column in columns(expected).items():
        np.testing.assert_array_equal(columns(found)[name], column)
