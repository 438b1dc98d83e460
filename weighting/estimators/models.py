"""The models of p(y|x) by the name that `weighting.conditional.model` gives them."""

from __future__ import annotations

from collections.abc import Mapping

from weighting.constraints import SettingError
from weighting.estimators.classifier import Classifier
from weighting.estimators.logistic import DiagonalLogistic
from weighting.estimators.naive_bayes import NaiveBayes
from weighting.estimators.river_logistic import OPTIMIZERS, RiverLogistic

DEFAULT = "bayesian"
_LOGISTIC = "logistic:"
_TREE = (
    "a leaf keeps a split observer per field, and hashed fields are without number, so its state"
    " has no bound"
)
_FOREST = f"{_TREE}; its drift detectors keep theirs in compiled code, not as plain numbers"
REFUSED: Mapping[str, str] = {
    "hoeffding_tree": _TREE,
    "extremely_fast_decision_tree": _TREE,
    "hoeffding_adaptive_tree": _FOREST,
    "adaptive_random_forest": _FOREST,
    "logistic:newton": "its state is a dense matrix, fields by fields",
    "logistic:averager": "it averages all weights at each step",
    "bernoulli_naive_bayes": "a prediction reads every field that was ever seen",
}
"""Models of river that cannot be used here, and the reason."""


def names() -> tuple[str, ...]:
    """Return the names of all models.

    >>> names()[:3]
    ('bayesian', 'naive_bayes', 'logistic:sgd')
    """
    return (DEFAULT, "naive_bayes", *(f"{_LOGISTIC}{name}" for name in OPTIMIZERS))


def check_model(section: str, name: str) -> None:
    """Refuse a name that is not a model's.

    Raises:
        SettingError: says why a model of river cannot be used, and what can.
    """
    if name not in names():
        reason = f" ({name} cannot: {REFUSED[name]})" if name in REFUSED else ""
        raise SettingError(section, "model", name, f"one of {', '.join(names())}{reason}", None)


def make_model(
    name: str, hash_bits: int, num_own: int, *, offset: float, half_life_seconds: float
) -> Classifier:
    """Build the model of a name that `check_model` accepts, with nothing known.

    Args:
        name: of the model.
        hash_bits: log2 of the number of rows for keys below 2^32.
        num_own: number of keys from 2^32 on.
        offset: the logit of a sample before any learning.
        half_life_seconds: of the built-in model's memory; those of river forget nothing by time.
    """
    if name == DEFAULT:
        return DiagonalLogistic(
            hash_bits, num_own, offset=offset, half_life_seconds=half_life_seconds
        )
    if name.startswith(_LOGISTIC):
        return RiverLogistic(name.removeprefix(_LOGISTIC), hash_bits, num_own, offset=offset)
    return NaiveBayes(hash_bits, num_own, offset=offset)
