"""Registry of everything that learns online.

A new class that learns is added here; `test_online.py` fails until it is.
"""

from __future__ import annotations

from tests.contracts import learner_cases as learner
from tests.contracts import weighting_cases as weighting
from tests.contracts.case import Case
from weighting.estimators.models import DEFAULT, names

CASES: tuple[Case, ...] = (
    weighting.PriorCase(),
    weighting.PriorOfManyCase(),
    weighting.DelayedPositiveRateCase(),
    weighting.DelayedPositiveRateOfManyCase(),
    weighting.PropensityCase(),
    weighting.PropensityOfManyCase(),
    weighting.NormaliserCase(),
    weighting.DriftDetectorCase(),
    weighting.DriftWatchCase(),
    weighting.CalibrationCase(),
    weighting.CalibrationOfManyCase(),
    weighting.RecursiveLogisticCase(),
    weighting.ConditionalLogitCase(),
    weighting.AttributeChoiceCase(),
    weighting.StackerCase(),
    weighting.DiagonalLogisticCase(),
    *(weighting.ModelCase(name) for name in names() if name != DEFAULT),
    weighting.JointLogisticCase(),
    weighting.ConditionalCase(),
    weighting.JointConditionalCase(),
    weighting.HedgeCase(),
    weighting.ChoiceCase(),
    weighting.StandInsCase(),
    weighting.CompetitionCase(),
    weighting.TaskEstimatorsCase(),
    weighting.JointTaskEstimatorsCase(),
    weighting.CapsCase(),
    weighting.JointCapsCase(),
    weighting.WeigherCase(),
    weighting.BatchWeigherCase(),
    learner.QueryResidualCase(),
    learner.EvaluationCase(),
    learner.PositionBaselineCase(),
    learner.QueryFrequencyCase(),
    learner.ItemFrequencyCase(),
    learner.RehearsalCase(),
    learner.LossWatchCase(),
    learner.LexicalCase(),
    learner.ItemPriorCase(),
    learner.QueryMetricCase(),
    learner.PrototypeCase(),
    learner.AttributesCase(),
    learner.ClientAffinityCase(),
    learner.ServedScoreCase(),
)
