"""Hidden states by the layers below alone: the bits of the whole model's, and no layer in vain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from learner import arithmetic
from learner.passes.flat_passes import Flat
from learner.passes.packing import Packed
from learner.passes.padding import Padded
from learner.passes.passes import Passes, texts_of
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


@pytest.mark.parametrize("kind", ["packed", "padded", "flat"])
def test_layers_above_run_once_to_compare_and_never_again(kind: str) -> None:
    model = model_of(FAMILIES["bert"])
    if kind == "padded":
        passes: Passes = Padded()
    else:
        passes = Packed(model) if kind == "packed" else Flat(model, text_by_text)
    ran, number = counted(model), len(model.encoder.layer)
    first = states(passes, model, -2, 7, 7)
    assert sorted(ran) == sorted([*range(number), *range(number - 1)])
    ran.clear()
    again = states(passes, model, -2, 7, 7)
    assert ran == [*range(number - 1)]
    assert all(map(torch.equal, first, again))


class Restless(torch.nn.Module):
    """An encoder of BERT's build whose states depend on how many layers it has."""

    def __init__(self, model: Any, fails: bool) -> None:
        super().__init__()
        self.encoder, self.config, self._whole, self._fails = (
            model.encoder,
            model.config,
            model,
            fails,
        )

    def forward(self, **given: Any) -> Any:
        output = self._whole(**{**given, "output_hidden_states": True})
        if self._fails and len(self.encoder.layer) < self.config.num_hidden_layers:
            raise IndexError
        return output


@pytest.mark.parametrize("fails", [True, False])
def test_a_model_that_its_lower_layers_do_not_stand_for_runs_whole(fails: bool) -> None:
    model = Restless(model_of(FAMILIES["bert"]), fails)
    passes = Padded()
    first, again = (states(passes, model, -2, 7, 7) for _ in range(2))
    with torch.no_grad():
        expected = model(input_ids=torch.stack(rows(7, 7))).hidden_states[-2]
    for found in (first, again):
        torch.testing.assert_close(torch.stack(found), expected, rtol=1e-5, atol=1e-5)
