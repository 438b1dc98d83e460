"""A version loaded from a real store scores as the learner that wrote it."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit

from learner import version_layout as layout
from learner.artifact import Corrupt, Document, Scores, ScoringInput, Store, Warmable
from learner.encoder.encoder import Encoder
from learner.export import read_encoder
from learner.scorer import ModelScorer, load_scorer
from learner.store import blobs
from learner.store.blobs import Disk
from learner.trainer import Trainer
from tests.contracts.parts import stateful_parts
from tests.learner.saving import cut, owner
from tests.learner.training import WORDS, batches, published, text, trainer
from weighting.config import WeigherConfig
from weighting.sample import Attribute
from weighting.tasks import CLICK, PURCHASE

KINDS: list[dict[str, Any]] = [
    {"tuning": "full"},
    {"tuning": "top:1"},
    {"tuning": "frozen"},
    {"tuning": "full", "interaction": "cross_encoder"},
    {"tuning": "top:1", "dropout": 0.2},
]


def requests(number: int = 8) -> list[ScoringInput]:
    """Queries of the stream and a new one, with products shown and never shown.

    A request has one to forty documents.
    """
    attributes: dict[str, Attribute] = {"category": "shoes", "price": 49.9}
    found = []
    for i in range(number):
        documents = [
            Document(text=text(item), id=f"SKU-{item}", attributes=attributes)
            for item in range(i, 40, i + 1)
        ]
        new = Document(text=f"never seen {i}")
        found.append(ScoringInput(query=f"query {WORDS[i % 5]}", documents=(*documents, new)))
    return found


def learned(number: int = 6, weighting: WeigherConfig | None = None, **changes: Any) -> Trainer:
    own = trainer(weighting, **changes)
    for batch in batches(number):
        own.step(batch)
    return own


@pytest.mark.parametrize("precision", ["learned", "bfloat16"])
@pytest.mark.parametrize("kind", [*KINDS, {"tuning": "lora:2"}], ids=str)
def test_a_version_loaded_in_inference_mode_scores_as_any_other(
    kind: dict[str, Any], precision: str, tmp_path: Path
) -> None:
    own = trainer(**kind)
    folders = []
    for number, batch in enumerate(batches(2)):
        own.step(batch)
        folders.append(published(own, tmp_path / str(number)).path)

    def scores(in_inference_mode: bool) -> list[list[Scores]]:
        found, fixed = [], None
        for folder in folders:  # the second takes what is fixed from the first
            with torch.inference_mode(in_inference_mode):
                scorer = load_scorer(folder, "v", threads=1, precision=precision, fixed=fixed)
            fixed = scorer.fixed_parts
            found.append(scorer.score(requests(2)))
        return found

    for ours, expected in zip(scores(True), scores(False), strict=True):
        for one, other in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(one.score, other.score)


def live(own: Trainer) -> ModelScorer:
    return ModelScorer("live", own.ranker, own.weigher, own.served)


@pytest.mark.parametrize("learned_in", ["float32", "bfloat16"])
@pytest.mark.parametrize("served_in", ["float32", "bfloat16"])
def test_a_version_is_served_in_the_precision_asked_for(
    learned_in: str, served_in: str, tmp_path: Path
) -> None:
    own = learned(2, tuning="top:1", precision=learned_in)
    version = published(own, tmp_path)
    scorer = Store(tmp_path, precision=served_in).load(version)
    again = Store(tmp_path).load(version)
    assert isinstance(scorer, ModelScorer)
    assert scorer._ranker.encoder.precision == served_in
    same = [
        np.array_equal(one.score, other.score)
        for one, other in zip(scorer.score(requests()), again.score(requests()), strict=True)
    ]
    assert all(same) == (learned_in == served_in)


def columns(scores: Scores) -> dict[str, NDArray[np.float64]]:
    return {**scores.probability, "score": scores.score}


def assert_equal(found: Scores, expected: Scores) -> None:
    assert columns(found).keys() == {CLICK, PURCHASE, "score"}
    for name, column in columns(expected).items():
        np.testing.assert_array_equal(columns(found)[name], column, err_msg=name)
    assert found.prior == expected.prior


ROUNDING = 4e-3
"""Relative, of a score.

