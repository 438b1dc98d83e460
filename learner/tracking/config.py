"""Settings of tracking."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from weighting.constraints import Count, NotNegativeInt, check


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """Tracker of a learner's curves; decides nothing that is learned."""

    to: Annotated[
        Literal["none", "tensorboard", "wandb"],
        Meta(
            description="Tracker that learn and fit write to: tensorboard, or wandb (Weights & "
            "Biases, offline); each is an extra of that name."
        ),
    ] = "none"
    folder: Annotated[
        Path | None,
        Meta(
            description="Folder in which it makes one of the store's name; null: it writes to "
            "tracking in store.root."
        ),
    ] = None
    every_steps: Annotated[
        Count, Meta(description="Steps between two points of a curve; the loss is their mean.")
    ] = 20
    details_every_steps: Annotated[
        Count, Meta(description="Steps between histograms, and between explained predictions.")
    ] = 500
    lists: Annotated[
        NotNegativeInt,
        Meta(
            description="Lists with a click whose predictions are explained each time, with the "
            "texts of query and items; 0: none."
        ),
    ] = 3
    max_size_bytes: Annotated[
        Count, Meta(description="Size of the folder from which nothing more is written to it.")
    ] = 2_000_000_000

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "tracking")
