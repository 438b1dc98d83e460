"""Files of a ranker in a version: what moves is copied between steps, and encoded later.

What never moves is encoded once. Of an adapter that is the base, a file as it was loaded, and the
adapter has files of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from learner import version_layout as layout
from learner.errors import ModelUnsupported, TuningUnsupported
from learner.ranker import Ranker
from learner.store import blobs
from learner.tuning import adapters

_CONFIG = "config.json"
_SIZES = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
"""Of a configuration: where they differ, parameters cannot be those of the same encoder."""


class RankerFiles:
    """Encoder and heads of a ranker as files, and whether a version's are the same kind.

    Attributes:
        fixed: files that are the same in every version: configuration, tokenizer, starting values.
    """

    def __init__(self, ranker: Ranker, hugging_face: Mapping[str, bytes], *, model: str) -> None:
        """Take a ranker as it starts.

        Args:
            ranker: whose starting values are those of now.
            hugging_face: configuration and tokenizer, as files.
            model: name of the encoder, for errors.
        """
        self._ranker = ranker
        self._model = model
        self.fixed = {
            **hugging_face,
            layout.START: layout.model_file(ranker.starting.tensors()),
        }
        self._frozen: bytes | None = None
        self._base: str | None = None  # sha256 of the file beside an adapter

    def copied(self) -> tuple[Callable[[], dict[str, bytes]], dict[str, Tensor]]:
        """Copy what the next step changes.

        Returns:
            A function that encodes the files of the encoder, in any thread; and the heads.
        """
        moving = self._moving_names()
        model = {
            name: copy_of(parameter) if name in moving else parameter.detach()
            for name, parameter in self._encoder_state().items()
        }
        heads = {name: copy_of(p) for name, p in self._ranker.head_tensors().items()}
        return (lambda: self._encoded(model, moving)), heads

    def settings(self, written: Iterable[str], weighting: dict[str, Any]) -> layout.ScoringSettings:
        """Return how to score with the files that `copied` wrote.

        Args:
            written: their names.
            weighting: settings of the weigher, as on disk.
        """
        ranker, encoder = self._ranker, self._ranker.encoder
        return layout.ScoringSettings(
            weighting=weighting,
            interaction=ranker.interaction,
            max_tokens=ranker.texts.max_tokens,
            pooling=encoder.pooling,
            prefix=encoder.prefix_digest(),
            logit_scale=ranker.logit_scale,
            tuning=encoder.tuning.name,
            precision=encoder.precision,
            model_files=tuple(name for name in written if name.endswith(".safetensors")),
            head=self._head_settings(),
        )

    def adapter(self) -> Mapping[str, str | int]:
        """Describe the adapter of the versions, nothing where the encoder has none."""
        if self._base is None:
            return {}
        encoder = self._ranker.encoder
        number = sum(parameter.numel() for parameter in encoder.trainable_parameters())
        return {"tuning": encoder.tuning.name, "parameters": number, "base_sha256": self._base}

    def head_kind(self) -> str:
        """Name the family of a fine-tuned head, empty where there is none."""
        return self._ranker.head.kind if self._ranker.head is not None else ""

    def check(self, settings: layout.ScoringSettings, config: bytes) -> None:
        """Refuse to go on from a version of another kind.

        Args:
            settings: of the version.
            config: of its encoder, as a file.

        Raises:
            Corrupt: the file is none.
            ModelUnsupported: its encoder has another size, or its interaction, pooling or
                fine-tuned head is another.
            TuningUnsupported: it was learned under another tuning.
        """
        encoder = self._ranker.encoder
        if (found := settings.tuning) != encoder.tuning.name:
            raise TuningUnsupported(
                f"learner.tuning: got {encoder.tuning.name}, the version to go on from was "
                f"learned with {found}. Set learner.tuning: {found}, or name a new store.root."
            )
        if (found := settings.pooling) != encoder.pooling:
            raise ModelUnsupported(
                f"learner.pooling: got {encoder.pooling}, the version to go on from was "
                f"learned with {found}. Set learner.pooling: {found}, or name a new store.root."
            )
        self._check_size(config)
        ours, theirs = self._head_settings(), settings.head
        if ours != theirs:
            raise ModelUnsupported(
                f"learner.model: {self._model!r} under {self._ranker.interaction} has "
                f"{_said(ours)}, the version to go on from was learned with {_said(theirs)}. Set "
                "learner.model and learner.interaction as they were, or name a new store.root."
            )
        if (found := settings.interaction) != self._ranker.interaction:
            raise ModelUnsupported(
                f"learner.interaction: got {self._ranker.interaction}, the version to go on from "
                f"was learned with {found}. Set learner.interaction: {found}, or name a new "
                "store.root."
            )

    def _check_size(self, config: bytes) -> None:
        with layout.reading(_CONFIG):
            before = msgspec.json.decode(config, type=dict[str, Any])
        now = self._ranker.encoder.model.config
        for key in _SIZES:
            ours, theirs = getattr(now, key, None), before.get(key)
            if ours is not None and theirs is not None and ours != theirs:
                raise ModelUnsupported(
                    f"learner.model: {self._model!r} has {key} {ours}, the version to go on from "
                    f"was learned with {theirs}. Set learner.model as it was, or name a new "
                    "store.root."
                )

    def _encoded(self, model: Mapping[str, Tensor], names: set[str]) -> dict[str, bytes]:
        """Encode the encoder; what is not among `names`, which move, is a file encoded once."""
        moving = {name: tensor for name, tensor in model.items() if name in names}
        frozen = {name: tensor for name, tensor in model.items() if name not in names}
        if not frozen:
            return {layout.MODEL: layout.model_file(moving)}
        if self._frozen is None:
            self._frozen = layout.model_file(frozen)
        if not moving:
            return {layout.MODEL: self._frozen}
        if adapters.has_adapter(self._ranker.encoder.model):
            if self._base is None:
                self._base = blobs.digest(self._frozen).sha256
            return {
                layout.MODEL: self._frozen,
                layout.ADAPTER: layout.model_file(moving),
                layout.ADAPTER_CONFIG: adapters.config_file(
                    self._ranker.encoder.model, base=self._base
                ),
            }
        return {
            layout.FROZEN: self._frozen,
            layout.MOVING: layout.model_file(moving),
            layout.MODEL_INDEX: layout.model_index(frozen, moving),
        }

    def _encoder_state(self) -> dict[str, nn.Parameter]:
        """Return the encoder's parameters by their names on disk."""
        own = self._ranker.encoder.model.state_dict(keep_vars=True)
        return {adapters.name_on_disk(name): parameter for name, parameter in own.items()}

    def _moving_names(self) -> set[str]:
        """Return the names on disk of the encoder's parameters that training moves."""
        moving = {id(p) for p in self._ranker.encoder.trainable_parameters()}
        named = self._encoder_state()
        return {name for name, parameter in named.items() if id(parameter) in moving}

    def _head_settings(self) -> layout.HeadSettings | msgspec.UnsetType:
        head = self._ranker.head
        if head is None:
            return msgspec.UNSET
        return layout.HeadSettings(kind=head.kind, separator=head.separator)


def copy_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return its values in host memory of their own."""
    return tensor.detach().to("cpu", copy=True)


def _said(head: layout.HeadSettings | msgspec.UnsetType) -> str:
    if not head:
        return "no fine-tuned head"
    divided = "" if head.separator is None else f", pairs divided by token {head.separator}"
    return f"a fine-tuned head ({head.kind}{divided})"
