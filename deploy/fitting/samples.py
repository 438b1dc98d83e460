"""Samples of a list from a file, as the join makes them of events.

Labels are final, so no delay correction acts. The places that a sample names are rows of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from consumers.joining.entries import OpenClick, OpenExposure, Positive
from consumers.joining.labels import Labels
from deploy.fitting.examples import Examples
from weighting.provenance import Position
from weighting.sample import CopyKind, Sample
from weighting.tasks import CLICK, PURCHASE

_WINDOW_US = 1_000_000  # of observation and of attribution: the first copy is final
_LABELS = Labels({CLICK: _WINDOW_US, PURCHASE: _WINDOW_US}, _WINDOW_US)


def samples_of(own: Examples, file: str) -> tuple[list[Sample], NDArray[np.float64]]:
    """Return the N samples of a list, and what each counts (N,).

    Every item is a sample of the click task, in the order of the file; every clicked one whose
    purchase is known is a sample of the purchase task behind them.
    """
    clicks = {
        index: Positive(
            time_us=own.time_us, position=Position(file, 0, own.rows[index]), inferred=False
        )
        for index, label in enumerate(own.labels)
        if label
    }
    exposure = OpenExposure(
        position=Position(file, 0, own.rows[0]),
        opened_us=own.time_us,
        timer_us=own.time_us + _WINDOW_US,
        observed=False,
        query_id=own.id,
        client_id=own.client_id,
        query=own.query,
        hits=tuple(own.items),
        list_size=len(own.items),
        described=tuple(zip(own.texts, own.attributes, strict=True)),
        time_us=own.time_us,
        clicked=clicks,
    )
    first = _LABELS.first_copies(exposure, own.time_us + _WINDOW_US)
    samples = [replace(s, position=at) for s, at in zip(first, own.positions, strict=True)]
    weights = list(own.weights)
    for index, click in clicks.items():
        bought = own.bought[index]
        if bought is not None:
            opened = _open_click(exposure, index, click, own.positions[index], bought=bought)
            samples.append(_LABELS.purchase(opened, CopyKind.FIRST, own.time_us + _WINDOW_US))
            weights.append(own.weights[index])
    return samples, np.array(weights)


def _open_click(
    exposure: OpenExposure, index: int, click: Positive, position: int | None, *, bought: bool
) -> OpenClick:
    text, attributes = exposure.described[index]
    return OpenClick(
        position=click.position,
        opened_us=exposure.time_us,
        turn=index,
        timer_us=exposure.timer_us,
        observed=False,
        expired=False,
        list_id=exposure.query_id,
        list_size=exposure.list_size,
        client_id=exposure.client_id,
        query=exposure.query,
        object_id=exposure.hits[index],
        text=text,
        attributes=attributes,
        ordinal=position,
        time_us=click.time_us,
        inferred=False,
        sources=(click.position,),
        newest_us=click.time_us,
        purchase=click if bought else None,
    )


def batches_of(lists: Sequence[Examples], size: int) -> list[Sequence[Examples]]:
    """Divide lists into batches: one closes at the first list with `size` rows or more."""
    ends, pending = [0], 0
    for number, own in enumerate(lists, 1):
        pending += len(own.rows)
        if pending >= size or number == len(lists):
            ends.append(number)
            pending = 0
    return [lists[start:end] for start, end in pairwise(ends)]