A part that is kept in half precision may round the other way: 2^-11 of a unit vector moves a cosine
by at most 2^-10 and a logit of scale 8 by 8e-3, of which the stacker takes a part.
"""


def assert_close(found: Scores, expected: Scores) -> None:
    for name, column in columns(expected).items():
        np.testing.assert_allclose(columns(found)[name], column, rtol=ROUNDING, err_msg=name)
    assert found.prior == expected.prior


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_version_loaded_from_the_store_scores_as_the_learner_that_wrote_it(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    own = learned(**kind)
    version = published(own, tmp_path)
    scorer = Store(tmp_path).load(version)
    assert scorer.version == version.name == "v000002"
    for found, expected in zip(scorer.score(requests()), live(own).score(requests()), strict=True):
        assert_equal(found, expected)
        assert np.ptp(found.score) > 0


@pytest.mark.parametrize("kind", KINDS[:4], ids=str)
def test_the_same_requests_have_the_same_bits_and_others_beside_them_change_only_rounding(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    version, asked = published(learned(**kind), tmp_path), requests()
    store = Store(tmp_path)
    together = store.load(version).score(asked)
    for again, expected in zip(Store(tmp_path).load(version).score(asked), together, strict=True):
        assert_equal(again, expected)
    backwards = Store(tmp_path).load(version).score(asked[::-1])[::-1]
    scorer = Store(tmp_path).load(version)
    for i in (0, 3, 7):
        fresh = Store(tmp_path).load(version)
        alone = fresh.score([asked[i]])[0]
        assert_equal(fresh.score([asked[i]])[0], alone)
        for other in (alone, backwards[i], scorer.score([asked[i]])[0]):
            assert_close(other, together[i])
    one = ScoringInput(query=asked[2].query, documents=asked[2].documents[-1:])
    assert scorer.score([one])[0].score[0] == pytest.approx(together[2].score[-1], rel=ROUNDING)


def test_what_the_parts_contribute_adds_up_to_the_served_logit() -> None:
    for scores in live(learned()).score(requests()):
        total = np.sum(list(scores.contributions.values()), axis=0)
        np.testing.assert_allclose(expit(total), scores.probability[CLICK], rtol=1e-9)


def test_a_request_without_documents_has_no_scores(tmp_path: Path) -> None:
    scorer = Store(tmp_path).load(published(learned(1), tmp_path))
    empty, full = scorer.score([ScoringInput(query="red", documents=()), requests()[0]])
    assert (empty.score.shape, len(full.score)) == ((0,), 41)
    assert scorer.score([ScoringInput(query="red", documents=())])[0].score.shape == (0,)
    assert scorer.score([]) == []


@pytest.mark.parametrize("tuning", ["full", "top:1", "frozen", "lora:2", "ia3@top:1", "prefix:3"])
def test_versions_of_one_store_keep_apart_what_they_share(tmp_path: Path, tuning: str) -> None:
    own, checkpointer = trainer(tuning=tuning), owner(tmp_path)
    versions = []
    for batch in batches(3):
        own.step(batch)
        versions.append(checkpointer.save(own.files(), cut(own.step_number)))
    other = trainer(tuning=tuning, model="random:2x64", max_tokens=6)
    versions.append(checkpointer.save(other.files(), cut(9)))
    shared = Store(tmp_path)
    scorers = [shared.load(version) for version in versions]
    for _ in range(2):
        for version, scorer in zip(versions, scorers, strict=True):
            alone = Store(tmp_path).load(version).score(requests())
            for found, expected in zip(scorer.score(requests()), alone, strict=True):
                assert_equal(found, expected)
    first, third = (scorer.score(requests())[0].score for scorer in (scorers[0], scorers[2]))
    assert not np.array_equal(first, third)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_before_it_learns_clicks_are_a_quarter_encoder_and_a_quarter_zero_shot(
    exponent: float,
) -> None:
    own = trainer(WeigherConfig(exponent=exponent))
    asked = requests()[1]
    with torch.no_grad():
        logits = own.ranker([asked.query] * len(asked.documents), [d.text for d in asked.documents])
    found = live(own).score([asked])[0]
    frozen = logits.by_task[CLICK].double().numpy() + 1.9  # less the bias: 8 (cosine - .35)
    pi = found.prior[CLICK]
    level = np.log(pi / (1 - pi))
    inverted = (logits.by_task[CLICK].double().numpy() + exponent * level) / (1 + exponent)
    expected = level + 0.25 * (inverted - level) + 0.25 * frozen
    np.testing.assert_allclose(found.probability[CLICK], expit(expected), rtol=1e-5)
    # Whether a click is followed by a purchase: nothing is known but how many are
    np.testing.assert_allclose(found.probability[PURCHASE], found.prior[PURCHASE], rtol=1e-12)
    product = found.probability[CLICK] * found.probability[PURCHASE]
    np.testing.assert_array_equal(found.score, product)


def test_what_another_version_declares_is_nothing_that_a_good_one_has_to_share(
    tmp_path: Path,
) -> None:
    own = learned(1, tuning="top:1")
    good, writer = own.files(), owner(tmp_path)
    tensors = blobs.tensors_from_bytes(good[layout.FROZEN])
    table = "embeddings.word_embeddings.weight"  # frozen; heads.json stays as it is
    tensors[table] = tensors[table].roll(1, 0)
    bad = {**good, layout.FROZEN: blobs.tensors_to_bytes(tensors)}
    first, second = writer.save(bad, cut(1)), writer.save(good, cut(2))
    own.step(batches(2)[1])
    third = writer.save(own.files(), cut(3))
    alone = Store(tmp_path).load(second).score(requests())
    together = Store(tmp_path)
    wrong = together.load(first).score(requests())
    found = together.load(second).score(requests())
    for one, expected, other in zip(found, alone, wrong, strict=True):
        assert_equal(one, expected)
        assert np.abs(one.score - other.score).max() > 1e-4
    together.load(third)
    assert len(together._fixed) == 2, "the honest versions share what never moves"


def test_a_changed_byte_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    version = published(learned(1), tmp_path)
    damaged = version.path / "heads.json"
    damaged.chmod(0o640)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b" ")
    with pytest.raises(Corrupt, match=r"heads\.json: expected"):
        Store(tmp_path).load(version)


@pytest.mark.parametrize(
    ("tuning", "file"),
    [
        ("full", layout.MODEL),
        ("top:1", layout.FROZEN),
        ("top:1", layout.MOVING),
        ("lora:2", layout.MODEL),
        ("lora:2", layout.ADAPTER),
    ],
)
def test_a_number_that_is_not_finite_is_refused_with_the_file_that_holds_it(
    tmp_path: Path, tuning: str, file: str
) -> None:
    own = learned(1, tuning=tuning)
    files = own.files()
    tensors = blobs.tensors_from_bytes(files[file])
    name = min(tensors)
    tensors[name].view(-1)[0] = torch.nan
    files[file] = blobs.tensors_to_bytes(tensors)
    version = owner(tmp_path).save(files, cut(1))
    store = Store(tmp_path)
    named = rf"{version.name}/{re.escape(file)}: expected finite .* in {re.escape(name)}\."
    with pytest.raises(Corrupt, match=named):
        store.load(version)
    with pytest.raises(Corrupt, match=named):
        read_encoder(store, version)


def test_the_door_to_the_store_opens_without_torch() -> None:
    code = (
        "import sys, learner.artifact;"
        "print(sorted({'torch', 'transformers', 'river'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("tuning", "still", "moving"),
    [
        ("top:1", layout.FROZEN, layout.MOVING),
        ("lora:2", layout.MODEL, layout.ADAPTER),
        ("prefix:3", layout.MODEL, layout.ADAPTER),
    ],
)
def test_the_next_version_shares_what_never_moves_and_reads_only_the_rest(
    tmp_path: Path, tuning: str, still: str, moving: str
) -> None:
    own, writer = learned(2, tuning=tuning), owner(tmp_path)
    first = writer.save(own.files(), cut(1))
    for batch in batches(4)[2:]:
        own.step(batch)
    second = writer.save(own.files(), cut(2))
    opened: list[str] = []

    class Watched(Disk):
        def open(self, root: Path, relative: str) -> int:
            opened.append(Path(relative).name)
            return super().open(root, relative)

    together = Store(tmp_path, disk=Watched())
    before = together.load(first)
    scores = before.score(requests())
    assert still in opened
    opened.clear()
    after = together.load(second)
    assert still not in opened
    assert moving in opened
    for one, expected in zip(
        after.score(requests()), Store(tmp_path).load(second).score(requests()), strict=True
    ):
        assert_equal(one, expected)
    for one, expected in zip(before.score(requests()), scores, strict=True):
        assert_equal(one, expected)  # the former one is what it was
    assert isinstance(before, Warmable)
    assert isinstance(after, Warmable)
    assert before.fixed == after.fixed


def test_texts_that_were_encoded_ahead_are_not_encoded_by_the_first_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, writer = learned(2, tuning="top:1"), owner(tmp_path)
    first = writer.save(own.files(), cut(1))
    own.step(batches(3)[2])
    second = writer.save(own.files(), cut(2))
    store = Store(tmp_path)
    old, new = (store.load(version) for version in (first, second))
    expected = Store(tmp_path).load(second).score(requests())
    assert isinstance(old, Warmable)
    assert isinstance(new, Warmable)
    old.score(requests())
    new.keep(old.kept())

    def no_text(self: Encoder, texts: object) -> None:
        raise AssertionError("a text was encoded again")

    monkeypatch.setattr(Encoder, "forward", no_text)
    for one, wanted in zip(new.score(requests()), expected, strict=True):
        assert_equal(one, wanted)


def test_a_version_that_is_gone_leaves_no_state_to_the_garbage_collector(tmp_path: Path) -> None:
    store, version = Store(tmp_path), published(learned(1, tuning="top:1"), tmp_path)
    gc.disable()
    try:
        scorer = store.load(version)
        scorer.score(requests(1))
        states = [weakref.ref(part) for part in (scorer, *stateful_parts(scorer))]
        del scorer
        assert len(states) > 10
        assert [ref() for ref in states if ref() is not None] == []
    finally:
        gc.enable()
