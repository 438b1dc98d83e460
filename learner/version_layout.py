"""Files of a version: the one place that names, writes and reads them.

```
config.json  tokenizer.json  tokenizer_config.json  model.safetensors    a Hugging Face folder;
                     where a part of the encoder is frozen, its parameters are a shard of their own
adapter_config.json  adapter_model.safetensors    an adapter, as peft writes it; the encoder beside
                     it, in model.safetensors, is its base and never moves
heads.json           how to score: `ScoringSettings`
heads.safetensors    heads of the tasks, the head of a fine-tuned cross-encoder, and the value head
residual.json        queries that have a residual
residual.safetensors residuals, in the same order
estimator.msgpack    estimators of the weigher
stackers.msgpack     stackers of the tasks
parts.msgpack        parts of the served score
start.safetensors    what training moves of the encoder, as it started
README.md            model card, with the evaluation
training/            what only the learner reads
    residual.msgpack        counts behind the residuals
    evaluation.msgpack      prequential evaluation of the tasks
    shown.msgpack           ranks of clicked items, lists per query: for the evaluation; frequencies
                            of clicked items, where the loss takes negatives from other lists; past
                            lists, where they are rehearsed
    optimizer.safetensors   state of the optimizer
    progress.json           `Progress`
    privacy.msgpack         secret of the noise, contributions of lists; with `learner.privacy`
    NAME.msgpack            ingest's part, named by ingest
```
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from learner.config import INTERACTION_ON_DISK
from learner.errors import Corrupt, LearnerError
from learner.store import blobs
from learner.store.manifest import TRAINING
from learner.training.budget import Budget
from learner.training.divergence import LossWatch
from weighting.errors import WeightingError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

FORMAT = 3
FLOAT32 = "float32"
MODEL = "model.safetensors"
FROZEN, MOVING = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
MODEL_INDEX = "model.safetensors.index.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
HEADS_SETTINGS = "heads.json"
HEADS = "heads.safetensors"
QUERIES = "residual.json"
RESIDUALS = "residual.safetensors"
ESTIMATORS = "estimator.msgpack"
STACKERS = "stackers.msgpack"
PARTS = "parts.msgpack"
START = "start.safetensors"
RESIDUAL_COUNTS = "training/residual.msgpack"
EVALUATIONS = "training/evaluation.msgpack"
SHOWN = "training/shown.msgpack"
CARD = "README.md"
OPTIMIZER = "training/optimizer.safetensors"
PROGRESS = "training/progress.json"
PRIVACY = "training/privacy.msgpack"
_LONGEST = 200  # characters of another library's error

_INTERACTION = {written: name for name, written in INTERACTION_ON_DISK.items()}


class HeadSettings(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Head that a fine-tuned cross-encoder brought.

    Attributes:
        kind: family of its model.
        separator: token id that divides a pair, where the model has types of tokens.
    """

    kind: str
    separator: int | None = None


class ScoringSettings(msgspec.Struct, kw_only=True):
    """Settings that a version needs, beside tensors, to score as its learner does.

    Attributes:
        format: of the version.
        weighting: settings of the weigher, as `WeigherConfig.on_disk` writes them.
        interaction: ``bi_encoder`` or ``cross_encoder``.
        max_tokens: longest text in tokens.
        pooling: of the encoder.
        prefix: digest of the frozen part of the encoder; for information, nothing relies on it.
        logit_scale: of the cosine.
        tuning: of the encoder.
        model_files: files that hold the encoder's parameters.
        precision: of the encoder's products, left out where it is float32.
        head: of a fine-tuned cross-encoder, left out where it brought none.
    """

    format: int = FORMAT
    weighting: Any
    interaction: str
    max_tokens: int
    pooling: str
    prefix: str
    logit_scale: float = msgspec.field(name="scale")
    tuning: str
    model_files: tuple[str, ...] = (MODEL,)
    precision: str | msgspec.UnsetType = msgspec.UNSET
    head: HeadSettings | msgspec.UnsetType = msgspec.UNSET


