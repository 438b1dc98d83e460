"""M(x): a Hugging Face encoder with our own pooling; texts in, unit vectors out.

Legend: N texts, D width.

Invariant: on a CPU with MKL a text's vector depends on nothing but its ids and the parameters, not
on what else is encoded in the same call (see `learner.arithmetic`). So nobody can tell whether a
frozen part's output was kept or calculated anew, and a learner that resumes with nothing kept goes
on with the same bits. On a GPU a vector may differ by rounding with its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from learner.encoder.prefix_cache import PrefixCache
from learner.errors import ModelUnsupported, TuningUnsupported
from learner.passes.device import device_of, moved
from learner.passes.flat_passes import Flat, fastest
from learner.passes.forward import Ids, Passes
from learner.passes.graph_passes import GraphPasses
from learner.passes.int8 import quantize
from learner.passes.packing import passes_for
from learner.passes.pooling import POOLINGS, first_state
from learner.passes.products import use_fastest
from learner.passes.served_layers import lay_out
from learner.tuning import registry
from learner.tuning.full import FullTuning
from learner.tuning.tuning import Tuning

_LEAST_COSINE = 0.99


class Encoder(nn.Module):
    """A Hugging Face encoder under a tuning, pooled and normalised by us."""

    def __init__(
        self,
        model: Any,
        *,
        tuning: str,
        pooling: str = "mean",
        cache: PrefixCache | None = None,
        passes: Passes | None = None,
        precision: str = "float32",
        dropout: float = 0.0,
        checkpointing: bool = False,
        seed: int = 0,
    ) -> None:
        """Take a model and freeze what its tuning leaves alone.

        Args:
            model: as transformers loads it.
            tuning: as in `LearnerConfig.tuning`; see `learner.tuning`.
            pooling: a key of `learner.passes.pooling.POOLINGS`.
            cache: outputs of the frozen part; one of its own by default.
            passes: over texts of different lengths; by default the best that the model allows.
            precision: of products, ``float32``, ``bfloat16``, or to serve on a CPU ``int8``, from
                `round_weights` on; vectors are float32 in each.
            dropout: share of activations dropped in training.
            checkpointing: keep no states for the backward pass, pass by pass.
            seed: of an adapter's first values.

        Raises:
            TuningUnsupported: the tuning is unknown, or does not fit the model.
        """
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.precision = precision
        self._checkpointing = checkpointing
        if passes is None:
            passes = passes_for(model.eval())
            if precision == "bfloat16" and not dropout:
                with self._lowered():
                    passes = fastest(passes, model, with_captures=not checkpointing)
        self.passes = passes
        with self._lowered():  # a prefix starts from passes of its own
            self.tuning = registry.named(tuning, model, POOLINGS[pooling], self.passes, seed=seed)
        use_fastest(model)  # what the tuning added too
        self.cache = PrefixCache() if cache is None else cache
        self.width = int(model.config.hidden_size)
        self._prefix_digest: str | None = None
        model.requires_grad_(False)
        for parameter in self.trainable_parameters():
            parameter.requires_grad_(True)
        set_dropout(model, dropout)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Device of the parameters and of the vectors."""
        return device_of(self.model)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that training moves."""
        return self.tuning.trainable_parameters()

    def check_tuning(self, texts: Sequence[Ids]) -> None:
        """Compare vectors under the tuning with those of the model in one pass.

        Raises:
            ModelUnsupported: the model does not run in this precision, or gives no vectors.
            TuningUnsupported: vectors differ by more than half precision explains.
        """
        whole = FullTuning(self.model, POOLINGS[self.pooling], self.passes)
        with torch.no_grad():
            try:
                ours = self(texts)
            except RuntimeError as error:
                if self.precision == "float32":
                    raise
                raise ModelUnsupported(
                    f"learner.precision: {type(self.model).__name__} does not run in "
                    f"{self.precision} ({error}); use float32"
                ) from error
            with self._lowered():
                own = torch.cat([whole.finish(whole.prefix([ids])) for ids in texts])
        if not bool((own.norm(dim=-1) > _LEAST_COSINE).all()):  # of unit vectors
            raise ModelUnsupported(
                f"learner.model: {type(self.model).__name__} gives vectors that are NaN or zero: "
                "its weights are damaged. Copy its folder again, or name another."
            )
        cosine = float((ours * own).sum(-1).min())
        if not cosine > _LEAST_COSINE:
            raise TuningUnsupported(
                f"learner.tuning: {self.tuning.name}: {type(self.model).__name__} gives other "
                f"vectors when it is cut there (cosine {cosine:.3f}); use full or frozen"
            )

    def round_weights(self) -> None:
        """Round weights to the precision of products and lay them out; nothing learns then.

        Vectors keep their bits under ``float32`` and ``bfloat16``: a pass would otherwise round or
        lay out all weights anew, which takes half the time of one short text. Under ``int8``
        products are of integers from here on. Graphs of another engine (`GraphPasses`) are made
        here. Call it again when parameters have changed.

        Raises:
            ModelUnsupported: processor or model do not allow ``int8``, or the engine the model.
        """
        if isinstance(self.passes, GraphPasses):
            self.passes.renew()
            for tuning in (self.tuning, self._first):
                self._encode(tuning, self.passes.examples())
        elif self.precision == "int8":
            quantize(self.model, self.passes)
        else:
            if self.precision == "bfloat16":
                for module in self.model.modules():
                    if isinstance(module, nn.Linear):
                        module.to(torch.bfloat16)
            lay_out(self.model, self.passes)

    @torch.inference_mode()
    def capture_ahead(self) -> None:
        """Capture the small passes of inference mode now, where passes are captured (`Captures`).

        Call when weights are where they stay. Else the first texts of a size would wait for it.
        """
        if isinstance(self.passes, Flat):
            for texts in self.passes.examples():
                self._encode(self.tuning, texts)

    @torch.no_grad()
    def _encode(self, tuning: Tuning, texts: Sequence[Ids]) -> None:
        """Encode texts in one pass, for what it makes of the passes; nothing is kept."""
        with self._lowered():
            tuning.finish(tuning.prefix(texts))

    def keep_prefixes(self, texts: Sequence[Ids]) -> None:
        """Let the frozen part encode texts ahead, where what it makes is kept.

        Texts that would push each other out again are left alone.
        """
        most = sum(ids.nbytes + 2 * self.width * len(ids) for ids in texts)
        if not self.tuning.keeps_prefix or most > self.cache.max_bytes // 2:
            return
        with self._lowered():
            for places in self.passes.divide([len(ids) for ids in texts]):
                self.cache.through([texts[i] for i in places], self.tuning.prefix)

    def prefix_digest(self) -> str:
        """Return sha256 over all that the output of the frozen part depends on, beside the ids.

        It is computed once, from the parameters as they are now. Encoders that agree on it may
        share a `PrefixCache`.
        """
        if self._prefix_digest is None:
            self._prefix_digest = self._digest_frozen()
        return self._prefix_digest

    def _digest_frozen(self) -> str:
        moving = {id(p) for p in self.trainable_parameters()}
        digest = hashlib.sha256(f"{self.tuning.name} {self.pooling}".encode())
        if self.precision != "float32":
            digest.update(self.precision.encode())
        if (separator := getattr(self.model, "pair_separator", None)) is not None:
            digest.update(f"separator {separator}".encode())
        digest.update(self.model.config.to_json_string().encode())
        for name, parameter in sorted(self.model.named_parameters()):
            if id(parameter) not in moving:
                values = parameter.detach().cpu().contiguous().numpy()
                digest.update(name.encode() + values.tobytes())
        return digest.hexdigest()

    def forward(self, texts: Sequence[Ids]) -> Tensor:
        """Return unit vectors (N, D) of N texts' ids, in order.

        They are on the encoder's device, and carry a gradient where grad mode is on and something
        moves.
        """
        return self._through(self.tuning, texts)

    def first_states(self, texts: Sequence[Ids]) -> Tensor:
        """Return states (N, D) of the first token of N texts, not normalised; as `forward`."""
        return self._through(self._first, texts)

    @cached_property
    def _first(self) -> Tuning:
        """The same parameters under the same tuning; frozen parts of a text are kept once."""
        return registry.named(self.tuning.name, self.model, first_state, self.passes)

    def _through(self, tuning: Tuning, texts: Sequence[Ids]) -> Tensor:
        """Return what a tuning makes of texts (N, D), in order."""
        if not texts:
            return torch.zeros(0, self.width, device=self.device)
        order: list[int] = []
        vectors = []
        with self._lowered():
            for places in self.passes.divide([len(ids) for ids in texts]):
                own = [texts[i] for i in places]
                if self._checkpointing and torch.is_grad_enabled():
                    vectors.append(checkpoint(self._vectors, tuning, own, use_reentrant=False))
                else:
                    vectors.append(self._vectors(tuning, own))
                order += places
        back = moved(torch.from_numpy(np.argsort(order)), self.device)
        return torch.cat(vectors).index_select(0, back)

    def _lowered(self) -> torch.autocast:
        """Let products be of the encoder's precision; nothing changes under float32."""
        lower, kind = self.precision == "bfloat16", self.device.type
        # The cache of rounded weights is of all threads, each of which empties it at its end
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=lower, cache_enabled=False)

    def _vectors(self, tuning: Tuning, texts: Sequence[Ids]) -> Tensor:
        """Return what a tuning makes (n, D) of the texts of a pass."""
        if tuning.keeps_prefix:
            prefixes = self.cache.through(texts, tuning.prefix)
        else:
            prefixes = tuning.prefix(texts)
        return tuning.finish(prefixes)


def set_dropout(model: nn.Module, share: float) -> None:
    """Set the share that is dropped in training, of activations and of attention."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = share  # type: ignore[assignment]
