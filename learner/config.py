"""How a model is trained and where it is kept: every setting of the learner, checked when it is made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from learner.residual import ResidualConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    """What is trained, and how.

    Attributes:
        model: minilm-l6 (carried by a package), minilm-l6:2 (its first two layers), random:2x128, a folder, or a Hugging Face name.
        tuning: which parameters move: full (all), top:N (the last N layers and all that is ours), frozen (only what is ours).
        interaction: bi_encoder (query and item encoded apart) or cross_encoder (read together).
        loss: pointwise (each sample) or listwise (the candidates of an exposure against each other).
        lr: learning rate.
        weight_decay: decoupled weight decay.
        dropout: share of activations dropped in training.
        pull: strength of L2-SP, the pull towards the starting parameters: 1 / (lr pull) steps are remembered.
        batch: least number of samples of a step.
        max_tokens: longest text in tokens; longer ones are cut.
        device: torch device.
        threads: threads of torch.
        seed: of every random number.
        publish_every_seconds: least time between two checkpoints.
        flush_seconds: longest wait of a sample for the rest of its batch.
        scale: of the cosine in the encoder's click logit; fixed, since the stacker learns how much that logit counts.
        head_lr: learning rate of biases and positions.
        max_gradient_norm: gradients longer than this are shortened to it.
        download: whether a name may be fetched from a model hub.
        residual: what recurring queries learn beyond their text.
    """

    model: str = "minilm-l6"
    tuning: str = "top:1"
    interaction: str = "bi_encoder"
    loss: str = "pointwise"
    lr: float = 1e-5
    weight_decay: float = 0.01
    dropout: float = 0.0
    pull: float = 100.0
    batch: int = 320
    max_tokens: int = 64
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    publish_every_seconds: float = 30.0
    flush_seconds: float = 1.0
    scale: float = 8.0
    head_lr: float = 1e-2
    max_gradient_norm: float = 1.0
    download: bool = False
    residual: ResidualConfig = field(default_factory=ResidualConfig)

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            ValueError: names key, value and expectation.
        """
        self._expect("model", bool(self.model), "the name of an encoder, such as minilm-l6")
        self._expect(
            "tuning",
            bool(re.fullmatch(r"full|frozen|top:[1-9]\d*", self.tuning)),
            "full, frozen or top:N with N >= 1",
        )
        self._expect(
            "interaction",
            self.interaction in ("bi_encoder", "cross_encoder"),
            "bi_encoder (once: towers) or cross_encoder (once: cross)",
        )
        self._expect("loss", self.loss in ("pointwise", "listwise"), "pointwise or listwise")
        self._expect("lr", 0 < self.lr < 1, "a number in (0, 1)")
        for key in ("scale", "head_lr", "max_gradient_norm"):
            self._expect(key, 0 < getattr(self, key) < float("inf"), "a number > 0")
        for key in ("weight_decay", "pull"):
            self._expect(key, 0 <= getattr(self, key) < float("inf"), "a number >= 0")
        self._expect("dropout", 0 <= self.dropout < 1, "a number in [0, 1)")
        for key in ("batch", "threads"):
            self._expect(key, getattr(self, key) >= 1, "a whole number >= 1")
        self._expect("max_tokens", self.max_tokens >= 4, "a whole number >= 4")
        self._expect("device", bool(self.device), "a torch device, such as cpu or cuda")
        self._expect("seed", self.seed >= 0, "a whole number >= 0")
        self._expect("flush_seconds", 0 <= self.flush_seconds < float("inf"), "a number >= 0")
        self._expect(
            "publish_every_seconds", 0 < self.publish_every_seconds < float("inf"), "a number > 0"
        )

    def _expect(self, key: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"learner.{key}: got {getattr(self, key)!r}, expected {expected}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """Where checkpoints are kept.

    Attributes:
        root: a folder on a local POSIX file system (link and fsync must work).
        keep: how many of the newest versions stay; those that an alias names stay anyhow.
    """

    root: Path = Path("/var/lib/steelyard")
    keep: int = 20

    def __post_init__(self) -> None:
        """Refuse to keep too little.

        Raises:
            ValueError: names key, value and expectation.
        """
        if self.keep < 5:
            raise ValueError(f"store.keep: got {self.keep!r}, expected a whole number >= 5")
