"""YAML with unsurprising plain values and unique keys."""

from typing import Any

import pytest

from deploy.settings.yaml import parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("NO", "NO"),
        ("yes", "yes"),
        ("0123", 123),
        ("2e-5", 2e-5),
        ("12:30:00", "12:30:00"),
        ("2026-01-01", "2026-01-01"),
        ("true", True),
        ("~", None),
        ("", None),
        ("1.", 1.0),
        (".5", 0.5),
        ("-7", -7),
        ("'5'", "5"),
        ("[1, a]", [1, "a"]),
    ],
)
def test_a_plain_value_means_what_it_looks_like(text: str, value: Any) -> None:
    assert parse(f"key: {text}") == ({"key": value}, [])


def test_every_duplicate_key_is_told_with_its_line() -> None:
    _, problems = parse("a: 1\na: 2\nb:\n  c: 1\n  c: 2\n")
    assert problems == [
        "line 2: a: the key is there twice; keep one of them",
        "line 5: c: the key is there twice; keep one of them",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "a: 1\n---\nb: 2",
        "!!python/object/apply:os.getcwd []",
        "a: &x [*x]",
        "? [a]\n: 1",
        "a: \x00",
        "a: *nobody",
        "\t- a: b: c",
    ],
)
def test_a_broken_document_is_one_problem_and_never_an_exception(text: str) -> None:
    value, problems = parse(text)
    assert value is None
    assert len(problems) == 1
    assert "\n" not in problems[0]


def test_numbers_that_are_none_are_texts() -> None:
    assert parse("a: 1_000\nb: 0x1F\nc: +\nd: .") == (
        {"a": "1_000", "b": "0x1F", "c": "+", "d": "."},
        [],
    )
