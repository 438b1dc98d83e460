"""Ready-made data sets by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.learning_data.answers import NOISE, SOURCES, Similarity, load_answers
from benchmarks.learning_data.dataset import DataError, Dataset, shortened
from benchmarks.learning_data.movies import load_movies
from benchmarks.learning_data.shop import load_shop

MOVIES, ESCI, INVENTED = "msrd_movie_search", "esci_slice", "invented_shop"
NAMES = (MOVIES, ESCI, *SOURCES, INVENTED)
NOISES = tuple(NOISE)
_VISITS = {ESCI: 12_000, INVENTED: 1_500}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A ready-made data set as it is asked for.

    Attributes:
        name: one of `NAMES`.
        source: folder with one folder per data set; None for the invented shop.
        noise: of simulated answers; other data sets have real clicks, or one noise.
        seed: of everything that is drawn.
        num_lists: the first lists only.
        choosing: judge on what is kept for choosing settings, not on what is reported.
    """

    name: str
    source: Path | None
    noise: str
    seed: int
    num_lists: int | None
    choosing: bool


def load_ready(request: Request, similarity: Similarity) -> Dataset:
    """Return a ready-made data set.

    Raises:
        DataError: its folder, a file or a column is missing.
    """
    r = request
    if r.name == INVENTED:
        visits = r.num_lists or _VISITS[r.name]
        return load_shop(None, name=r.name, seed=r.seed, num_lists=visits, choosing=r.choosing)
    if r.source is None:
        raise DataError(f"--dataset {r.name} needs --source: the folder that holds {r.name}/")
    folder = r.source / r.name
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; --source is the folder that holds {r.name}/")
    if r.name == MOVIES:
        return shortened(load_movies(folder, seed=r.seed, choosing=r.choosing), r.num_lists)
    if r.name == ESCI:
        visits = r.num_lists or _VISITS[r.name]
        return load_shop(folder, name=r.name, seed=r.seed, num_lists=visits, choosing=r.choosing)
    return load_answers(
        folder,
        name=r.name,
        noise=r.noise,
        seed=r.seed,
        num_lists=r.num_lists,
        choosing=r.choosing,
        similarity=similarity,
    )
