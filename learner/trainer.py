"""One step: weigh, test, then train; with all the state that it changes.

Legend: N samples of a step (of all ranks), n of them our own, D width.

A step, in this order:
1. weigh the samples (`Weigher`: predict, weigh, clip, and only then do the estimators learn);
2. score them with the model as it is, and take the gradient of L = 1/N sum w_i loss_i there;
3. evaluate what would have been served, then let the stacker learn it: before either of its parts learns these samples;
4. move the parameters along the gradient, unless something is not finite;
5. let the residuals of the queries learn their counts.

Several ranks take a step together over the samples of all: each scores its own in 2.; everything else is learned from all samples by every
rank, in rank order, so that all hold the same state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeAlias

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from learner.config import LearnerConfig
from learner.divergence import LossWatch
from learner.encoder.model import Encoder, load_pretrained
from learner.encoder.tokens import Texts
from learner.errors import OutOfMemory
from learner.evaluation import Evaluation
from learner.loss import listwise, pointwise
from learner.process_group import ProcessGroup, SingleProcess
from learner.ranker import PairLogits, Ranker
from learner.residual import QueryResidual
from learner.store import blobs
from weighting.estimators.stacker import Stacker
from weighting.ratio import invert
from weighting.sample import CopyKind, Sample
from weighting.tasks import CLICK, PURCHASE, TASKS
from weighting.weigher import Weigher, WeightedBatch

Array = NDArray[np.float64]
Column: TypeAlias = np.ndarray[Any, Any]
FORMAT = 1
_RANK_SEED = 0x9E3779B9  #: 2^32 / golden ratio: the seeds of two ranks do not meet


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepReport:
    """What a step saw.

    Attributes:
        step: number of the step, from 1.
        result: ok, or nonfinite: a score or the gradient was refused and no parameter moved.
        loss: L before the step.
        gradient_norm: of all that moves, before clipping.
        num_micro_batches: parts that each rank cut its samples into; more than asked for when memory ran out.
        weighted: the samples, of all ranks, and how much each counted.
    """

    step: int
    result: str
    loss: float
    gradient_norm: float
    num_micro_batches: int
    weighted: WeightedBatch


class _Progress(msgspec.Struct, kw_only=True):
    """How far training has come, as it is saved; what an older checkpoint does not say is as at the start."""

    format: int = FORMAT
    step: int
    num_samples: int
    trained: tuple[int, int] = (0, 0)
    num_micro_batches: int = 1
    losses: LossWatch = msgspec.field(default_factory=LossWatch)


class _Scored(msgspec.Struct, kw_only=True, frozen=True, eq=False):
    """What the model said of samples before the step, and their part of L; each rank tells the others.

    Columns are f32: click, base and purchase (n,) as in `PairLogits`, items (n, D).
    """

    loss: float
    num_micro_batches: int
    has_gradient: list[bool]  #: per parameter
    click: Column
    base: Column
    purchase: Column
    items: Column


_COLUMNS = ("click", "base", "purchase", "items")
_encode = msgspec.msgpack.Encoder(enc_hook=lambda column: column.tobytes()).encode
_decode = msgspec.msgpack.Decoder(
    _Scored, dec_hook=lambda kind, data: np.frombuffer(data, np.float32)
).decode


class Trainer:
    """The learning model: ranker, estimators, stackers, optimizer and evaluation, under one owner."""

    def __init__(
        self,
        config: LearnerConfig,
        weigher: Weigher,
        process_group: ProcessGroup | None = None,
        *,
        scoring: Callable[[int], None] = lambda num_samples: None,
    ) -> None:
        """Load the starting encoder.

        Args:
            config: the settings.
            weigher: the estimators.
            process_group: the ranks that take each step together; one by default.
            scoring: told the number of samples before each pass through the model; what it raises is raised there.

        Raises:
            ModelMissing: `config.model` cannot be had.
            TuningUnsupported: `config.tuning` does not fit it.
        """
        self.config = config
        self.weigher = weigher
        self.process_group: ProcessGroup = process_group or SingleProcess()
        self._scoring = scoring
        self.stackers = {task: Stacker() for task in TASKS}
        self.evaluations = {task: Evaluation() for task in TASKS}
        self.step_number = 0
        self.num_samples = 0
        self.trained = (
            0,
            0,
        )  #: of samples in steps with result ok: number, and sum mod 2^64 of BLAKE2b-64 of `sample_id`
        self.num_micro_batches = 1  #: parts of a step that are scored one after another; grows when memory runs out, and stays
        self._losses = LossWatch()
        model, tokenizer, pooling = load_pretrained(config.model, download=config.download)
        encoder = Encoder(
            model.to(config.device), tuning=config.tuning, pooling=pooling, dropout=config.dropout
        )
        texts = Texts(tokenizer, max_tokens=config.max_tokens)
        residual = QueryResidual(encoder.width, config.residual)
        self.ranker = Ranker(
            encoder,
            texts,
            residual,
            interaction=config.interaction,
            scale=config.scale,
            exponent=weigher.config.exponent,
        )
        self._start = [p.detach().clone() for p in encoder.trained()]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": encoder.trained(), "lr": config.lr, "weight_decay": config.weight_decay},
                {
                    "params": list(self.ranker.heads().values()),
                    "lr": config.head_lr,
                    "weight_decay": 0.0,
                },
            ],
            lr=config.lr,
        )
        self._static = _hugging_face_files(encoder.model, tokenizer)

    def step(self, samples: Sequence[Sample]) -> StepReport:
        """Weigh, test and train on N samples: our own, in event order, and those that the other ranks bring to this step.

        Raises:
            WeightError: a weight was refused; nothing was learned.
            Diverged: no parameter moved, but the state is not to be gone on from; nor is it after the errors below.
            OutOfMemory: not even the least part of the samples fits the device.
            RankLost: another rank is gone.
        """
        samples, own = self._gather(samples)
        weighted = self.weigher.weigh(samples)  # 1.
        scored = self._score(weighted, own)  # 2.
        known, loss, norm = _finite(samples, scored), math.nan, math.nan
        if (
            known
        ):  # otherwise the estimators, sound without the model, have learned, and it does not
            self._stack(weighted, scored)  # 3.
            loss, norm = scored.loss, self._gradient_norm()
        ok = math.isfinite(loss) and math.isfinite(norm)
        if samples:
            self._losses.judge(
                self.step_number + 1, loss if ok else math.nan, num_samples=len(samples)
            )
        if samples and ok:
            self._move()  # 4.
            self.trained = _counted(self.trained, samples)
        if known:
            self._count(weighted, scored)  # 5.
        self.step_number += 1
        self.num_samples += len(samples)
        return StepReport(
            step=self.step_number,
            result="ok" if ok else "nonfinite",
            loss=loss,
            gradient_norm=norm,
            num_micro_batches=self.num_micro_batches,
            weighted=weighted,
        )

    def skip(self, samples: Sequence[Sample]) -> None:
        """Leave a step out that is in quarantine: it has a number and samples, nothing is learned from them.

        What losses are usual is found out anew: if the stream has changed for good, the next step is not taken for a spike as well.
        """
        samples, _ = self._gather(samples)
        self.step_number += 1
        self.num_samples += len(samples)
        self._losses = LossWatch()

    def _gather(self, samples: Sequence[Sample]) -> tuple[Sequence[Sample], range]:
        """The samples of all ranks, in rank order, and the places of our own."""
        if self.process_group.world == 1:
            return samples, range(len(samples))
        shares = [
            msgspec.msgpack.decode(data, type=list[Sample])
            for data in self.process_group.gather(msgspec.msgpack.encode(list(samples)))
        ]
        start = sum(len(share) for share in shares[: self.process_group.rank])
        return [s for share in shares for s in share], range(start, start + len(samples))

    def _score(self, weighted: WeightedBatch, own: range) -> _Scored:
        """Score our own samples with their gradient, then hear what the other ranks have scored.

        When memory ran out on one rank, all score again in as many parts as it needs: a step is a function of that number, for replay.
        """
        while True:
            shares = [self._score_own(weighted, own)]
            if self.process_group.world > 1:
                shares = [_decode(data) for data in self.process_group.gather(_encode(shares[0]))]
            self.num_micro_batches = max(share.num_micro_batches for share in shares)
            if all(share.num_micro_batches == self.num_micro_batches for share in shares):
                break
        if self.process_group.world == 1:
            return shares[0]
        has_gradient = [
            any(ranks) for ranks in zip(*(share.has_gradient for share in shares), strict=True)
        ]
        for parameter, needed in zip(self._moving(), has_gradient, strict=True):
            if needed and parameter.grad is None:  # by the samples of other ranks alone
                parameter.grad = torch.zeros_like(parameter)
        return _Scored(
            loss=sum(share.loss for share in shares),
            num_micro_batches=self.num_micro_batches,
            has_gradient=has_gradient,
            items=np.concatenate(
                [share.items.reshape(-1, self.ranker.encoder.width) for share in shares]
            ),
            **{
                name: np.concatenate([getattr(share, name) for share in shares])
                for name in ("click", "base", "purchase")
            },
        )

    def _score_own(self, weighted: WeightedBatch, own: range) -> _Scored:
        """Score part after part of our own samples; again in twice as many parts while memory runs out."""
        while True:
            parts = _cut(
                weighted.samples,
                own,
                self.num_micro_batches,
                whole_lists=self.config.loss == "listwise",
            )
            try:
                return self._accumulate(weighted, own, parts)
            except torch.OutOfMemoryError as error:
                if self.num_micro_batches >= len(own):
                    most = max(len(part) for part in parts)
                    raise OutOfMemory(
                        step=self.step_number + 1, device=self.config.device, num_samples=most
                    ) from error
            self.num_micro_batches *= 2

    def _accumulate(
        self, weighted: WeightedBatch, own: range, parts: Sequence[Sequence[int]]
    ) -> _Scored:
        """Scores before the step, and the gradient of our own samples' part of L, left with the parameters."""
        torch.manual_seed(
            self.config.seed + self.step_number + self.process_group.rank * _RANK_SEED
        )  # dropout is a function of these alone
        self.ranker.train(self.config.dropout > 0)
        self._optimizer.zero_grad(set_to_none=False)
        width = self.ranker.encoder.width
        columns = {
            name: np.empty((len(own), width) if name == "items" else len(own), dtype=np.float32)
            for name in _COLUMNS
        }
        total = 0.0
        for part in parts:
            self._scoring(len(part))
            logits = self.ranker(
                [weighted.samples[i].query for i in part], [weighted.samples[i].text for i in part]
            )
            loss = self._loss(weighted, part, logits)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            for name, column in columns.items():
                column[np.array(part) - own.start] = getattr(logits, name).detach().numpy()
        has_gradient = [parameter.grad is not None for parameter in self._moving()]
        return _Scored(
            loss=total,
            num_micro_batches=self.num_micro_batches,
            has_gradient=has_gradient,
            **columns,
        )

    def _loss(
        self, weighted: WeightedBatch, places: Sequence[int], logits: PairLogits
    ) -> torch.Tensor:
        """The part of L of the samples at these places, whose logits are given in the same order."""
        samples = [weighted.samples[i] for i in places]
        a, b, seen = (
            torch.from_numpy(column[places]).float()
            for column in (weighted.a, weighted.b, weighted.seen)
        )
        click = [i for i, s in enumerate(samples) if s.task == CLICK]
        purchase = [i for i, s in enumerate(samples) if s.task == PURCHASE]
        if self.config.loss == "listwise":
            total = listwise(
                logits.click[click], a[click], seen[click], [samples[i].list_id for i in click]
            )
        else:
            total = pointwise(logits.click[click], a[click], b[click], seen[click])
        return (
            total + pointwise(logits.purchase[purchase], a[purchase], b[purchase], seen[purchase])
        ) / len(weighted.samples)

    def _gradient_norm(self) -> float:
        """Add up the gradients of all ranks and shorten the sum; the norm before."""
        moving = [p for p in self._moving() if p.grad is not None]
        self.process_group.sum_([p.grad for p in moving if p.grad is not None])
        return float(torch.nn.utils.clip_grad_norm_(moving, self.config.max_gradient_norm))

    def _move(self) -> None:
        """One AdamW step."""
        self._optimizer.step()
        with torch.no_grad():
            self.ranker.purchase_scale.clamp_(
                min=0.0
            )  # never turn round the encoder's order under a query that was never seen
            # L2-SP (Li et al., ICML 2018), decoupled from the gradient as AdamW's decay is: a memory of 1 / (lr pull) steps
            for parameter, start in zip(self.ranker.encoder.trained(), self._start, strict=True):
                parameter.lerp_(start, min(1.0, self.config.lr * self.config.pull))

    def _moving(self) -> list[torch.nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _stack(self, weighted: WeightedBatch, scored: _Scored) -> None:
        """Evaluate the logit that would have been served where each sample was shown; then the stackers learn."""
        for task, logits in ((CLICK, scored.click), (PURCHASE, scored.purchase)):
            places = np.array(
                [i for i, s in enumerate(weighted.samples) if s.task == task], dtype=np.intp
            )
            if not len(places):
                continue
            encoder = invert(
                logits[places].astype(np.float64), weighted.exponent, weighted.prior[task]
            )
            memory = weighted.memory_logit_at_position[places]
            label = np.array([weighted.samples[i].label for i in places], dtype=np.float64)
            first = np.array([weighted.samples[i].copy_kind is CopyKind.FIRST for i in places])
            served = self.stackers[task].get(encoder, memory)
            self.evaluations[task].update(served[first], label[first], prior=weighted.prior[task])
            self.stackers[task].learn(encoder, memory, label, weighted.law[places])

    def _count(self, weighted: WeightedBatch, scored: _Scored) -> None:
        """Give each query's residual its weighted clicks and exposures of this step."""
        samples = weighted.samples
        per_query: dict[str, dict[str, list[float]]] = {}
        for i, s in enumerate(samples):
            if s.task != CLICK:
                continue
            row = per_query.setdefault(s.query, {}).setdefault(s.item_id or s.text, [i, 0.0, 0.0])
            weight = float(weighted.law[i])
            row[1] += weight * s.label
            row[2] += weighted.seen[i] if s.copy_kind is CopyKind.FIRST else 0.0
        prior = weighted.prior.get(CLICK, self.weigher.prior(CLICK))
        base = invert(scored.base.astype(np.float64), weighted.exponent, prior)
        for query, items in per_query.items():
            rows = [int(row[0]) for row in items.values()]
            self.ranker.residual.learn(
                query,
                list(items),
                scored.items[rows],
                base[rows],
                [row[1] for row in items.values()],
                [row[2] for row in items.values()],
            )

    def evaluation(self) -> dict[str, float]:
        """What a version's manifest says of its quality: the latest part of the stream, per task, scored before it was trained on."""
        return {
            f"{task}_{name}": value
            for task, own in self.evaluations.items()
            for name, value in own.latest().items()
        }

    def files(self) -> dict[str, bytes]:
        """Everything of a version but ingest's part: a Hugging Face folder, our heads and estimators, and ``training/``."""
        return self.copied()()

    def copied(self) -> Callable[[], dict[str, bytes]]:
        """Copy all that the next step changes, and return what makes `files` of the copies, in any thread: training goes on meanwhile."""
        ranker = self.ranker
        queries, vectors = ranker.residual.vectors()
        counts, _ = ranker.residual.snapshot()
        moving = {id(p) for p in self._moving()}
        model = {
            name: _copy(p) if id(p) in moving else p.detach()
            for name, p in ranker.encoder.model.state_dict(keep_vars=True).items()
        }
        heads = {name: _copy(p) for name, p in ranker.heads().items()}
        optimizer = {name: _copy(tensor) for name, tensor in self._optimizer_tensors().items()}
        stackers = {task: own.snapshot() for task, own in self.stackers.items()}
        evaluations = {task: own.snapshot() for task, own in self.evaluations.items()}
        progress = _Progress(
            step=self.step_number,
            num_samples=self.num_samples,
            trained=self.trained,
            num_micro_batches=self.num_micro_batches,
            losses=self._losses,
        )
        small = {
            **self._static,
            "residual.safetensors": blobs.arrays_to_bytes({"vectors": vectors}),
            "residual.json": msgspec.json.encode(queries),
            "estimator.msgpack": self.weigher.snapshot(),
            "stackers.msgpack": msgspec.msgpack.encode(stackers, order="sorted"),
            "training/residual.msgpack": counts,
            "training/evaluation.msgpack": msgspec.msgpack.encode(evaluations, order="sorted"),
            "training/progress.json": msgspec.json.encode(progress, order="sorted"),
        }
        still = not ranker.encoder.trained()

        def make() -> dict[str, bytes]:
            if not still or "model.safetensors" not in self._static:
                small["model.safetensors"] = blobs.tensors_to_bytes(
                    {name: tensor.cpu() for name, tensor in model.items()}
                )
            if still:
                self._static["model.safetensors"] = small["model.safetensors"]
            description = {
                "format": FORMAT,
                "weighting": self.weigher.config,
                **ranker.description(),
            }  # hashes what never moves: slow once
            small["heads.json"] = msgspec.json.encode(description, order="sorted")
            small["heads.safetensors"] = blobs.tensors_to_bytes(heads)
            small["training/optimizer.safetensors"] = blobs.tensors_to_bytes(optimizer)
            return small

        return make

    def restore(self, read: Callable[[str], bytes]) -> None:
        """Resume after the step that the files were taken behind; `read` gives a file by its name."""
        ranker = self.ranker
        ranker.encoder.model.load_state_dict(blobs.tensors_from_bytes(read("model.safetensors")))
        tensors = blobs.tensors_from_bytes(read("heads.safetensors"))
        with torch.no_grad():
            for name, parameter in ranker.heads().items():
                parameter.copy_(tensors[name])
        ranker.residual.restore(
            read("training/residual.msgpack"),
            blobs.arrays_from_bytes(read("residual.safetensors"))["vectors"],
        )
        self.weigher.restore(read("estimator.msgpack"))
        for owners, name in (
            (self.stackers, "stackers.msgpack"),
            (self.evaluations, "training/evaluation.msgpack"),
        ):
            kept: Mapping[str, bytes] = msgspec.msgpack.decode(read(name))
            for task, own in owners.items():
                own.restore(kept[task])
        self._restore_optimizer(blobs.tensors_from_bytes(read("training/optimizer.safetensors")))
        progress = msgspec.json.decode(read("training/progress.json"), type=_Progress)
        self.step_number, self.num_samples, self.trained = (
            progress.step,
            progress.num_samples,
            progress.trained,
        )
        self.num_micro_batches, self._losses = progress.num_micro_batches, progress.losses

    def _named(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.ranker.named_parameters() if p.requires_grad}

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        state = self._optimizer.state
        named = {name: p for name, p in self._named().items() if p in state}
        return {
            f"{name}|{key}": state[p][key].detach().cpu()
            for name, p in sorted(named.items())
            for key in sorted(state[p])
        }

    def _restore_optimizer(self, tensors: Mapping[str, torch.Tensor]) -> None:
        named = self._named()
        self._optimizer.state.clear()
        for key, tensor in tensors.items():
            name, _, field = key.partition("|")
            parameter = named[name]
            self._optimizer.state[parameter][field] = (
                tensor.clone() if field == "step" else tensor.to(parameter.device).clone()
            )


def _counted(trained: tuple[int, int], samples: Sequence[Sample]) -> tuple[int, int]:
    """Number and digest with these samples added: the same for any batching of the same log."""
    number, sum64 = trained
    hashes = (
        int.from_bytes(blake2b(s.sample_id.encode(), digest_size=8).digest(), "little")
        for s in samples
    )
    return number + len(samples), (sum64 + sum(hashes)) % (1 << 64)


def _cut(
    samples: Sequence[Sample], places: Sequence[int], number: int, *, whole_lists: bool
) -> list[list[int]]:
    """Places in at most `number` parts of about equal size, each in order; `whole_lists` keeps the candidates of a list together."""
    units: dict[str | int, list[int]] = {}
    for i in places:
        units.setdefault(
            samples[i].list_id if whole_lists and samples[i].task == CLICK else i, []
        ).append(i)
    parts: dict[int, list[int]] = {}
    start = 0
    for unit in units.values():
        parts.setdefault(start * number // len(places), []).extend(unit)
        start += len(unit)
    return [sorted(part) for part in parts.values()]


def _finite(samples: Sequence[Sample], scored: _Scored) -> bool:
    """Whether every sample's logit of its own task is a number."""
    click = np.array([s.task == CLICK for s in samples], dtype=bool)
    return bool(np.isfinite(np.where(click, scored.click, scored.purchase)).all())


def _hugging_face_files(model: Any, tokenizer: Any) -> dict[str, bytes]:
    """The parts of a Hugging Face folder that never change: configuration and tokenizer."""
    raw = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return {
        "config.json": model.config.to_json_string().encode(),
        "tokenizer.json": tokenizer.backend_tokenizer.to_str().encode(),
        "tokenizer_config.json": msgspec.json.encode({**raw, **special}, order="sorted"),
    }


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return its values in host memory of their own."""
    return tensor.detach().to("cpu", copy=True)


def cpu_capability() -> str:
    """Return the instruction set that torch's kernels use; another one sums in another order."""
    return torch.backends.cpu.get_cpu_capability()
