"""Hidden states by the layers below alone: the bits of the whole model's, and no layer in vain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from learner import arithmetic
from learner.passes.flat_passes import Flat
from learner.passes.forward import Passes, texts_of
from learner.passes.packing import Packed
from learner.passes.padding import Padded
from learner.passes.varlen import text_by_text
from tests.learner.families import WITH_SDPA, WITHOUT_SDPA
from tests.learner.test_packing import model_of

FAMILIES = {**WITH_SDPA, **WITHOUT_SDPA}


def rows(*lengths: int) -> list[torch.Tensor]:
    draw = np.random.default_rng(len(lengths))
    return [torch.from_numpy(draw.integers(5, 40, length)) for length in lengths]


def states(passes: Passes, model: Any, layer: int, *lengths: int) -> list[torch.Tensor]:
    with torch.no_grad():
        return list(texts_of(passes.run(model, rows(*lengths), layer=layer)))


def counted(model: Any) -> list[int]:
    """Return the numbers of the layers that run from here on."""
    ran: list[int] = []
    for number, layer in enumerate(model.encoder.layer):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    return ran


@pytest.mark.parametrize("layer", [-2, -3])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_states_are_those_of_the_whole_model(name: str, layer: int) -> None:
    arithmetic.use(1)
    model, passes = model_of(FAMILIES[name]), Padded(step=1)
    with torch.no_grad():
        for lengths in ((7, 7), (3, 3), (12, 12)):
            ids = torch.stack(rows(*lengths))
            output = model(
                input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True
            )
            expected = output.hidden_states[layer]
            found = torch.stack(states(passes, model, layer, *lengths))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["packed", "flat"])
def test_no_layer_above_runs(kind: str) -> None:
    model = model_of(FAMILIES["bert"])
    passes = Packed(model) if kind == "packed" else Flat(model, text_by_text)
    ran, number = counted(model), len(model.encoder.layer)
    states(passes, model, -2, 7, 7)
    assert ran == [*range(number - 1)]


def test_layers_above_run_once_to_compare_and_never_again() -> None:
    model, passes = model_of(FAMILIES["bert"]), Padded()
    ran, number = counted(model), len(model.encoder.layer)
    first = states(passes, model, -2, 7, 7)
    assert sorted(ran) == sorted([*range(number), *range(number - 1)])
    ran.clear()
    again = states(passes, model, -2, 7, 7)
    assert ran == [*range(number - 1)]
    assert all(map(torch.equal, first, again))


class Restless(torch.nn.Module):
    """An encoder of BERT's build whose states depend on how many layers it has."""

    def __init__(self, model: Any, fail: Callable[[], object] = lambda: None) -> None:
        """Take a model, and what is done where layers are missing."""
        super().__init__()
        self.encoder, self.config = model.encoder, model.config
        self.whole, self.fail = model, fail

    def forward(self, **given: Any) -> Any:
        output = self.whole(**{**given, "output_hidden_states": True})
        if len(self.encoder.layer) < self.config.num_hidden_layers:
            self.fail()
        return output


REASONS: dict[str, tuple[Callable[[], object], str]] = {
    "other states": (lambda: None, "gives other states"),
    "no such layer": (lambda: [][2], "ends in IndexError: list index out of range"),
    "another shape": (lambda: torch.ones(3) @ torch.ones(2), "ends in RuntimeError: inconsistent"),
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_model_that_its_lower_layers_do_not_stand_for_runs_whole_and_it_is_said_once(
    reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fail, said = REASONS[reason]
    passes = Padded()
    for _ in range(2):  # a second version of one model
        model = Restless(model_of(FAMILIES["bert"]), fail)
        first, again = (states(passes, model, -2, 7, 7) for _ in range(2))
        with torch.no_grad():
            expected = model(input_ids=torch.stack(rows(7, 7))).hidden_states[-2]
        for found in (first, again):
            torch.testing.assert_close(torch.stack(found), expected, rtol=1e-5, atol=1e-5)
    (line,) = caplog.records
    facts = vars(line)
    assert (facts["model"], facts["layer"]) == ("Restless", -2)
    assert said in facts["reason"]


def test_a_model_of_another_build_is_said_to_run_whole(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    states(Padded(), model_of(FAMILIES["distilbert"]), -2, 7, 7)
    (line,) = caplog.records
    assert vars(line)["reason"] == "its layers are not built as BERT's"


def _no_memory_of_a_device() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def _no_memory_of_the_host() -> None:
    torch.empty(1 << 60)


def _no_memory_of_python() -> None:
    raise MemoryError


@pytest.mark.parametrize(
    "fail", [_no_memory_of_a_device, _no_memory_of_the_host, _no_memory_of_python]
)
def test_memory_that_runs_out_in_the_comparison_is_said_and_the_next_pass_compares_again(
    fail: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model, passes = model_of(FAMILIES["bert"]), Padded()
    number, failing = len(model.encoder.layer), [fail]

    def fail_once(encoder: Any, *_: Any) -> None:
        if failing and len(encoder.layer) < number:
            failing.pop()()

    model.encoder.register_forward_pre_hook(fail_once)
    with pytest.raises((RuntimeError, MemoryError)):
        states(passes, model, -2, 7, 7)
    ran = counted(model)
    states(passes, model, -2, 7, 7)
    assert sorted(ran) == sorted([*range(number), *range(number - 1)])
    ran.clear()
    states(passes, model, -2, 7, 7)
    assert ran == [*range(number - 1)]
    assert not caplog.records
