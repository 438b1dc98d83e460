"""Components of a trainer, built from its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from learner import version_layout as layout
from learner.config import CROSS_ENCODER, LearnerConfig
from learner.encoder.encoder import Encoder
from learner.encoder.fit import check_fit
from learner.encoder.head import load_head
from learner.encoder.load import load_pretrained
from learner.encoder.token_types import mark_pairs
from learner.encoder.tokens import Texts
from learner.errors import PrivacyUnsupported
from learner.losses.loss import Loss
from learner.losses.registry import losses_of
from learner.parts.registry import make_parts
from learner.process_group import ProcessGroup
from learner.ranker import Ranker
from learner.ranker_files import RankerFiles
from learner.residual import QueryResidual
from learner.served import ServedScore
from learner.training.divergence import LossWatch
from learner.training.gradient import GradientPass
from learner.training.list_sampler import ListSampler
from learner.training.optimizer import Optimizer
from learner.training.prequential import Prequential
from learner.training.privacy import Privacy
from learner.training.rehearsal import Rehearsal
from weighting.tasks import TASKS, TaskName
from weighting.weigher import Weigher

_PROBE = ("", "red running shoes", "a waterproof jacket for hiking in the rain, dark green")
"""Texts on which a tuning must agree with the encoder itself."""


@dataclass(slots=True, kw_only=True, eq=False)
class Components:
    """All that steps change, and what changes it.

    Attributes:
        process_group: the processes that take each step together.
        weigher: the estimators.
        ranker: the model.
        served: the score that is served.
        files: of the ranker.
        prequential: evaluation, and what the served score learns.
        optimizer: of the parameters that move.
        privacy: noise on the gradients; None without `learner.privacy`.
        gradient: the pass through the model.
        sampler: which lists the encoder is given.
        rehearsal: past lists; None where none are kept.
        losses: recent ones.
    """

    process_group: ProcessGroup
    weigher: Weigher
    ranker: Ranker
    served: ServedScore
    files: RankerFiles
    prequential: Prequential
    optimizer: Optimizer
    privacy: Privacy | None
    gradient: GradientPass
    sampler: ListSampler
    rehearsal: Rehearsal | None
    losses: LossWatch = field(default_factory=LossWatch)


def assemble(
    config: LearnerConfig,
    weigher: Weigher,
    process_group: ProcessGroup,
    *,
    scoring: Callable[[int], None],
    secret: Callable[[int], bytes],
) -> Components:
    """Load the pretrained encoder and build what trains it; as `Trainer` says."""
    check_fit(config)
    ranker, hugging_face = _ranker(config, weigher.exponent)
    parts = make_parts(width=ranker.encoder.width, logit_scale=config.logit_scale)
    served = ServedScore(weigher.invert, parts, weigher.config.initial())
    files = RankerFiles(ranker, hugging_face, model=config.model)
    optimizer = Optimizer(config, ranker, process_group)
    privacy = _privacy(config, process_group, secret)
    losses = losses_of(TASKS, configured=config.loss)
    return Components(
        process_group=process_group,
        weigher=weigher,
        ranker=ranker,
        served=served,
        files=files,
        prequential=Prequential(),
        optimizer=optimizer,
        privacy=privacy,
        gradient=GradientPass(config, ranker, optimizer, process_group, scoring, privacy),
        sampler=ListSampler(
            config.compute_share,
            seed=config.seed,
            whole_lists={t: loss.whole_lists for t, loss in losses.items()},
        ),
        rehearsal=_rehearsal(config, losses),
    )


def _ranker(config: LearnerConfig, exponent: float) -> tuple[Ranker, dict[str, bytes]]:
    """Return the pretrained model, and its configuration and tokenizer as files."""
    pretrained = load_pretrained(config.model, pooling=config.pooling, download=config.download)
    head = None
    if config.interaction == CROSS_ENCODER:
        model, tokenizer, _ = pretrained
        head = load_head(config.model, model, tokenizer, download=config.download)
    if head is not None:
        mark_pairs(pretrained.model, head.separator)
    encoder = Encoder(
        pretrained.model.to(config.device),
        tuning=config.tuning,
        pooling=pretrained.pooling,
        precision=config.precision,
        dropout=config.dropout,
        checkpointing=config.gradient_checkpointing,
        seed=config.seed,
    )
    hugging_face = layout.hugging_face_files(pretrained.model, pretrained.tokenizer)
    texts = Texts(pretrained.tokenizer, max_tokens=config.max_tokens)
    encoder.check_tuning([texts.ids(text) for text in _PROBE])
    ranker = Ranker(
        encoder,
        texts,
        QueryResidual(encoder.width, config.residual),
        interaction=config.interaction,
        logit_scale=config.logit_scale,
        exponent=exponent,
        head=head,
        value=config.task_weights.value > 0,
    )
    return ranker, hugging_face


def _privacy(
    config: LearnerConfig, process_group: ProcessGroup, secret: Callable[[int], bytes]
) -> Privacy | None:
    """Return what `config.privacy` asks for; None if it is off."""
    if not config.privacy.enabled:
        return None
    if process_group.world > 1:
        raise PrivacyUnsupported(
            f"learner.privacy.noise_multiplier: got {config.privacy.noise_multiplier:g} with "
            f"{process_group.world} ranks, which would each have noise of their own. Start one "
            "learner without torchrun, or set it to 0."
        )
    return Privacy(config.privacy, secret)


def _rehearsal(config: LearnerConfig, losses: Mapping[TaskName, Loss]) -> Rehearsal | None:
    """Return the memory of past lists that `config.rehearsal` asks for; None if it is off."""
    if not config.rehearsal.size_bytes:
        return None
    return Rehearsal(
        config.rehearsal, seed=config.seed, losses=losses, task_weight=config.task_weights.of
    )
