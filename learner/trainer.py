"""One step: test, weigh, then train; with all the state that it changes.

Legend: N samples of a step, D width.

A step, in this order:
1. score the samples with the model as it is;
2. weigh them (`Weigher`: predict, weigh, clip, and only then do the estimators learn);
3. evaluate what would have been served, then let the stacker learn it: before either of its parts learns these samples;
4. move the parameters along the gradient of L = 1/N sum w_i loss_i;
5. let the residuals of the queries learn their counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from learner import blobs
from learner.config import LearnerConfig
from learner.evaluation import Evaluation
from learner.loss import listwise, pointwise
from learner.model import Encoder, load_pretrained
from learner.ranker import PairLogits, Ranker
from learner.residual import QueryResidual
from learner.text import Texts
from weighting.ratio import invert
from weighting.sample import CopyKind, Sample, Task
from weighting.stacker import Stacker
from weighting.weigher import Weigher, WeightedBatch

Array = NDArray[np.float64]
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepReport:
    """What a step saw.

    Attributes:
        step: number of the step, from 1.
        result: ok, or nonfinite: a score or the gradient was refused and no parameter moved.
        loss: L before the step.
        gradient_norm: of all that moves, before clipping.
        weighted: the samples and how much each counted.
    """

    step: int
    result: str
    loss: float
    gradient_norm: float
    weighted: WeightedBatch


class _Progress(msgspec.Struct, kw_only=True):
    """How far training has come, as it is saved; what an older checkpoint does not say is as at the start."""

    format: int = FORMAT
    step: int
    num_samples: int
    trained: tuple[int, int] = (0, 0)


class Trainer:
    """The learning model: ranker, estimators, stackers, optimizer and evaluation, under one owner."""

    def __init__(self, config: LearnerConfig, weigher: Weigher, ranks: object = None) -> None:
        """Load the starting encoder.

        Raises:
            ModelMissing: `config.model` cannot be had.
            TuningUnsupported: `config.tuning` does not fit it.
        """
        self.config = config
        self.num_micro_batches = 1
        self.weigher = weigher
        self.stackers = {task: Stacker() for task in Task}
        self.evaluations = {task: Evaluation() for task in Task}
        self.step_number = 0
        self.num_samples = 0
        self.trained = (0, 0)  #: of samples in steps with result ok: number, and sum mod 2^64 of BLAKE2b-64 of `sample_id`
        model, tokenizer, pooling = load_pretrained(config.model, download=config.download)
        encoder = Encoder(model.to(config.device), tuning=config.tuning, pooling=pooling, dropout=config.dropout)
        texts = Texts(tokenizer, max_tokens=config.max_tokens)
        residual = QueryResidual(encoder.width, config.residual)
        self.ranker = Ranker(encoder, texts, residual, interaction=config.interaction, scale=config.scale, exponent=weigher.config.exponent)
        self._start = [p.detach().clone() for p in encoder.trained()]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": encoder.trained(), "lr": config.lr, "weight_decay": config.weight_decay},
                {"params": list(self.ranker.heads().values()), "lr": config.head_lr, "weight_decay": 0.0},
            ],
            lr=config.lr,
        )
        self._static = _hugging_face_files(encoder.model, tokenizer)

    def step(self, samples: Sequence[Sample]) -> StepReport:
        """Test, weigh and train on N samples, in event order.

        Raises:
            WeightError: a weight was refused; nothing was learned.
        """
        torch.manual_seed(self.config.seed + self.step_number)  # dropout is a function of the step alone
        self.ranker.train(self.config.dropout > 0)
        scored = self.ranker([s.query for s in samples], [s.text for s in samples])  # 1.
        weighted = self.weigher.weigh(samples)  # 2.
        if _finite(samples, scored):
            self._stack(weighted, scored)  # 3.
            result, loss, norm = self._descend(weighted, scored)  # 4.
            self._count(weighted, scored)  # 5.
        else:  # the estimators are sound without the model: they have learned, it does not
            result, loss, norm = "nonfinite", math.nan, math.nan
        if result == "ok":
            self.trained = _counted(self.trained, samples)
        self.skip(samples)
        return StepReport(step=self.step_number, result=result, loss=loss, gradient_norm=norm, weighted=weighted)

    def skip(self, samples: Sequence[Sample]) -> None:
        """Leave a step out that is in quarantine: it has a number and samples, nothing is learned from them."""
        self.step_number += 1
        self.num_samples += len(samples)

    def _stack(self, weighted: WeightedBatch, scored: PairLogits) -> None:
        """Evaluate the logit that would have been served where each sample was shown; then the stackers learn."""
        for task, logits in ((Task.CLICK, scored.click), (Task.PURCHASE, scored.purchase)):
            places = np.array([i for i, s in enumerate(weighted.samples) if s.task is task], dtype=np.intp)
            if not len(places):
                continue
            encoder = invert(logits.detach().double().numpy()[places], weighted.exponent, weighted.prior[task])
            memory = weighted.memory_logit_at_position[places]
            label = np.array([weighted.samples[i].label for i in places], dtype=np.float64)
            first = np.array([weighted.samples[i].copy_kind is CopyKind.FIRST for i in places])
            served = self.stackers[task].get(encoder, memory)
            self.evaluations[task].update(served[first], label[first], prior=weighted.prior[task])
            self.stackers[task].learn(encoder, memory, label, weighted.law[places])

    def _descend(self, weighted: WeightedBatch, scored: PairLogits) -> tuple[str, float, float]:
        """One AdamW step on L; a loss or gradient that is not finite moves nothing."""
        samples = weighted.samples
        a, b = torch.from_numpy(weighted.a), torch.from_numpy(weighted.b)
        click = [i for i, s in enumerate(samples) if s.task is Task.CLICK]
        purchase = [i for i, s in enumerate(samples) if s.task is Task.PURCHASE]
        seen = torch.from_numpy(weighted.seen).float()
        if self.config.loss == "listwise":
            total = listwise(scored.click[click], a[click], seen[click], [samples[i].list_id for i in click])
        else:
            total = pointwise(scored.click[click], a[click], b[click], seen[click])
        loss = (total + pointwise(scored.purchase[purchase], a[purchase], b[purchase], seen[purchase])) / len(samples)
        self._optimizer.zero_grad(set_to_none=False)
        loss.backward()  # type: ignore[no-untyped-call]
        moving = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(moving, self.config.max_gradient_norm))
        if not (math.isfinite(norm) and math.isfinite(float(loss.detach()))):
            return "nonfinite", float(loss.detach()), norm
        self._optimizer.step()
        with torch.no_grad():
            self.ranker.purchase_scale.clamp_(min=0.0)  # never turn round the encoder's order under a query that was never seen
            # L2-SP (Li et al., ICML 2018), decoupled from the gradient as AdamW's decay is: a memory of 1 / (lr pull) steps
            for parameter, start in zip(self.ranker.encoder.trained(), self._start, strict=True):
                parameter.lerp_(start, min(1.0, self.config.lr * self.config.pull))
        return "ok", float(loss.detach()), norm

    def _count(self, weighted: WeightedBatch, scored: PairLogits) -> None:
        """Give each query's residual its weighted clicks and exposures of this step."""
        samples = weighted.samples
        per_query: dict[str, dict[str, list[float]]] = {}
        for i, s in enumerate(samples):
            if s.task is not Task.CLICK:
                continue
            row = per_query.setdefault(s.query, {}).setdefault(s.item_id or s.text, [i, 0.0, 0.0])
            weight = float(weighted.law[i])
            row[1] += weight * s.label
            row[2] += weighted.seen[i] if s.copy_kind is CopyKind.FIRST else 0.0
        vectors = scored.items.detach().numpy()
        base = invert(
            scored.base.detach().double().numpy(), weighted.exponent, weighted.prior.get(Task.CLICK, self.weigher.prior(Task.CLICK))
        )
        for query, items in per_query.items():
            rows = [int(row[0]) for row in items.values()]
            self.ranker.residual.learn(
                query, list(items), vectors[rows], base[rows], [row[1] for row in items.values()], [row[2] for row in items.values()]
            )

    def evaluation(self) -> dict[str, float]:
        """What a version's manifest says of its quality: the latest part of the stream, per task, scored before it was trained on."""
        return {f"{task}_{name}": value for task, own in self.evaluations.items() for name, value in own.latest().items()}

    def files(self) -> dict[str, bytes]:
        """Everything of a version but ingest's part: a Hugging Face folder, our heads and estimators, and ``training/``."""
        ranker = self.ranker
        queries, vectors = ranker.residual.vectors()
        counts, _ = ranker.residual.snapshot()
        heads = {name: p.detach().cpu() for name, p in ranker.heads().items()}
        stackers = {task.value: own.snapshot() for task, own in self.stackers.items()}
        evaluations = {task.value: own.snapshot() for task, own in self.evaluations.items()}
        progress = _Progress(step=self.step_number, num_samples=self.num_samples, trained=self.trained)
        return {
            **self._static,
            "model.safetensors": self._model_bytes(),
            "heads.json": msgspec.json.encode({"format": FORMAT, "weighting": self.weigher.config, **ranker.description()}, order="sorted"),
            "heads.safetensors": blobs.tensors_to_bytes(heads),
            "residual.safetensors": blobs.arrays_to_bytes({"vectors": vectors}),
            "residual.json": msgspec.json.encode(queries),
            "estimator.msgpack": self.weigher.snapshot(),
            "stackers.msgpack": msgspec.msgpack.encode(stackers, order="sorted"),
            "training/optimizer.safetensors": blobs.tensors_to_bytes(self._optimizer_tensors()),
            "training/residual.msgpack": counts,
            "training/evaluation.msgpack": msgspec.msgpack.encode(evaluations, order="sorted"),
            "training/progress.json": msgspec.json.encode(progress, order="sorted"),
        }

    def restore(self, read: Callable[[str], bytes]) -> None:
        """Resume after the step that the files were taken behind; `read` gives a file by its name."""
        ranker = self.ranker
        ranker.encoder.model.load_state_dict(blobs.tensors_from_bytes(read("model.safetensors")))
        tensors = blobs.tensors_from_bytes(read("heads.safetensors"))
        with torch.no_grad():
            for name, parameter in ranker.heads().items():
                parameter.copy_(tensors[name])
        ranker.residual.restore(read("training/residual.msgpack"), blobs.arrays_from_bytes(read("residual.safetensors"))["vectors"])
        self.weigher.restore(read("estimator.msgpack"))
        for owners, name in ((self.stackers, "stackers.msgpack"), (self.evaluations, "training/evaluation.msgpack")):
            kept: Mapping[str, bytes] = msgspec.msgpack.decode(read(name))
            for task, own in owners.items():
                own.restore(kept[task.value])
        self._restore_optimizer(blobs.tensors_from_bytes(read("training/optimizer.safetensors")))
        progress = msgspec.json.decode(read("training/progress.json"), type=_Progress)
        self.step_number, self.num_samples, self.trained = progress.step, progress.num_samples, progress.trained

    def _model_bytes(self) -> bytes:
        if self.ranker.encoder.trained():
            return blobs.tensors_to_bytes({name: t.detach().cpu() for name, t in self.ranker.encoder.model.state_dict().items()})
        if "model.safetensors" not in self._static:
            self._static["model.safetensors"] = blobs.tensors_to_bytes(dict(self.ranker.encoder.model.state_dict()))
        return self._static["model.safetensors"]

    def _named(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.ranker.named_parameters() if p.requires_grad}

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        state = self._optimizer.state
        named = {name: p for name, p in self._named().items() if p in state}
        return {f"{name}|{key}": state[p][key].detach().cpu() for name, p in sorted(named.items()) for key in sorted(state[p])}

    def _restore_optimizer(self, tensors: Mapping[str, torch.Tensor]) -> None:
        named = self._named()
        self._optimizer.state.clear()
        for key, tensor in tensors.items():
            name, _, field = key.partition("|")
            parameter = named[name]
            self._optimizer.state[parameter][field] = tensor.clone() if field == "step" else tensor.to(parameter.device).clone()