class Progress(msgspec.Struct, kw_only=True):
    """Progress of training; a key missing in an older checkpoint has its start value.

    Attributes:
        format: of the version.
        step: number of steps taken.
        num_samples: in all steps.
        trained: number of samples trained on, and the sum of their hashes.
        num_micro_batches: of a step.
        losses: recent losses.
        sampler_log_level: of the lists that the encoder is given.
        privacy: budget of each list, where there is noise on their gradients.
    """

    format: int = FORMAT
    step: int
    num_samples: int
    trained: tuple[int, int] = (0, 0)
    num_micro_batches: int = 1
    losses: LossWatch = msgspec.field(default_factory=LossWatch)
    sampler_log_level: float = 0.0
    privacy: Budget | msgspec.UnsetType = msgspec.UNSET

    def budget(self) -> Budget | None:
        """Return the privacy budget, None if there is none."""
        return None if self.privacy is msgspec.UNSET else self.privacy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoringState:
    """Everything that scoring needs beside the encoder.

    Attributes:
        settings: how to score.
        heads: tensors of the heads.
        queries: those that have a residual.
        residuals: (Q, D) in the order of `queries`.
        estimators: snapshot of the weigher.
        stackers: snapshot of each task's stacker.
        parts: snapshot of each part of the served score.
    """

    settings: ScoringSettings
    heads: Mapping[str, torch.Tensor]
    queries: Sequence[str]
    residuals: NDArray[np.float32]
    estimators: bytes
    stackers: Mapping[str, bytes]
    parts: Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingState:
    """Everything that only training needs.

    Attributes:
        residual_counts: snapshot of the counts behind the residuals.
        evaluations: snapshot of each task's evaluation.
        clicked: snapshot of the ranks of clicked items.
        frequency: snapshot of the lists per query.
        items: snapshot of the frequencies of clicked items; empty where the loss asks for none.
        rehearsal: snapshot of the past lists; empty where none are kept.
        optimizer: state tensors of the optimizer.
        progress: how far training has come.
        privacy: snapshot of noise and contributions; empty without `learner.privacy`.
    """

    residual_counts: bytes
    evaluations: Mapping[str, bytes]
    clicked: bytes
    frequency: bytes
    items: bytes
    rehearsal: bytes
    optimizer: Mapping[str, torch.Tensor]
    progress: Progress
    privacy: bytes = b""


Read = Callable[[str], bytes]
"""Path inside a version -> bytes."""


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Name the file whose content cannot be used, though its digest is right.

    Such a file was written by a faulty program, or forged together with its manifest.

    Args:
        path: of the file inside the version.

    Raises:
        Corrupt: it is not what this module writes there, or does not belong to the other files.
    """
    try:
        yield
    except (LearnerError, WeightingError):  # they say what to do
        raise
    except (
        msgspec.MsgspecError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        found = what if len(what) <= _LONGEST else f"{what[:_LONGEST]}..."
        raise Corrupt(path, expected="what a learner writes there", found=found) from error


def ingest_path(name: str) -> str:
    """Return the path of a part of ingest's state.

    >>> ingest_path("part-0")
    'training/part-0.msgpack'
    """
    return f"{TRAINING}{name}.msgpack"


def ingest_paths(files: Iterable[str]) -> dict[str, str]:
    """Return the paths among `files` that are parts of ingest's state, by name of the part.

    >>> ingest_paths(["training/rank-0.msgpack", "training/residual.msgpack", "config.json"])
    {'rank-0': 'training/rank-0.msgpack'}
    """
    begins = f"{TRAINING}part-", f"{TRAINING}rank-"
    found = [path for path in files if path.startswith(begins)]
    return {path.removeprefix(TRAINING).removesuffix(".msgpack"): path for path in found}


def scoring_files(state: ScoringState) -> dict[str, bytes]:
    """Encode what scoring needs beside the encoder."""
    interaction = INTERACTION_ON_DISK[state.settings.interaction]
    settings = msgspec.structs.replace(state.settings, interaction=interaction)
    if settings.precision == FLOAT32:
        settings.precision = msgspec.UNSET
    return {
        HEADS_SETTINGS: msgspec.json.encode(settings, order="sorted"),
        HEADS: blobs.tensors_to_bytes(state.heads),
        QUERIES: msgspec.json.encode(state.queries),
        RESIDUALS: blobs.arrays_to_bytes({"vectors": state.residuals}),
        ESTIMATORS: state.estimators,
        STACKERS: msgspec.msgpack.encode(state.stackers, order="sorted"),
        PARTS: msgspec.msgpack.encode(state.parts, order="sorted"),
    }


def training_files(state: TrainingState) -> dict[str, bytes]:
    """Encode what only training needs."""
    shown = [state.clicked, state.frequency, state.items, state.rehearsal]
    while len(shown) > 2 and not shown[-1]:
        shown.pop()
    files = {
        RESIDUAL_COUNTS: state.residual_counts,
        EVALUATIONS: msgspec.msgpack.encode(state.evaluations, order="sorted"),
        SHOWN: msgspec.msgpack.encode(shown),
        OPTIMIZER: blobs.tensors_to_bytes(state.optimizer),
        PROGRESS: msgspec.json.encode(state.progress, order="sorted"),
    }
    return files | ({PRIVACY: state.privacy} if state.privacy else {})


def hugging_face_files(model: Any, tokenizer: Any) -> dict[str, bytes]:
    """Encode configuration and tokenizer of an encoder, which never change."""
    raw = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return {
        "config.json": model.config.to_json_string().encode(),
        "tokenizer.json": tokenizer.backend_tokenizer.to_str().encode(),
        "tokenizer_config.json": msgspec.json.encode({**raw, **special}, order="sorted"),
    }


def model_file(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Encode parameters of the encoder; those of a device are copied to the host."""
    return blobs.tensors_to_bytes({name: tensor.cpu() for name, tensor in tensors.items()})


