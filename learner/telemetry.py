"""The Prometheus series of this folder, all of them; weights and prequential evaluation are reported here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from learner.evaluation import Evaluation
from learner.store import verdict
from learner.store.blobs import Disk
from learner.trainer import StepReport, Trainer
from weighting.tasks import TASKS, TaskName

_LATENCY = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
)
_WEIGHT = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1, 1.25, 2, 5, 10, 20, 50, 100)
_QUALITY = {
    "prequential_log_loss": "log_loss",
    "prequential_normalized_entropy_ratio": "normalized_entropy",
    "prequential_auc_ratio": "auc",
    "prequential_predicted_to_observed_ratio": "predicted_to_observed",
    "calibration_error_ratio": "calibration_error",
}


class Telemetry:
    """Series of training, weights, evaluation and checkpoints."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Declare every series, with every combination of labels, in `registry`."""
        disable_created_metrics()  # type: ignore[no-untyped-call]

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"steelyard_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"steelyard_{name}", text, labels, registry=registry)

        self.steps = counter("learner_steps_total", "Optimizer updates.", "result")
        self.samples = counter("learner_samples_total", "Samples trained on.")
        self.step_duration = Histogram(
            "steelyard_learner_step_duration_seconds",
            "Time of a step.",
            ("phase",),
            registry=registry,
            buckets=_LATENCY,
        )
        self.loss = gauge("learner_loss", "Weighted loss of the last step.")
        self.gradient_norm = gauge(
            "learner_gradient_norm", "Norm of the last gradient, before clipping."
        )
        self.learning_rate = gauge("learner_learning_rate", "Learning rate.", "group")
        self.last_event = gauge(
            "learner_last_event_timestamp_seconds", "Event time of the newest sample trained on."
        )
        self.prior = gauge("label_prior_ratio", "p(y=1) of a task.", "label")
        self.prior_bound = gauge(
            "label_prior_bound_ratio", "95 % interval of p(y=1).", "label", "bound"
        )
        self.weight = Histogram(
            "steelyard_importance_weight",
            "Final weights.",
            ("label",),
            registry=registry,
            buckets=_WEIGHT,
        )
        self.clipped = counter(
            "importance_weight_clipped_total", "Weights that a bound acted on.", "side"
        )
        self.refused = counter(
            "weights_refused_total", "Batches of which a weight was refused.", "reason"
        )
        self.effective_sample = gauge(
            "weight_effective_sample_ratio",
            "Effective sample size of the last batch over its size.",
        )
        self.normalization = gauge(
            "weight_normalization_ratio", "Mean of p(label|x)/p(label) over first copies.", "label"
        )
        self.exponent = gauge("weight_exponent", "Exponent of p(y|x)/p(y).")
        self.quality = {
            name: gauge(name, f"{key} of the latest samples.", "model", "label")
            for name, key in _QUALITY.items()
        }
        self.predicted = gauge(
            "calibration_predicted_ratio", "Mean prediction in a tenth.", "model", "label", "bin"
        )
        self.observed = gauge(
            "calibration_observed_ratio", "Share of positives in a tenth.", "model", "label", "bin"
        )
        self.publishes = counter(
            "checkpoint_publishes_total", "Checkpoints by how they ended.", "result"
        )
        self.publish_duration = Histogram(
            "steelyard_checkpoint_publish_duration_seconds",
            "Cut to durable.",
            registry=registry,
            buckets=_LATENCY,
        )
        self.stall = Histogram(
            "steelyard_checkpoint_stall_seconds",
            "Training stopped for a cut.",
            registry=registry,
            buckets=_LATENCY,
        )
        self.size = gauge("checkpoint_size_bytes", "Bytes of the last checkpoint.")
        self.last_publish = gauge(
            "checkpoint_last_publish_timestamp_seconds", "When the last checkpoint became durable."
        )

        self.journaled = counter("journal_records_total", "Records journaled.", "kind")
        self.journal_size = gauge("journal_size_bytes", "Bytes that this owner has journaled.")
        self.recoveries = counter(
            "learner_recoveries_total",
            "Starts that went on from a checkpoint, by what was found.",
            "cause",
        )
        self.replay_progress = gauge(
            "replay_progress_ratio",
            "How much of an ordered replay is read; by where it leads.",
            "target",
        )
        self.replayed = counter(
            "learner_replayed_steps_total", "Steps done again from the journal."
        )
        self.verified = gauge(
            "verify_last_success_timestamp_seconds",
            "When `steelyard verify` last found no difference; 0: never.",
        )
        self.differences = gauge(
            "verify_differences", "What differed in the latest verdict of `steelyard verify`."
        )

        for kind in ("step", "outcome"):
            self.journaled.labels(kind)
        for cause in ("restart", "crash", "corrupt", "order", "diverged"):
            self.recoveries.labels(cause)
        for result in ("ok", "nonfinite"):
            self.steps.labels(result)
        for side in ("low", "high", "cap"):
            self.clipped.labels(side)
        for result in ("ok", "failed", "fenced"):
            self.publishes.labels(result)
        for reason in ("weight", "quarantine"):
            self.refused.labels(reason)
        self.step_duration.labels("step")
        for task in TASKS:
            self.weight.labels(task)

    def watch_verdicts(self, root: Path, disk: Disk) -> None:
        """Let each scrape read what `steelyard verify` left in this store."""
        self.verified.set_function(
            lambda: found.equal_us / 1e6 if (found := verdict.read(root, disk)) else 0.0
        )
        self.differences.set_function(
            lambda: float(found.num_differences) if (found := verdict.read(root, disk)) else 0.0
        )

    def stepped(self, report: StepReport, trainer: Trainer, seconds: float) -> None:
        """Tell what a step saw."""
        self.steps.labels(report.result).inc()
        weighted = report.weighted
        self.samples.inc(len(weighted.samples))
        self.step_duration.labels("step").observe(seconds)
        self.loss.set(report.loss)
        self.gradient_norm.set(report.gradient_norm)
        self.learning_rate.labels("encoder").set(trainer.config.lr)
        self.learning_rate.labels("heads").set(trainer.config.head_lr)
        self.last_event.set(max(s.event_time_us for s in weighted.samples) / 1e6)
        for sample, weight in zip(weighted.samples, weighted.weight.tolist(), strict=True):
            self.weight.labels(sample.task).observe(weight)
        for side, number in weighted.num_clipped.items():
            self.clipped.labels(side).inc(number)
        self.effective_sample.set(weighted.ess_ratio)
        self.exponent.set(weighted.exponent)
        for task, (_, positive) in weighted.normalization_ratio.items():
            self.normalization.labels(task).set(positive)
        for task in TASKS:
            self.prior.labels(task).set(trainer.weigher.prior(task))
            for bound, value in zip(("low", "high"), trainer.weigher.interval(task), strict=True):
                self.prior_bound.labels(task, bound).set(value)
        self._evaluated(trainer.evaluations)

    def _evaluated(self, evaluations: Mapping[TaskName, Evaluation]) -> None:
        for task, evaluation in evaluations.items():
            latest = evaluation.latest()
            for name, key in _QUALITY.items():
                self.quality[name].labels("champion", task).set(latest.get(key, math.nan))
            for i, (predicted, observed, _) in enumerate(
                zip(*evaluation.calibration(), strict=True)
            ):
                self.predicted.labels("champion", task, str(i)).set(predicted)
                self.observed.labels("champion", task, str(i)).set(observed)
