"""Texts: cut before they are tokenised, kept by their digests within a bound of bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learner.encoder.tokens import Texts, letter_tokenizer, load_tokenizer
from tests.learner.families import bert, saved
from tests.learner.training import trainer


class Recording:
    """A tokenizer that records the length of what it is given."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, text: str, pair: str | None, **options: Any) -> dict[str, list[int]]:
        self.lengths.append(len(text) + len(pair or ""))
        return {"input_ids": [0] * options["max_length"]}


def test_a_text_of_megabytes_is_cut_before_it_is_tokenised() -> None:
    tokenizer = Recording()
    Texts(tokenizer, max_tokens=16).ids("a " * 1_000_000)
    assert tokenizer.lengths == [64 * 16]


def test_a_cut_text_has_the_ids_of_the_whole_one() -> None:
    text = "trail running shoe, red " * 1000
    ids = Texts(letter_tokenizer(), max_tokens=64).ids(text)
    whole = letter_tokenizer()(text, truncation=True, max_length=64)["input_ids"]
    assert ids.tolist() == whole


def test_what_is_kept_has_a_bound_in_bytes_and_holds_no_text() -> None:
    tokenizer = Recording()
    texts = Texts(tokenizer, max_tokens=100, max_bytes=50_000)
    for number in range(1000):
        texts.ids(f"text {number}")
    kept = texts._cache
    assert 20 < len(kept) <= 50_000 // 800
    assert all(isinstance(key, bytes) and len(key) == 16 for key in kept)
    texts.ids("text 999")
    assert len(tokenizer.lengths) == 1000, "the newest is kept"


def test_a_pair_is_not_taken_for_another_text_or_pair() -> None:
    texts = Texts(letter_tokenizer(), max_tokens=64)
    found = [texts.ids("ab", "c"), texts.ids("a", "bc"), texts.ids("abc"), texts.ids("2 abc")]
    different = [
        not np.array_equal(one, other)
        for place, one in enumerate(found)
        for other in found[place + 1 :]
    ]
    assert all(different)


def test_pairs_have_the_ids_of_their_own_query_whichever_came_before() -> None:
    texts = Texts(letter_tokenizer(), max_tokens=16)
    queries = ("", "ab", "a query that is longer than half of the room", "ab", "ba", "")
    for number, query in enumerate(queries):
        for item in (f"item {number}", f"other {number}"):
            alone = Texts(letter_tokenizer(), max_tokens=16).ids(query, item)
            np.testing.assert_array_equal(texts.ids(query, item), alone)


@pytest.mark.parametrize("side", ["left", "right"])
def test_learner_and_version_keep_the_same_end_of_a_text(tmp_path: Path, side: str) -> None:
    """A version keeps no side, so a folder's own `truncation_side` must not count."""
    folder = saved(tmp_path / "model", bert())
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "truncation_side": side}))
    assert load_tokenizer(folder).truncation_side == side
    own = trainer(model=str(folder))
    version = tmp_path / "version"
    version.mkdir()
    for name, data in own.files().items():
        if "/" not in name:
            (version / name).write_bytes(data)
    served = Texts(load_tokenizer(version), max_tokens=24)
    text = "abcdefghijklmnopqrstuvwxyz0123456789"
    for pair in (None, text[::-1]):
        ids = own.ranker.texts.ids(text, pair).tolist()
        assert served.ids(text, pair).tolist() == ids
        assert ids[1] == letter_tokenizer().get_vocab()["a"]
        assert len(ids) == 24
