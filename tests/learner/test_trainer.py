"""Steps: test before training, exact resumption, refusals."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import AutoModel

from learner import version_layout as layout
from learner.errors import Diverged, OutOfMemory
from learner.losses.registry import LOSSES
from learner.losses.task_weights import TaskWeights
from learner.residual import ResidualConfig
from learner.trainer import Trainer
from learner.training.divergence import LossWatch
from learner.training.rehearsal import RehearsalConfig
from learner.training_step import StepReport
from tests.learner import training
from tests.learner.training import batches, config, flipped, lists, reader, trainer, weights_of
from weighting.clip import ClipConfig
from weighting.config import WeigherConfig
from weighting.errors import WeightError
from weighting.sample import CopyKind, Sample
from weighting.tasks import CLICK, PURCHASE
from weighting.weigher import Weigher
from weighting.weighted import WeightedBatch

KINDS: list[dict[str, Any]] = [
    {"tuning": "full"},
    {"tuning": "top:1"},
    {"tuning": "full", "loss": "listwise"},
    {"tuning": "full", "loss": "pairwise", "label_smoothing": 0.1},
    {"tuning": "full", "interaction": "cross_encoder"},
    {"tuning": "full", "dropout": 0.3},
    {"tuning": "top:1", "dropout": 0.3},
    {"tuning": "frozen"},
    {"tuning": "full", "loss": "in_batch_softmax"},
    {"tuning": "top:1", "loss": "listwise", "adversarial_steps": 2},
    {
        "tuning": "full",
        "optimizer": "sgd",
        "lr": 0.1,
        "schedule": "inverse_sqrt",
        "warm_up_samples": 50,
    },
    {"tuning": "top:1", "loss": "listwise", "rehearsal": RehearsalConfig(size_bytes=100_000)},
    {
        "tuning": "full",
        "interaction": "cross_encoder",
        "rehearsal": RehearsalConfig(size_bytes=100_000, share=0.5),
    },
    {"tuning": "top:1", "loss": "listwise", "task_weights": TaskWeights(purchase_over_all=0.5)},
]
TOGETHER = {"dropout", "adversarial_steps", "in_batch_softmax"}
"""What a sample learns under these depends on what is in its micro-batch."""


class Changed(Weigher):
    """Weighs as any other, then lets a test change how much each sample counts."""

    def __init__(self, factor: Callable[[Sequence[Sample]], Any]) -> None:
        # No sample's weight depends on the others'
        super().__init__(WeigherConfig(clip=ClipConfig(normalise="raw")))
        self._factor = factor

    def weigh(self, samples: Sequence[Sample]) -> WeightedBatch:
        found = super().weigh(samples)
        factor = np.asarray(self._factor(samples), dtype=np.float32)
        with np.errstate(invalid="ignore"):  # 0 x Inf
            changed = {name: getattr(found, name) * factor for name in ("a", "b", "weight")}
        return dataclasses.replace(found, **changed)


def final(samples: Sequence[Sample]) -> list[Sample]:
    """The same with labels that are final, so that each counts once."""
    return [msgspec.structs.replace(s, attribution_us=s.window_us) for s in samples]


def first_step(factor: Callable[[Sequence[Sample]], Any], samples: list[Sample]) -> StepReport:
    return Trainer(config(), Changed(factor)).step(samples)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_evaluated_on_a_list_does_not_depend_on_its_labels(kind: dict[str, Any]) -> None:
    known, next_batch = batches(3), final(lists(1, seed=9, start=100))

    def after(last: list[Sample]) -> tuple[Trainer, list[Any]]:
        """A trainer that took the last batch, and what it predicted of it."""
        own = trainer(**kind)
        for batch in known:
            own.step(batch)
        weighted = own.step(last).weighted
        found = own.evaluations[CLICK].latest_block().reliability()
        predicted, number = found.predicted, found.number
        memory = weighted.pair_memory_logit
        return own, [predicted, number, weighted.p_positive, memory]

    (honest, honest_scores), (other, other_scores) = after(next_batch), after(flipped(next_batch))
    for found, expected in zip(honest_scores, other_scores, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not training.same(
        weights_of(honest), weights_of(other)
    )  # and yet the labels are learned
    assert honest.files()["stackers.msgpack"] != other.files()["stackers.msgpack"]


def test_the_first_evaluation_is_of_the_untrained_model() -> None:
    own, batch = trainer(), final(batches(1)[0])
    clicks = [s for s in batch if s.task == CLICK]
    with torch.no_grad():
        scored = own.ranker([s.query for s in clicks], [s.text for s in clicks])
    logit = scored.by_task[CLICK].double().numpy()
    weighted, prior = Weigher().weigh(clicks), own.weigher.prior(CLICK)
    level = math.log(prior / (1 - prior))
    # The exponent is 0; encoder and zero-shot part start with one quarter, the pair memory, which
    # knows the lists before in this batch, with one half, and the others are silent
    frozen = logit + 1.9
    memory = weighted.pair_memory_logit - weighted.pair_memory_base
    first = level + 0.25 * (logit - level) + 0.25 * frozen + 0.5 * memory
    served = np.log(weighted.examination / (1 - weighted.examination + np.exp(-first)))
    own.step(batch)
    label = np.array([s.label for s in clicks])
    loss = np.logaddexp(0, np.where(label > 0, -served, served)).mean()
    assert own.evaluations[CLICK].get()["log_loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_step_after_a_restore_is_bit_for_bit_the_step_that_would_have_been(
    kind: dict[str, Any],
) -> None:
    stream = batches(5)
    live = trainer(**kind)
    for batch in stream[:3]:
        live.step(batch)
    files = live.files()
    again = trainer(**kind)
    again.restore(reader(files))
    assert again.files() == files
    for batch in stream[3:]:
        expected, found = live.step(batch), again.step(batch)
        for figure in ("step", "loss", "gradient_norm"):
            assert getattr(found, figure) == getattr(expected, figure), figure
        assert again.files() == live.files()
    optimizer = "training/optimizer.safetensors"
    assert again.files()[optimizer] != files[optimizer]


@pytest.mark.parametrize(
    "kind",
    [{"tuning": "full"}, {"tuning": "top:1"}, {"tuning": "full", "loss": "listwise"}],
    ids=str,
)
def test_a_stream_is_learned_and_the_same_stream_gives_the_same_bytes(kind: dict[str, Any]) -> None:
    runs = []
    for _ in range(2):
        own = trainer(**kind)
        start = weights_of(own)
        losses = [own.step(batch).loss for batch in [lists(4)] * 25]
        assert losses[2] < losses[0]  # later the examination learned beside it changes the loss
        assert not training.same(start, weights_of(own))
        runs.append(own.files())
    assert runs[0] == runs[1]


def test_a_gradient_that_is_not_finite_moves_nothing_and_the_next_step_learns() -> None:
    own = trainer()
    own.step(batches(1)[0])
    clicks = [s for s in lists(4, seed=3, start=50) if s.task == CLICK]
    scale = own.ranker.heads()["purchase_scale"]
    kept = scale.detach().clone()
    with torch.no_grad():
        # No purchase in the batch: the loss is finite, 0 x inf in its gradient is not
        scale.fill_(math.inf)
    before, optimizer = weights_of(own), own.files()["training/optimizer.safetensors"]
    report = own.step(clicks)
    assert report.result == "nonfinite"
    assert math.isfinite(report.loss)
    assert not math.isfinite(report.gradient_norm)
    assert training.same(weights_of(own), before)
    assert own.files()["training/optimizer.safetensors"] == optimizer
    with torch.no_grad():
        scale.copy_(kept)
    assert own.step(clicks).result == "ok"
    assert not training.same(weights_of(own), before)
    assert all(torch.isfinite(p).all() for p in weights_of(own).values())


def test_a_score_that_is_not_finite_moves_nothing_and_is_not_evaluated() -> None:
    learner = trainer()
    with torch.no_grad():
        learner.ranker.bias.fill_(math.nan)
    before = weights_of(learner)
    report = learner.step(lists(4))
    assert report.result == "nonfinite"
    assert learner.evaluations[CLICK].get()["num_samples"] == 0
    assert len(learner.ranker.residual) == 0
    moved = {name for name, p in weights_of(learner).items() if not torch.equal(p, before[name])}
    assert moved <= {"bias"}  # NaN equals nothing


def test_the_loss_is_the_mean_of_each_sample_s_weight_times_its_cross_entropy() -> None:
    own, twin, batch = trainer(), trainer(), batches(1)[0]
    with torch.no_grad():
        scored = twin.ranker([s.query for s in batch], [s.text for s in batch])
    report = own.step(batch)
    total = 0.0
    for i, s in enumerate(batch):
        f = report.weighted.examination[i] / (1 + math.exp(-float(scored.by_task[s.task][i])))
        total += float(report.weighted.weight[i]) * (-math.log(f) if s.label else -math.log(1 - f))
    assert report.loss == pytest.approx(total / len(batch), rel=1e-4)
    assert len({round(float(w), 4) for w in report.weighted.weight}) > 3


def test_twice_the_weight_is_twice_the_loss_and_twice_the_gradient() -> None:
    batch = batches(1)[0]
    once, twice = first_step(lambda samples: 1.0, batch), first_step(lambda samples: 2.0, batch)
    assert twice.loss == pytest.approx(2 * once.loss, rel=1e-5)
    assert twice.gradient_norm == pytest.approx(2 * once.gradient_norm, rel=1e-4)


def test_a_sample_of_weight_zero_moves_no_parameter() -> None:
    batch = lists(1, size=20)  # of one list: what was learned from it weighs later ones

    def all_but_one(samples: Sequence[Sample]) -> list[float]:
        return [0.0 if s is batch[2] else 1.0 for s in samples]

    without = [s for s in batch if s is not batch[2]]
    muted, absent = first_step(all_but_one, batch), first_step(lambda samples: 1.0, without)
    all_of_them = first_step(lambda samples: 1.0, batch)
    gradient = absent.gradient_norm * len(without)
    assert muted.gradient_norm * len(batch) == pytest.approx(gradient, rel=1e-3)
    assert muted.gradient_norm != pytest.approx(all_of_them.gradient_norm, rel=1e-3)
    nothing = Trainer(config(weight_decay=0.0), Changed(lambda samples: 0.0))
    before = weights_of(nothing)
    nothing.step(batch)
    assert training.same(weights_of(nothing), before)


def test_a_batch_of_purchases_alone_is_learned_under_every_loss() -> None:
    bought = [s for s in lists(20) if s.task == PURCHASE]
    for loss in LOSSES:
        own = trainer(loss=loss)
        report = own.step(bought)
        assert report.result == "ok"
        assert report.gradient_norm > 0


def test_the_weight_of_a_task_is_what_its_loss_counts_in_the_sum() -> None:
    batch = lists(6)

    def loss(click: float, purchase: float) -> float:
        weights = TaskWeights(click=click, purchase=purchase)
        return trainer(loss="listwise", task_weights=weights).step(batch).loss

    clicks, purchases = loss(1.0, 0.0), loss(0.0, 1.0)
    assert clicks > 0
    assert purchases > 0
    assert loss(1.0, 1.0) == trainer(loss="listwise").step(batch).loss
    assert loss(3.0, 0.5) == pytest.approx(3 * clicks + 0.5 * purchases, rel=1e-5)


def test_a_task_of_weight_zero_moves_nothing() -> None:
    own = trainer(task_weights=TaskWeights(purchase=0.0), weight_decay=0.0)
    before = weights_of(own)
    own.step([s for s in lists(20) if s.task == PURCHASE])
    assert training.same(weights_of(own), before)
    own.step(lists(20))
    moved = {name for name, p in weights_of(own).items() if not torch.equal(p, before[name])}
    assert "bias" in moved
    assert not moved & {"purchase_scale", "purchase_bias"}


@pytest.mark.parametrize("loss", [n for n, loss in LOSSES.items() if not loss.across_lists])
def test_every_loss_learns_a_stream_smoothed_or_not(loss: str) -> None:
    batch = lists(4)
    for share in (0.0, 0.1):
        own = trainer(loss=loss, label_smoothing=share)
        losses = [own.step(batch).loss for _ in range(3)]
        assert losses[2] < losses[0]


def with_click_rate(rate: float, *, num_lists: int, seed: int = 0) -> list[Sample]:
    """Shown lists of ten, every item clicked at one rate wherever it stands."""
    draw = np.random.default_rng(seed)
    shown = lists(num_lists, seed=seed, size=10)
    clicks = [s for s in shown if s.task == CLICK]
    labels = (draw.random(len(clicks)) < rate).astype(int).tolist()
    return [
        msgspec.structs.replace(s, label=label, position=None, copy_kind=CopyKind.FIRST)
        for s, label in zip(clicks, labels, strict=True)
    ]


@pytest.mark.parametrize("loss", ["pointwise", "squared_error", "listwise"])
def test_predicted_probabilities_are_near_the_click_rate_under_every_loss(loss: str) -> None:
    own = trainer(
        WeigherConfig(exponent=0.0),
        loss=loss,
        tuning="frozen",
        head_lr=0.2,
        # Three queries that recur all the time, whose residuals would learn the level first
        residual=ResidualConfig(steps=0),
    )
    for step in range(80):
        own.step(with_click_rate(0.05, num_lists=32, seed=step))
    judged = with_click_rate(0.05, num_lists=40, seed=1000)
    with torch.no_grad():
        logits = own.ranker([s.query for s in judged], [s.text for s in judged])
    assert float(torch.sigmoid(logits.base).mean()) == pytest.approx(0.05, abs=0.02)


def test_the_bias_learns_apart_and_leaves_the_ranking_gradient_untouched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gradients() -> dict[str, torch.Tensor]:
        own, batch = trainer(loss="listwise", max_grad_norm=1e9), lists(4)
        own.step(batch)
        return {n: p.grad.clone() for n, p in own.ranker.named_parameters() if p.grad is not None}

    found = gradients()
    monkeypatch.setattr(LOSSES["listwise"], "learns_bias", True)
    without = gradients()
    assert abs(float(found.pop("bias"))) > 0.01 > abs(float(without.pop("bias")))
    assert training.same(found, without)


def test_dropout_is_a_function_of_seed_and_step_alone() -> None:
    batch = lists(4)
    with_dropout = trainer(dropout=0.3).step(batch).loss
    torch.manual_seed(99)
    assert trainer(dropout=0.3).step(batch).loss == with_dropout
    assert trainer(dropout=0.3, seed=1).step(batch).loss != with_dropout
    later = trainer(dropout=0.3)
    later.step_number = 7
    assert later.step(batch).loss != with_dropout
    assert trainer().step(batch).loss != with_dropout


@pytest.mark.parametrize("tuning", ["top:1", "frozen"])
def test_dropout_leaves_what_is_frozen_and_kept_alone(tuning: str) -> None:
    batch, taught, plain = lists(4), trainer(dropout=0.5, tuning=tuning), trainer(tuning=tuning)
    taught.step(batch)
    ids = [taught.ranker.texts.ids(s.text) for s in batch]
    taught.ranker.eval()
    fresh = trainer(tuning=tuning).ranker.encoder
    fresh.load_state_dict(taught.ranker.encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(taught.ranker.encoder(ids), fresh(ids))
    if tuning == "frozen":
        assert plain.step(batch).loss == trainer(dropout=0.5, tuning=tuning).step(batch).loss


def test_a_frozen_encoder_keeps_its_bytes_while_heads_and_residuals_move() -> None:
    own = trainer(tuning="frozen")
    before = own.files()
    for batch in batches(3):
        own.step(batch)
    after = own.files()
    assert after["model.safetensors"] == before["model.safetensors"]
    parts = ("heads.safetensors", "residual.safetensors", "estimator.msgpack", "stackers.msgpack")
    for part in parts:
        assert after[part] != before[part], part


def test_what_never_moves_is_a_shard_of_its_own_in_a_folder_that_transformers_reads(
    tmp_path: Path,
) -> None:
    own = trainer(tuning="top:1")
    before = own.files()
    own.step(batches(1)[0])
    after = own.files()
    assert layout.MODEL not in after
    assert after[layout.FROZEN] == before[layout.FROZEN]
    assert after[layout.MOVING] != before[layout.MOVING]
    for name in ("config.json", layout.MODEL_INDEX, layout.FROZEN, layout.MOVING):
        (tmp_path / name).write_bytes(after[name])
    loaded = AutoModel.from_pretrained(tmp_path).state_dict()
    expected = own.ranker.encoder.model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_a_top_layer_moves_and_the_layers_below_keep_their_bytes() -> None:
    own = trainer(tuning="top:1")
    before = weights_of(own)
    own.step(batches(1)[0])
    moved = {name for name, p in weights_of(own).items() if not torch.equal(p, before[name])}
    layers = [name.split(".")[4] for name in moved if name.startswith("encoder.model.encoder")]
    assert set(layers) == {"1"}
    assert not [name for name in moved if "embeddings" in name]


def test_a_refused_batch_changes_nothing() -> None:
    own = trainer()
    own.step(batches(1)[0])
    before, batch = own.files(), lists(2, seed=5, start=60)
    bad = [*batch[:3], msgspec.structs.replace(batch[3], label=2), *batch[4:]]
    with pytest.raises(WeightError, match=r"clicks\[3\]@6004: label: got 2"):
        own.step(bad)
    assert own.files() == before


def test_l2_sp_holds_the_encoder_near_its_start() -> None:
    moved = []
    for memory in (0.0, 40.0):
        own = trainer(l2_sp_samples=memory, weight_decay=0.0)
        start = weights_of(own)
        for batch in batches(6):
            own.step(batch)
        after = weights_of(own)
        encoder = [name for name in after if name.startswith("encoder.")]
        moved.append(sum(float((after[name] - start[name]).norm()) for name in encoder))
    assert moved[1] < 0.5 * moved[0]


def test_the_evaluation_of_a_version_names_task_and_figure() -> None:
    own = trainer()
    for batch in batches(4):
        own.step(batch)
    figures = own.evaluation()
    assert {"click_auc", "click_log_loss", "click_position_normalized_entropy"} <= set(figures)
    assert "purchase_num_samples" in figures
    assert figures["click_num_samples"] == 80


def test_the_exponent_of_the_weights_is_on_record_in_every_report() -> None:
    for exponent in (0.0, 0.5):
        report = trainer(WeigherConfig(exponent=exponent)).step(batches(1)[0])
        assert report.weighted.exponent == exponent


def test_what_was_trained_is_counted_and_digested_whatever_the_batches() -> None:
    stream = lists(12)
    digests = set()
    for size in (7, 30, len(stream)):
        own = trainer(tuning="frozen")
        for start in range(0, len(stream), size):
            own.step(stream[start : start + size])
        digests.add(own.trained)
    hashes = [hashlib.blake2b(s.sample_id.encode(), digest_size=8).digest() for s in stream]
    sum64 = sum(int.from_bytes(digest, "little") for digest in hashes) % 2**64
    assert digests == {(len(stream), sum64)}
    again = trainer(tuning="frozen")
    again.restore(reader(own.files()))
    assert again.trained == own.trained


def test_a_step_that_moved_nothing_is_not_counted_as_trained() -> None:
    own = Trainer(config(), Changed(lambda samples: math.inf))
    assert own.step(lists(4)).result == "nonfinite"
    assert (own.step_number, own.trained) == (1, (0, 0))


def test_a_step_that_is_skipped_has_a_number_and_nothing_is_learned_from_it() -> None:
    own, twin = trainer(dropout=0.3), trainer(dropout=0.3)
    own.step(batches(1)[0])
    before = own.files()
    own.skip(lists(4, seed=8, start=40))
    after = own.files()
    changed = {name for name, data in after.items() if data != before[name]}
    assert changed == {"README.md", "training/progress.json"}
    assert (own.step_number, own.trained) == (2, (len(batches(1)[0]), own.trained[1]))
    twin.restore(reader(after))
    assert twin.step(batches(3)[2]).loss == own.step(batches(3)[2]).loss


def test_a_checkpoint_that_does_not_tell_what_was_trained_is_still_read() -> None:
    own = trainer()
    own.step(batches(1)[0])
    older = b'{"format":1,"num_samples":23,"step":1}'
    own.restore(reader({**own.files(), "training/progress.json": older}))
    assert (own.step_number, own.num_samples, own.trained) == (1, 23, (0, 0))


def memory_for(num_samples: int, asked: list[int]) -> Callable[[int], None]:
    """A device that holds so many samples at once; it notes each attempt."""

    def scoring(number: int) -> None:
        asked.append(number)
        if number > num_samples:
            raise torch.OutOfMemoryError(f"{number} samples")

    return scoring


def with_memory_for(num_samples: int, asked: list[int], **changes: Any) -> Trainer:
    return Trainer(config(**changes), Weigher(), scoring=memory_for(num_samples, asked))


@pytest.mark.parametrize(
    "kind",
    [kind for kind in KINDS if not TOGETHER & {*kind, kind.get("loss")}],
    ids=str,
)
def test_a_step_that_ran_out_of_memory_is_the_same_step_in_more_parts_and_the_next_one_keeps_them(
    kind: dict[str, Any],
) -> None:
    """Up to rounding: matrix products over fewer rows may add up in another order.

    From the second step on AdamW, which divides a gradient by its own size, has made whole steps of
    what is rounding alone, such as the gradient of the bias under a softmax.
    """
    asked: list[int] = []
    tight, ample = with_memory_for(6, asked, **kind), trainer(**kind)
    for number, batch in enumerate(batches(3)):
        found, expected = tight.step(batch), ample.step(batch)
        assert found.num_micro_batches >= 4 > expected.num_micro_batches == 1
        assert found.loss == pytest.approx(expected.loss, abs=1e-6 if number == 0 else 1e-5)
        tolerance = 1e-5 if number == 0 else 1e-4
        assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=tolerance)
        assert found.result == "ok"
    num_too_many = len([number for number in asked if number > 6])
    assert 2**num_too_many == tight.num_micro_batches  # what was found out once is kept
    for name, parameter in weights_of(tight).items():
        if name == "bias" and kind.get("loss") in ("listwise", "pairwise"):
            continue  # a softmax does not depend on it
        torch.testing.assert_close(parameter, weights_of(ample)[name], atol=1e-4, rtol=1e-3)
    again = trainer(**kind)
    again.restore(reader(tight.files()))
    assert again.num_micro_batches == tight.num_micro_batches
    assert tight.trained == ample.trained


def test_a_step_of_many_texts_is_bounded_by_tokens_before_memory_runs_out() -> None:
    asked: list[int] = []
    many = [sample for batch in batches(6) for sample in batch]
    bounded = Trainer(config(max_step_tokens=40), Weigher(), scoring=asked.append)
    whole = trainer()
    found, expected = bounded.step(many), whole.step(many)
    assert len(asked) > 4
    assert sum(asked) == len(many)
    assert found.loss == pytest.approx(expected.loss, abs=1e-5)
    assert found.num_micro_batches == 1, "what the journal says of memory that ran out"
    again = Trainer(config(max_step_tokens=40), Weigher())
    again.step(many)
    assert again.files() == bounded.files()


def test_a_step_in_parts_is_a_function_of_their_number_and_not_of_how_it_came_to_be() -> None:
    tight, journaled = with_memory_for(6, [], dropout=0.3), trainer(dropout=0.3)
    journaled.num_micro_batches = 4
    for batch in batches(2):
        tight.step(batch)
        journaled.step(batch)
    assert tight.files() == journaled.files()


def test_a_list_is_never_divided_under_the_listwise_loss_and_a_sample_never() -> None:
    clicks = [s for s in lists(4) if s.task == CLICK]
    for kind, least in (("pointwise", 1), ("listwise", 5)):
        asked: list[int] = []
        with_memory_for(least, asked, loss=kind).step(clicks)
        assert asked[-(20 // least) :] == [least] * (20 // least)
        message = rf"step 1: out of memory on cpu with {least} sample\(s\) at once"
        with pytest.raises(OutOfMemory, match=message):
            with_memory_for(least - 1, [], loss=kind).step(clicks)


def test_three_steps_in_a_row_that_are_not_finite_are_too_many() -> None:
    factor = [1.0]
    own = Trainer(config(), Changed(lambda samples: factor[0]))
    stream = batches(12)
    for bad, batch in zip((math.nan, math.inf, 1.0, math.inf, math.nan), stream, strict=False):
        factor[0] = bad
        assert own.step(batch).result == ("ok" if bad == 1.0 else "nonfinite")
    before = weights_of(own)
    factor[0] = math.inf
    message = "steps 4 to 6: 3 steps in a row whose scores, loss or gradient are not finite"
    with pytest.raises(Diverged, match=message) as refused:
        own.step(stream[5])
    assert (refused.value.first_step, refused.value.last_step) == (4, 6)
    assert training.same(weights_of(own), before)
    assert all(torch.isfinite(p).all() for p in before.values())


def usual(own: Trainer) -> Trainer:
    """Restore it as if two hundred steps had had losses like the next one's."""
    loss = own.step(lists(8, seed=1)).loss
    watch = LossWatch(num_steps=200, num_samples=4000.0, mean=loss, variance=0.5)
    progress = {**msgspec.json.decode(own.files()["training/progress.json"]), "losses": watch}
    own.restore(reader({**own.files(), "training/progress.json": msgspec.json.encode(progress)}))
    return own


