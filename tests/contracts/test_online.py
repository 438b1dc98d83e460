"""One contract for everything that learns online (the idea of river's `checks`)."""

from __future__ import annotations

import ast
import gc
import math
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from learner.errors import Diverged
from tests.contracts.case import Case
from tests.contracts.learners import CASES
from tests.contracts.parts import stateful_parts
from tests.layering import Module, modules

ROOT = Path(__file__).parents[2]
VERBS = {"learn", "learn_one", "update", "weigh", "judge"}
STATE = {"snapshot", "restore"}

every = pytest.mark.parametrize("case", CASES, ids=str)
weighted = pytest.mark.parametrize("case", [case for case in CASES if case.weightless], ids=str)
each_input = pytest.mark.parametrize(
    ("case", "name"),
    [(case, name) for case in CASES for name in case.inputs],
    ids=str,
)


def trained(case: Case, num_examples: int = 40) -> object:
    model = case.make()
    for i in range(num_examples):
        case.learn(model, i)
    return model


@every
@pytest.mark.parametrize("num_examples", [0, 40])
def test_prediction_is_possible_before_learning_and_changes_nothing(
    case: Case, num_examples: int
) -> None:
    model = trained(case, num_examples)
    before = case.state(model)
    first, second = case.predict(model, 3), case.predict(model, 3)
    assert np.isfinite(first).all()
    assert first.tobytes() == second.tobytes()
    assert case.state(model) == before


@every
def test_it_learns(case: Case) -> None:
    fresh, model = case.make(), trained(case)
    assert case.state(model) != case.state(fresh)
    assert case.predict(model, 3).tobytes() != case.predict(fresh, 3).tobytes()


@every
def test_what_is_learned_was_predicted_before(case: Case) -> None:
    """Its own label has no part in the prediction of a sample, nor has it one made earlier."""
    model = case.make()
    for i in range(40):
        twins = case.restored(case.state(model)), case.restored(case.state(model))
        before = case.predict(model, i)
        kept = before.copy()
        labels = [{"label": y} for y in (0.0, 1.0)] if "label" in case.inputs else [{}, {}]
        learned = [case.learn(twin, i, label) for twin, label in zip(twins, labels, strict=True)]
        learned.append(case.learn(model, i))
        case.predict(model, i + 1)
        assert {kept.tobytes()} >= {found.tobytes() for found in learned if found is not None}
        assert before.tobytes() == kept.tobytes()


@every
def test_a_restored_one_goes_on_as_the_original(case: Case) -> None:
    original = trained(case)
    resumed = case.restored(case.state(original))
    assert case.state(resumed) == case.state(original)
    for i in range(40, 60):
        assert case.predict(resumed, i).tobytes() == case.predict(original, i).tobytes()
        case.learn(resumed, i)
        case.learn(original, i)
    assert case.state(resumed) == case.state(original)


@weighted
@pytest.mark.parametrize("num_examples", [0, 40])
def test_an_example_of_weight_zero_changes_nothing(case: Case, num_examples: int) -> None:
    """Neither what is known nor how fast it fades: time does not move on either."""
    model = trained(case, num_examples)
    before, predicted = case.state(model), case.predict(model, 3)
    for i in (3, num_examples + 1, num_examples + 1000):
        case.learn(model, i, case.weightless)
    assert case.state(model) == before
    assert case.predict(model, 3).tobytes() == predicted.tobytes()


@every
def test_the_state_stays_within_its_bound_whatever_is_learned(case: Case) -> None:
    model = case.make()
    for i in range(case.num_distinct):
        case.learn(model, i)
    assert 0 < case.size(model) <= case.bound


@every
def test_one_that_is_gone_leaves_no_state_to_the_garbage_collector(case: Case) -> None:
    """A server looks for cycles so seldom that those of many versions would add up."""
    gc.disable()
    try:
        model = trained(case, 2)
        left = [weakref.ref(part) for part in stateful_parts(model)]
        del model
        assert [ref() for ref in left if ref() is not None] == []
    finally:
        gc.enable()


@each_input
def test_a_nan_is_refused_by_name_and_nothing_is_learned(case: Case, name: str) -> None:
    model = trained(case)
    before = case.state(model)
    with pytest.raises((ValueError, Diverged), match=name):
        case.learn(model, 41, {name: math.nan})
    assert case.state(model) == before


def learners(found: list[Module]) -> Iterator[str]:
    """Dotted names of classes that keep a state and learn."""
    for module in found:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
                if any(ast.unparse(base) == "Protocol" for base in node.bases):
                    continue
                struct = any("Struct" in ast.unparse(base) for base in node.bases)
                if methods & VERBS and (methods >= STATE or struct):
                    yield f"{module.name}.{node.name}"


def test_everything_that_learns_is_in_the_registry() -> None:
    ours = [m for m in modules(ROOT) if m.folder in ("weighting", "learner")]
    registered = {f"{case.owner.__module__}.{case.owner.__name__}" for case in CASES}
    assert set(learners(ours)) == registered


def test_a_class_that_learns_is_found_wherever_it_stands() -> None:
    source = """
class Kept:
    def learn(self, x): ...
    def snapshot(self): ...
    def restore(self, state): ...

class Watch(msgspec.Struct):
    def judge(self, x): ...

class Stateless:
    def learn(self, x): ...
"""
    module = Module("learner.novelty", ast.parse(source))
    assert list(learners([module])) == ["learner.novelty.Kept", "learner.novelty.Watch"]
