"""Encoders of versions that are gone, whose memory the next version is loaded into.

Where it lies in memory a version finds all that was made for the one before: on a GPU the captures
of its passes (`learner.passes.captures`), which go on reading parameters where they read them. A
server has as many sets of parameters as versions in use at once: the one that answers, the former
one, which it may go back to, and the one being loaded.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Mapping

from torch import Tensor

from learner.encoder.encoder import Encoder
from learner.encoder.load import with_others
from learner.passes.side_stream import beside
from learner.tuning import adapters


class Loan:
    """The use of an encoder; it ends with the last reference to this."""


class IdleEncoders:
    """Encoders that differ in some parameters alone; as many as versions were in use at once.

    Any thread may drop a loan; one at a time takes encoders.
    """

    def __init__(self, first: Encoder, loan: Loan, names: Iterable[str]) -> None:
        """Take the first one, in use.

        Args:
            first: its other parameters, passes and cache are those of all.
            loan: of it.
            names: of the parameters in which encoders differ, as on disk.
        """
        self._first = first
        self._names = frozenset(names)
        self._idle: deque[Encoder] = deque()  # a loan may end anywhere, so there is no lock
        self._lend(first, loan)

    def take(self, tensors: Mapping[str, Tensor], loan: Loan) -> Encoder:
        """Return an encoder with these parameters: one that nobody uses, or else another one.

        Args:
            tensors: on the host, by their names on disk.
            loan: until it ends, nobody else is given this encoder.

        Raises:
            ValueError, RuntimeError: they are not the parameters in which encoders differ.
        """
        if tensors.keys() != self._names:
            missing, unknown = self._names - tensors.keys(), tensors.keys() - self._names
            raise ValueError(f"parameters: missing {sorted(missing)}, unknown {sorted(unknown)}")
        try:
            encoder = self._idle.pop()
        except IndexError:
            encoder = self._another(tensors)
            self._lend(encoder, loan)
            return encoder
        self._lend(encoder, loan)
        with beside(encoder.device):
            adapters.load(encoder.model, tensors, others=True)
            encoder.round_weights()
        return encoder

    def _lend(self, encoder: Encoder, loan: Loan) -> None:
        weakref.finalize(loan, self._idle.append, encoder).atexit = False

    def _another(self, tensors: Mapping[str, Tensor]) -> Encoder:
        first = self._first
        own = {name: tensor.to(first.device) for name, tensor in tensors.items()}
        encoder = Encoder(
            with_others(first.model, own),
            tuning=first.tuning.name,
            pooling=first.pooling,
            cache=first.cache,
            passes=first.passes,
            precision=first.precision,
        )
        encoder.round_weights()
        encoder.capture_ahead()
        return encoder