def _counted(trained: tuple[int, int], samples: Sequence[Sample]) -> tuple[int, int]:
    """Number and digest with these samples added: the same for any batching of the same log."""
    number, sum64 = trained
    hashes = (int.from_bytes(blake2b(s.sample_id.encode(), digest_size=8).digest(), "little") for s in samples)
    return number + len(samples), (sum64 + sum(hashes)) % (1 << 64)


def _finite(samples: Sequence[Sample], scored: PairLogits) -> bool:
    """Whether every sample's logit of its own task is a number."""
    click = torch.tensor([s.task is Task.CLICK for s in samples])
    return bool(torch.isfinite(torch.where(click, scored.click, scored.purchase)).all())


def _hugging_face_files(model: Any, tokenizer: Any) -> dict[str, bytes]:
    """The parts of a Hugging Face folder that never change: configuration and tokenizer."""
    raw = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return {
        "config.json": model.config.to_json_string().encode(),
        "tokenizer.json": tokenizer.backend_tokenizer.to_str().encode(),
        "tokenizer_config.json": msgspec.json.encode({**raw, **special}, order="sorted"),
    }


def cpu_capability() -> str:
    """Return the instruction set that torch's kernels use; another one sums in another order."""
    return torch.backends.cpu.get_cpu_capability()