def model_index(frozen: Mapping[str, torch.Tensor], moving: Mapping[str, torch.Tensor]) -> bytes:
    """Encode the index of a sharded encoder, as transformers reads it."""
    shard = {**dict.fromkeys(frozen, FROZEN), **dict.fromkeys(moving, MOVING)}
    num_bytes = sum(tensor.nbytes for part in (frozen, moving) for tensor in part.values())
    index = {"metadata": {"total_size": num_bytes}, "weight_map": shard}
    return msgspec.json.encode(index, order="sorted")


def fixed_files(files: Mapping[str, blobs.Digest]) -> dict[str, blobs.Digest]:
    """Return those of a version's files that hold what training never moves, with digests."""
    texts = ("config.json", "tokenizer.json", "tokenizer_config.json", ADAPTER_CONFIG)
    base = base_file(files)
    names = (*texts, HEADS_SETTINGS, START, *([base] if base else []))
    return {name: files[name] for name in names if name in files}


def base_file(files: Container[str]) -> str | None:
    """Return the name of the file whose parameters of the encoder never move, beside others.

    >>> base_file(["model.safetensors", "adapter_model.safetensors"])
    'model.safetensors'
    """
    if FROZEN in files:
        return FROZEN
    return MODEL if ADAPTER in files else None


def read_model_files(
    read: Read, *, moving_only: bool = False
) -> dict[str, dict[str, torch.Tensor]]:
    """Decode the encoder's parameters by file, on the host; those that never move, or without.

    Raises:
        Corrupt: a file is none of parameters.
    """
    with reading(HEADS_SETTINGS):
        settings = msgspec.json.decode(read(HEADS_SETTINGS), type=ScoringSettings)
    base = base_file(settings.model_files) if moving_only else None
    found = {}
    for name in settings.model_files:
        if name != base:
            with reading(name):
                found[name] = blobs.tensors_from_bytes(read(name))
    return found


def read_model(read: Read) -> dict[str, torch.Tensor]:
    """Decode the encoder's parameters, on the host."""
    return merged(read_model_files(read))


def merged(files: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the tensors of all files together."""
    return {name: tensor for own in files.values() for name, tensor in own.items()}


def read_start(read: Read) -> dict[str, torch.Tensor]:
    """Decode the starting values of what training moves of the encoder, on the host.

    Raises:
        Corrupt: the file is none of parameters.
    """
    with reading(START):
        return blobs.tensors_from_bytes(read(START))


def read_scoring(read: Read) -> ScoringState:
    """Decode what `scoring_files` wrote.

    Raises:
        Corrupt: the version is of another format, or a file is not what was written.
    """
    with reading(HEADS_SETTINGS):
        settings = msgspec.json.decode(read(HEADS_SETTINGS), type=ScoringSettings)
        if settings.format != FORMAT:
            expected, found = f"format {FORMAT}", f"format {settings.format}"
            raise Corrupt(HEADS_SETTINGS, expected=expected, found=found)
        settings.interaction = _INTERACTION[settings.interaction]
    with reading(HEADS):
        heads = blobs.tensors_from_bytes(read(HEADS))
    with reading(QUERIES):
        queries = msgspec.json.decode(read(QUERIES), type=list[str])
    with reading(RESIDUALS):
        arrays = blobs.arrays_from_bytes(read(RESIDUALS))
        residuals = arrays["vectors"]
        if len(arrays) > 1 or residuals.ndim != 2 or len(residuals) != len(queries):
            raise ValueError(f"{[*arrays]} {residuals.shape} of {len(queries)} queries")
    return ScoringState(
        settings=settings,
        heads=heads,
        queries=queries,
        residuals=residuals,
        estimators=read(ESTIMATORS),
        stackers=_snapshots(read, STACKERS),
        parts=_snapshots(read, PARTS),
    )


def read_training(read: Read) -> TrainingState:
    """Decode what `training_files` wrote.

    Raises:
        Corrupt: a file is not what was written.
    """
    with reading(SHOWN):
        parts = msgspec.msgpack.decode(read(SHOWN), type=list[bytes])
        clicked, frequency, items, rehearsal = [*parts, b"", b""][:4]
    with reading(PROGRESS):
        progress = msgspec.json.decode(read(PROGRESS), type=Progress)
    with reading(OPTIMIZER):
        optimizer = blobs.tensors_from_bytes(read(OPTIMIZER))
    return TrainingState(
        residual_counts=read(RESIDUAL_COUNTS),
        evaluations=_snapshots(read, EVALUATIONS),
        clicked=clicked,
        frequency=frequency,
        items=items,
        rehearsal=rehearsal,
        optimizer=optimizer,
        progress=progress,
        privacy=b"" if progress.budget() is None else read(PRIVACY),
    )


def _snapshots(read: Read, path: str) -> dict[str, bytes]:
    with reading(path):
        return msgspec.msgpack.decode(read(path), type=dict[str, bytes])
