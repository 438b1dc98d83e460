"""Prometheus series of the learner: training, weights, evaluation, checkpoints, recovery."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from learner.artifact import Version
from learner.evaluation.block import SCENARIO
from learner.evaluation.evaluation import Evaluation
from learner.evaluation.rankings import GAINS, RATIOS
from learner.store import verdict
from learner.store.blobs import Disk
from learner.tracking.background import OUTCOMES
from learner.trainer import Trainer
from learner.training_step import StepReport
from weighting.competition import Competition
from weighting.tasks import TASKS, TaskName
from weighting.weighted import WeightedBatch

_MILLISECONDS = (1, 2.5, 5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10_000)
_SECONDS = tuple(milliseconds / 1000 for milliseconds in _MILLISECONDS)
_WEIGHT = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1, 1.25, 2, 5, 10, 20, 50, 100)
_QUALITY = {
    "prequential_log_loss": "log_loss",
    **{f"prequential_{figure}_ratio": figure for figure in RATIOS},
    "prequential_auc_ratio": "auc",
    "prequential_predicted_to_observed_ratio": "predicted_to_observed",
    "calibration_error_ratio": "calibration_error",
}


@dataclass(frozen=True, slots=True)
class _Series:
    """Declares series in one registry under our prefix."""

    registry: CollectorRegistry

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"steelyard_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"steelyard_{name}", text, labels, registry=self.registry)

    def histogram(
        self, name: str, text: str, *labels: str, buckets: Sequence[float] = _SECONDS
    ) -> Histogram:
        return Histogram(f"steelyard_{name}", text, labels, registry=self.registry, buckets=buckets)


class Telemetry:
    """Series of training, weights, evaluation, checkpoints and recovery."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Declare every series, with every combination of labels, in `registry`."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        series = _Series(registry)
        self._declare_training(series)
        self._declare_weights(series)
        self._declare_privacy(series)
        self._declare_evaluation(series)
        self._declare_checkpoints(series)
        self._declare_recovery(series)

    def _declare_training(self, series: _Series) -> None:
        self.steps = series.counter("learner_steps_total", "Optimizer updates.", "result")
        self.samples = series.counter("learner_samples_total", "Samples trained on.")
        self.step_duration = series.histogram(
            "learner_step_duration_seconds", "Time of a step.", "phase"
        )
        self.loss = series.gauge("learner_loss", "Weighted loss of the last step.")
        self.gradient_norm = series.gauge(
            "learner_gradient_norm", "Norm of the last gradient, before clipping."
        )
        self.learning_rate = series.gauge("learner_learning_rate", "Learning rate.", "group")
        self.last_event = series.gauge(
            "learner_last_event_timestamp_seconds", "Event time of the newest sample trained on."
        )
        self.samples_waiting = series.gauge(
            "learner_samples_waiting",
            "Samples to be learned: journaled, read, or (estimated) in records not yet read.",
            "stage",
        )
        self.samples_per_second = series.gauge(
            "learner_samples_per_second", "Measured rate of learning while samples wait."
        )
        self.catch_up = series.gauge(
            "learner_catch_up_seconds",
            "Time until nothing waits, at the measured rates of learning and arrival.",
        )
        self.tracked = series.counter(
            "tracking_records_total",
            "Records for the tracker: written, or lost to an error, a full queue or the size.",
            "outcome",
        )
        for outcome in OUTCOMES:
            self.tracked.labels(outcome)
        for stage in ("journal", "read", "unread"):
            self.samples_waiting.labels(stage)
        for result in ("ok", "nonfinite"):
            self.steps.labels(result)
        self.step_duration.labels("step")

    def _declare_privacy(self, series: _Series) -> None:
        self.epsilon = series.gauge(
            "privacy_epsilon", "Epsilon of each list in encoder and heads; +Inf: no guarantee."
        )
        self.delta = series.gauge("privacy_delta", "Probability with which epsilon may fail.")
        self.contributions_dropped = series.gauge(
            "privacy_contributions_dropped",
            "Gradients of lists dropped, as their list had added to max_contributions steps.",
        )
        self.epsilon.set(math.inf)

    def _declare_weights(self, series: _Series) -> None:
        self.prior = series.gauge("label_prior_ratio", "p(y=1) of a task.", "label")
        self.prior_bound = series.gauge(
            "label_prior_bound_ratio", "95 % interval of p(y=1).", "label", "bound"
        )
        self.weight = series.histogram(
            "importance_weight", "Final weights.", "label", buckets=_WEIGHT
        )
        self.clipped = series.counter(
            "importance_weight_clipped_total", "Weights that a bound acted on.", "side"
        )
        self.left_out = series.counter(
            "samples_left_out_total", "Samples that the encoder was not given: compute_share."
        )
        self.rehearsed = series.counter(
            "samples_rehearsed_total", "Past samples that the encoder moved along as well."
        )
        self.rehearsal_lists = series.gauge("rehearsal_lists", "Past lists kept for rehearsal.")
        self.rehearsal_too_large = series.gauge(
            "rehearsal_lists_too_large",
            "Lists not kept, or not whole, because they exceed a sixteenth of the size.",
        )
        self.discounted = series.counter(
            "samples_discounted_total", "Samples that a cap on repetition discounted.", "cap"
        )
        self.refused = series.counter(
            "weights_refused_total", "Batches of which a weight was refused.", "reason"
        )
        self.effective_sample = series.gauge(
            "weight_effective_sample_ratio",
            "Effective sample size of the last batch over its size.",
        )
        self.normalization = series.gauge(
            "weight_normalization_ratio", "Mean of p(label|x)/p(label) over first copies.", "label"
        )
        self.drifts = series.gauge(
            "drift_changes",
            "Changes of a task's labels, log loss of p(y|x) or weights since the model's start.",
            *("label", "figure"),
        )
        self.last_drift = series.gauge(
            "drift_last_change_timestamp_seconds",
            "Event time of the latest change that this process saw.",
            *("label", "figure"),
        )
        self.exponent = series.gauge("weight_exponent", "Exponent of p(y|x)/p(y).")
        self.candidate_probability = series.gauge(
            "weight_candidate_probability_ratio",
            "Probability that a candidate of the weights loses least, if candidates compete.",
            "candidate",
        )
        self.candidate_in_force = series.gauge(
            "weight_candidate_in_force", "1: the candidate whose weights are used.", "candidate"
        )
        self.candidate_changes = series.counter(
            "weight_candidate_changes_total", "Changes of the candidate in force."
        )
        for side in ("low", "high", "cap"):
            self.clipped.labels(side)
        for reason in ("weight", "quarantine"):
            self.refused.labels(reason)
        for task in TASKS:
            self.weight.labels(task)

    def _declare_evaluation(self, series: _Series) -> None:
        self.quality = {
            name: series.gauge(name, f"{key} of the latest samples.", "model", "label")
            for name, key in _QUALITY.items()
        }
        self.quality_bound = series.gauge(
            "prequential_bound_ratio",
            "95 % interval of a figure of the latest samples.",
            *("model", "label", "figure", "bound"),
        )
        groups = ("model", "label", "scenario", "figure")
        self.scenario_gain = series.gauge(
            "prequential_scenario_gain_ratio",
            "Our order less the shop's in one scenario, of the latest samples.",
            *groups,
        )
        self.scenario_gain_bound = series.gauge(
            "prequential_scenario_gain_bound_ratio", "95 % interval of that gain.", *groups, "bound"
        )
        bins = ("model", "label", "bin")
        self.predicted = series.gauge(
            "calibration_predicted_ratio", "Mean prediction in a tenth.", *bins
        )
        self.observed = series.gauge(
            "calibration_observed_ratio", "Share of positives in a tenth.", *bins
        )

    def _declare_checkpoints(self, series: _Series) -> None:
        self.publishes = series.counter(
            "checkpoint_publishes_total", "Checkpoints by how they ended.", "result"
        )
        self.publish_duration = series.histogram(
            "checkpoint_publish_duration_seconds", "From copied state to a durable checkpoint."
        )
        self.stall = series.histogram(
            "checkpoint_stall_seconds", "Pause of training while state is copied."
        )
        self.size = series.gauge("checkpoint_size_bytes", "Bytes of the last checkpoint.")
        self.last_publish = series.gauge(
            "checkpoint_last_publish_timestamp_seconds", "When the last checkpoint became durable."
        )
        self.journaled = series.counter("journal_records_total", "Records journaled.", "kind")
        self.journal_size = series.gauge(
            "journal_size_bytes", "Bytes that this owner has journaled."
        )
        for result in ("ok", "failed", "fenced"):
            self.publishes.labels(result)
        for kind in ("step", "outcome"):
            self.journaled.labels(kind)

    def _declare_recovery(self, series: _Series) -> None:
        self.recoveries = series.counter(
            "learner_recoveries_total",
            "Starts that resumed from a checkpoint, by cause.",
            "cause",
        )
        self.replay_progress = series.gauge(
            "replay_progress_ratio",
            "Share of a replay's samples that is learned, by its target store.",
            "target",
        )
        self.replayed = series.counter(
            "learner_replayed_steps_total", "Steps done again from the journal."
        )
        self.verified = series.gauge(
            "verify_last_success_timestamp_seconds",
            "When `steelyard verify` last found no difference; 0: never.",
        )
        self.differences = series.gauge(
            "verify_differences", "What differed in the latest verdict of `steelyard verify`."
        )
        for cause in ("restart", "crash", "corrupt", "order", "diverged"):
            self.recoveries.labels(cause)

    def watch_verdicts(self, root: Path, disk: Disk) -> None:
        """Let each scrape read what `steelyard verify` left in this store."""

        def last_success_seconds() -> float:
            found = verdict.read(root, disk)
            return found.equal_us / 1e6 if found else 0.0

        def num_differences() -> float:
            found = verdict.read(root, disk)
            return float(found.num_differences) if found else 0.0

        self.verified.set_function(last_success_seconds)
        self.differences.set_function(num_differences)

    def published(self, version: Version, began_seconds: float, now_seconds: float) -> None:
        """Report a checkpoint that became durable."""
        self.publishes.labels("ok").inc()
        self.publish_duration.observe(max(0.0, now_seconds - began_seconds))
        self.last_publish.set(now_seconds)
        self.size.set(sum(digest.size for digest in version.files.values()))

    def stepped(self, report: StepReport, trainer: Trainer, seconds: float) -> None:
        """Report a step."""
        weighted = report.weighted
        self.steps.labels(report.result).inc()
        self.samples.inc(len(weighted.samples))
        self.left_out.inc(report.num_left_out)
        self.rehearsed.inc(report.num_rehearsed)
        if trainer.rehearsal is not None:
            self.rehearsal_lists.set(trainer.rehearsal.num_lists)
            self.rehearsal_too_large.set(trainer.rehearsal.num_too_large)
        self.step_duration.labels("step").observe(seconds)
        self.loss.set(report.loss)
        self.gradient_norm.set(report.gradient_norm)
        for name, rate in trainer.learning_rates.items():
            self.learning_rate.labels(name).set(rate)
        self.last_event.set(max(s.event_time_us for s in weighted.samples) / 1e6)
        self._weighed(weighted)
        for task, figures in report.figures.items():
            self.prior.labels(task).set(figures.prior)
            for bound, value in zip(("low", "high"), figures.interval, strict=True):
                self.prior_bound.labels(task, bound).set(value)
            for name, number in figures.num_drifts.items():
                self.drifts.labels(task, name).set(number)
        if (budget := trainer.budget) is not None:
            self.epsilon.set(budget.epsilon if not budget.since_step else math.inf)
            self.delta.set(budget.delta)
            self.contributions_dropped.set(budget.num_dropped)
        self._evaluated(trainer.evaluations)
        self.candidate_changes.inc(len(report.changes))
        self._competed(trainer.weigher.competition)

    def _competed(self, competition: Competition | None) -> None:
        if competition is None:
            return
        for number, (name, probability) in enumerate(competition.probabilities().items()):
            self.candidate_probability.labels(name).set(probability)
            self.candidate_in_force.labels(name).set(float(number == competition.in_force))

    def _weighed(self, weighted: WeightedBatch) -> None:
        for sample, weight in zip(weighted.samples, weighted.weight.tolist(), strict=True):
            self.weight.labels(sample.task).observe(weight)
        for side, number in weighted.num_clipped.items():
            self.clipped.labels(side).inc(number)
        for cap, number in weighted.num_discounted.items():
            self.discounted.labels(cap).inc(number)
        for task, drifts in weighted.drifts.items():
            for drift in drifts:
                self.last_drift.labels(task, drift.series).set(drift.time_us / 1e6)
        self.effective_sample.set(weighted.ess_ratio)
        self.exponent.set(weighted.exponent)
        for task, (_, positive) in weighted.normalization_ratio.items():
            self.normalization.labels(task).set(positive)

    def _evaluated(self, evaluations: Mapping[TaskName, Evaluation]) -> None:
        for task, evaluation in evaluations.items():
            block = evaluation.latest_block()
            latest, reliability = block.figures(), block.reliability()
            for name, key in _QUALITY.items():
                self.quality[name].labels("champion", task).set(latest.get(key, math.nan))
            for figure, bound in product(RATIOS, ("low", "high")):
                value = latest.get(f"{figure}_{bound}", math.nan)
                self.quality_bound.labels("champion", task, figure, bound).set(value)
            bins = zip(reliability.predicted, reliability.observed, strict=True)
            for number, (predicted, observed) in enumerate(bins):
                labels = ("champion", task, str(number))
                self.predicted.labels(*labels).set(predicted)
                self.observed.labels(*labels).set(observed)
            self._told_apart(task, evaluation.scenarios, block.gains(SCENARIO))

    def _told_apart(
        self, task: TaskName, known: Sequence[str], gains: Mapping[str, Mapping[str, float]]
    ) -> None:
        for scenario, figure in product({*known, *gains}, GAINS):
            found, of = gains.get(scenario, {}), ("champion", task, scenario, figure)
            self.scenario_gain.labels(*of).set(found.get(figure, math.nan))
            for bound in ("low", "high"):
                value = found.get(f"{figure}_{bound}", math.nan)
                self.scenario_gain_bound.labels(*of, bound).set(value)
