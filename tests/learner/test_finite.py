"""Numbers of a state that is about to be trusted: all of them finite."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from learner.errors import Corrupt
from learner.finite import check_numbers
from weighting.estimators.models import make_model


def taught() -> dict[str, Any]:
    model = make_model("logistic:adam", 4, 0, offset=0.0, half_life_seconds=1.0)
    model.learn_one({3: 1.0}, True)
    return model.snapshot()


@pytest.mark.parametrize("name", ["m", "v"])
def test_a_nan_in_a_further_column_of_a_coefficient_is_found(name: str) -> None:
    state = taught()
    check_numbers("estimators", msgspec.msgpack.encode(state))
    state["table"]["extra"][name] = np.array([np.nan]).tobytes()
    with pytest.raises(Corrupt, match=f"extra/{name}"):
        check_numbers("estimators", msgspec.msgpack.encode(state))
