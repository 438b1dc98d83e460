"""Identity of a query: spellings that are one, and spellings that are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighting.features import FieldConfig, Fields
from weighting.query_key import query_key

SAME = [
    ("Red SHOES", "red shoes"),
    ("  red \t shoes\n", "red shoes"),
    ("red\u00a0shoes", "red shoes"),
    ("red shoes!", "red shoes"),
    ("Wi-Fi router", "wi fi router"),
    ("cafe\u0301", "caf\u00e9"),  # an accent of its own, and within the letter
    ("\uff32\uff45\uff44 shoes", "red shoes"),  # full width
    ("stra\u00dfe", "STRASSE"),
    ("\ufeffred\u200b shoes", "red shoes"),
]
DIFFERENT = [
    ("red shoes", "shoes red"),
    ("c++", "c"),
    ("3.5 mm", "35 mm"),
    ("3.5 mm", "3 5 mm"),
    ("caf\u00e9", "cafe"),
    # Vowel signs are no letters: "day" and "heart" would be one word without them
    ("\u0926\u093f\u0928", "\u0926\u0940\u0928"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_query_have_one_key_and_the_same_fields(one: str, other: str) -> None:
    fields = Fields(FieldConfig())
    assert query_key(one) == query_key(other)
    assert fields.fields(one, "1", "red shoe", {}) == fields.fields(other, "1", "red shoe", {})


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_queries_have_different_keys_and_fields(one: str, other: str) -> None:
    fields = Fields(FieldConfig())
    assert query_key(one) != query_key(other)
    pairs = [fields.fields_and_pair(query, "1", "", {})[1] for query in (one, other)]
    assert not set(pairs[0]) & set(pairs[1])


@given(st.text())
def test_the_key_of_a_key_is_itself(query: str) -> None:
    assert query_key(query_key(query)) == query_key(query)


@given(st.text(min_size=1))
def test_a_query_of_punctuation_alone_keeps_what_it_has(query: str) -> None:
    visible = "".join(query.split())
    assert query_key("!" + query) or not visible
    assert query_key("?!") == "?!"