def test_a_loss_far_beyond_the_recent_ones_is_refused_before_anything_moves() -> None:
    factor = [1.0]
    own = usual(Trainer(config(dropout=0.3), Changed(lambda samples: factor[0])))
    assert own.step(lists(8, seed=2)).result == "ok"
    before, optimizer = weights_of(own), own.files()["training/optimizer.safetensors"]
    again = Trainer(config(dropout=0.3), own.weigher)
    again.restore(reader(own.files()))
    factor[0] = 50.0
    message = r"step 3: loss .* is above .*, 6 standard deviations beyond the mean"
    for resumed in (own, again):
        with pytest.raises(Diverged, match=message) as refused:
            resumed.step(lists(8, seed=3))
    assert (refused.value.first_step, refused.value.last_step) == (3, 3)
    assert training.same(weights_of(own), before)
    assert own.files()["training/optimizer.safetensors"] == optimizer


def test_after_a_step_left_out_a_stream_that_has_changed_for_good_is_learned() -> None:
    factor = [1.0]
    own = usual(Trainer(config(), Changed(lambda samples: factor[0])))
    factor[0] = 50.0
    own.skip(lists(8, seed=3))
    assert own.step(lists(8, seed=4)).result == "ok"


def test_a_step_without_samples_moves_nothing() -> None:
    own = trainer()
    own.step(batches(1)[0])
    before = weights_of(own)
    report = own.step([])
    assert (report.result, report.loss, report.step) == ("ok", 0.0, 2)
    assert training.same(weights_of(own), before)
