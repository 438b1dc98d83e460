"""Counts of a step: what a discounted sample adds to its query's clicks and exposure."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from learner.training.query_counts import query_counts
from tests.weighting.streams import sample
from weighting.caps import CapsConfig
from weighting.config import WeigherConfig
from weighting.tasks import CLICK
from weighting.weigher import Weigher


def test_clicks_and_exposure_of_a_repeated_showing_are_discounted_alike() -> None:
    weigher = Weigher(WeigherConfig(caps=CapsConfig(client_item=1.5), exponent=0.0))
    lists = [
        [
            msgspec.structs.replace(s, list_id=f"list {n}", sample_id=f"{n}/{s.item_id}")
            for s in (
                sample(1, item_id="clicked", position=1, client=7),
                sample(0, item_id="shown", position=2, client=7),
            )
        ]
        for n in range(4)
    ]
    weighted = weigher.weigh([s for own in lists for s in own])
    (counts,) = query_counts(weighted, CLICK, np.ones(len(weighted.samples))).values()
    assert counts.clicks == [1.5, 0.0]
    assert counts.exposure[0] == 1.5
    assert counts.exposure[1] == pytest.approx(
        sum(d * e for d, e in zip((1.0, 0.5), weighted.examination[[1, 3]], strict=True))
    )
