"""Settings of training and of the store."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from learner.losses.task_weights import TaskWeights
from learner.residual import ResidualConfig
from learner.training.budget import PrivacyConfig
from learner.training.rehearsal import RehearsalConfig
from weighting.constraints import (
    Count,
    NotNegative,
    NotNegativeInt,
    Positive,
    SettingError,
    Text,
    check,
)

_ON_DISK = {
    "batch_size": "batch",
    "logit_scale": "scale",
    "max_grad_norm": "max_gradient_norm",
}
IN_BATCH = "in_batch_softmax"
CROSS_ENCODER = "cross_encoder"
INTERACTION_ON_DISK = {"bi_encoder": "towers", CROSS_ENCODER: "cross"}
_YOUNGER = frozenset(
    {
        "max_step_tokens",
        "gradient_checkpointing",
        "compute_share",
        "precision",
        "label_smoothing",
        "task_weights",
        "rehearsal",
        "optimizer",
        "momentum",
        "schedule",
        "warm_up_samples",
        "adversarial_steps",
        "adversarial_radius",
        "pooling",
        "privacy",
    }
)
"""Settings that are left out of digests and versions at their defaults."""

Tuning = Annotated[
    str,
    Meta(
        pattern=r"^(full|frozen|top:[1-9][0-9]*|"
        r"(lora:([2-9]|[1-9][0-9]+)|ia3|prefix:[1-9][0-9]*)(@top:[1-9][0-9]*)?)$(?!\n)",
        extra={
            "expected": "full, frozen, top:N, lora:R, ia3 or prefix:N, the last three with or "
            "without @top:N, where N, R >= 1"
        },
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    """Model, loss and optimiser."""

    model: Annotated[
        Text,
        Meta(
            description="minilm-l6 (from a package), minilm-l6:2 (its first two layers), "
            "random:2x128, a folder or a Hugging Face name."
        ),
    ] = "minilm-l6"
    tuning: Annotated[
        Tuning,
        Meta(
            description="Trained part: full, top:N (last N layers), frozen (heads only), or an "
            "adapter: lora:R (rank R >= 2), ia3 or prefix:N (N learned keys and values before "
            "those of a text), of the last N layers alone with @top:N."
        ),
    ] = "top:1"
    interaction: Annotated[
        Literal["bi_encoder", "cross_encoder"],
        Meta(description="Encode query and item apart, or read them together."),
    ] = "bi_encoder"
    pooling: Annotated[
        Literal["auto", "mean", "cls", "max", "lasttoken"],
        Meta(
            description="Vector of a text from its tokens. auto: as the model's folder declares; "
            "if it does not, lasttoken for a decoder, else mean."
        ),
    ] = "auto"
    loss: Annotated[
        Literal["pointwise", "squared_error", "pairwise", "listwise", "in_batch_softmax"],
        Meta(
            description="Loss of clicks. Of each sample: pointwise (cross-entropy) or "
            "squared_error; of the candidates of an exposure: pairwise or listwise; of each click "
            "against clicks of other lists: in_batch_softmax, with logQ correction."
        ),
    ] = "listwise"
    label_smoothing: Annotated[
        NotNegative,
        Meta(
            lt=1,
            description="Share of each label that is what is expected without knowing the item.",
        ),
    ] = 0.0
    optimizer: Annotated[
        Literal["adamw", "sgd"],
        Meta(description="AdamW, or SGD with momentum, whose learning rates are another size."),
    ] = "adamw"
    momentum: Annotated[
        NotNegative, Meta(lt=1, description="Momentum of sgd, over steps of the reference size.")
    ] = 0.9
    schedule: Annotated[
        Literal["constant", "inverse_sqrt"],
        Meta(
            description="Learning rates after the warm-up: constant, or falling with the inverse "
            "square root of the samples, without an end."
        ),
    ] = "constant"
    warm_up_samples: Annotated[
        NotNegativeInt,
        Meta(description="Samples over which learning rates rise from 0; at least 1 to fall."),
    ] = 0
    lr: Annotated[Positive, Meta(lt=1, description="Learning rate.")] = 1e-4
    reference_batch_size: Annotated[
        Count,
        Meta(
            description="Samples of a step that learning rates and max_grad_norm are meant for; "
            "a step of others moves as far per sample."
        ),
    ] = 320
    weight_decay: Annotated[NotNegative, Meta(description="Decoupled weight decay.")] = 0.01
    dropout: Annotated[NotNegative, Meta(lt=1, description="Share of activations dropped.")] = 0.0
    adversarial_steps: Annotated[
        int,
        Meta(
            ge=0,
            le=10,
            description="Steps by which tokens are moved to do harm, for half of the gradient: 1 "
            "is FGM, more are PGD; each costs a pass.",
        ),
    ] = 0
    adversarial_radius: Annotated[
        Positive,
        Meta(le=1, description="Farthest that a token is moved, as a share of its length."),
    ] = 0.05
    l2_sp_samples: Annotated[
        NotNegative,
        Meta(
            description="L2-SP, the pull to the start: samples after which 1/e of a move is left; "
            "0: no pull."
        ),
    ] = 320_000.0
    batch_size: Annotated[Count, Meta(description="Least number of samples of a step.")] = 320
    compute_share: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="Largest share of the samples that the encoder is given; below 1, lists "
            "are drawn by what they can teach, and weighted back.",
        ),
    ] = 1.0
    max_step_tokens: Annotated[
        Count,
        Meta(description="Most tokens in memory at once; a larger step has several micro-batches."),
    ] = 32_768
    gradient_checkpointing: Annotated[
        bool,
        Meta(
            description="Keep no states of the layers for the backward pass, which calculates "
            "them again: less memory, a third more work."
        ),
    ] = False
    max_tokens: Annotated[
        int, Meta(ge=4, description="Longest text in tokens; longer ones are truncated.")
    ] = 64
    precision: Annotated[
        Literal["float32", "bfloat16"],
        Meta(
            description="Of the encoder's products; parameters stay float32 in training. bfloat16 "
            "is faster on processors with AVX512-BF16, slower on those without; meant for a GPU, "
            "where it has not been measured."
        ),
    ] = "float32"
    device: Annotated[Text, Meta(description="Torch device, such as cpu or cuda.")] = "cpu"
    # Others would divide arrays within a vector, whose rest is calculated by another function
    threads: Annotated[
        Literal[1, 2, 4, 8, 16, 32],
        Meta(description="Threads of torch, of the learner and under `up` of the server too."),
    ] = 1
    run_ahead: Annotated[
        bool,
        Meta(
            description="Read, join and weigh the next batch in a thread of its own while a step "
            "runs, and on a GPU, or with one thread, encode its texts as far as no "
            "training changes that, unless compute_share is below 1. For a GPU, or a machine with "
            "more cores than threads."
        ),
    ] = False
    seed: Annotated[NotNegativeInt, Meta(description="Seed of every random number.")] = 0
    publish_every_seconds: Annotated[
        Positive, Meta(description="Least time between two checkpoints.")
    ] = 30.0
    flush_seconds: Annotated[
        NotNegative, Meta(description="Longest wait of a sample for the rest of its batch.")
    ] = 1.0
    step_timeout_seconds: Annotated[
        Positive,
        Meta(description="A step that takes longer has hung: the process ends with code 75."),
    ] = 600.0
    logit_scale: Annotated[
        Positive,
        Meta(
            description="Factor of the cosine in the click logit; fixed: the stacker rescales it."
        ),
    ] = 8.0
    head_lr: Annotated[
        Positive, Meta(description="Learning rate of biases and position effects.")
    ] = 1e-2
    max_grad_norm: Annotated[
        Positive, Meta(description="Norm to which longer gradients are clipped.")
    ] = 1.0
    download: Annotated[
        bool, Meta(description="Allow fetching a named model from a model hub.")
    ] = False
    residual: ResidualConfig = field(default_factory=ResidualConfig)
    task_weights: TaskWeights = field(default_factory=TaskWeights)
    rehearsal: RehearsalConfig = field(default_factory=RehearsalConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "learner")
        if self.loss == IN_BATCH:
            if self.interaction == CROSS_ENCODER:
                self._refuse(
                    "loss", "pointwise, squared_error, pairwise or listwise", "interaction"
                )
            if self.label_smoothing:
                self._refuse("label_smoothing", "0", "loss")
        if self.adversarial_steps and self.tuning == "frozen":
            self._refuse("adversarial_steps", "0", "tuning")
        if self.adversarial_steps and self.gradient_checkpointing:
            self._refuse("gradient_checkpointing", "false", "adversarial_steps")
        if self.rehearsal.size_bytes and self.tuning == "frozen":
            expected = "one that moves the encoder, or learner.rehearsal.size: 0B"
            raise SettingError("learner", "tuning", self.tuning, expected, None)
        if self.schedule == "inverse_sqrt" and not self.warm_up_samples:
            self._refuse("warm_up_samples", "a whole number >= 1", "schedule")
        if self.privacy.enabled:
            self._check_privacy()

    def _check_privacy(self) -> None:
        """Refuse what lets a list act on the gradient of another one."""
        bound = ("privacy.noise_multiplier", self.privacy.noise_multiplier)
        if self.loss == IN_BATCH:
            expected = "pointwise, squared_error, pairwise or listwise with"
            raise SettingError("learner", "loss", self.loss, expected, bound)
        if self.compute_share < 1:
            raise SettingError("learner", "compute_share", self.compute_share, "1 with", bound)
        if size := self.rehearsal.size_bytes:
            raise SettingError("learner", "rehearsal.size_bytes", size, "0 with", bound)

    def _refuse(self, name: str, expected: str, other: str) -> None:
        """Refuse a field's value for what another one is."""
        value, bound = getattr(self, name), (other, getattr(self, other))
        raise SettingError("learner", name, value, f"{expected} with", bound)

    def on_disk(self) -> dict[str, Any]:
        """Return the settings under the names that digests and versions use for them.

        A setting younger than those names is left out at its default, so that a renamed or a new
        setting does not make another configuration of the same one.
        """
        plain = {_ON_DISK.get(name, name): value for name, value in asdict(self).items()}
        plain["task_weights"] = self.task_weights.on_disk()
        plain["interaction"] = INTERACTION_ON_DISK[self.interaction]
        for entry in fields(self):
            default = entry.default
            if entry.default_factory is not MISSING:
                default = entry.default_factory()
            if entry.name in _YOUNGER and getattr(self, entry.name) == default:
                del plain[entry.name]
        for name in ("step_timeout_seconds", "run_ahead"):  # they decide nothing that is learned
            del plain[name]
        return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Folder and retention of checkpoints."""

    root: Annotated[
        Path, Meta(description="Folder on a local POSIX file system (link and fsync must work).")
    ] = Path("/var/lib/steelyard")
    keep: Annotated[
        int, Meta(ge=5, description="Newest versions to keep, besides those that an alias names.")
    ] = 20

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "store")
