"""Run-ahead: the next batch, pulled and prepared in a thread of its own while a step runs.

Neither reading nor the estimators depend on the trained model, nor do its frozen layers and the
vectors of its start. So batch t+1 can be read, joined, tokenised and weighed while step t
calculates, and its new texts encoded as far as no training changes that, with the same bits as
after it: the order of the batches is that of the stream, and one thread at a time touches what they
change.

What lies ahead is in memory only. It is journaled in its own round, and an error that it met is
raised there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager

from learner.trainer import Trainer
from learner.training.prepared import Prepared
from weighting.sample import Batch, Sample, Signal

Working = Callable[[], AbstractContextManager[object]]
"""Entered around what is work on batches; left while one is waited for."""


class RunAhead(Iterator[Batch | Signal]):
    """A stream of batches, of which one more is pulled whenever `begin` says so.

    Example:
        stream = RunAhead(batches, trainer, working=nullcontext)
        for batch in stream:
            prepared = stream.prepared(batch.samples)
            stream.begin(weigh=True)    # the next one, in its thread
            trainer.take(prepared)
            stream.wait()
        stream.close()
    """

    def __init__(
        self, batches: Iterator[Batch | Signal], trainer: Trainer, *, working: Working
    ) -> None:
        """Take the stream; a thread is made when the first batch is pulled ahead.

        Args:
            batches: run by one thread at a time, ours or the caller's.
            trainer: prepares their samples.
            working: entered while samples are prepared in our thread.
        """
        self._batches = batches
        self._trainer = trainer
        self._working = working
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="run-ahead")
        self._ahead: tuple[Future[Batch | Signal], Future[Prepared | None]] | None = None
        self._prepared: Future[Prepared | None] | None = None  # of the item returned last

    @property
    def pending(self) -> bool:
        """Return whether an item was pulled ahead that `next` has not returned yet."""
        return self._ahead is not None

    def __next__(self) -> Batch | Signal:
        """Return the item pulled ahead, else pull one: ENDED behind the last.

        Raises:
            Exception: what the stream raised.
        """
        ahead, self._ahead, self._prepared = self._ahead, None, None
        if ahead is None:
            return next(self._batches, Signal.ENDED)
        pulled, self._prepared = ahead
        return pulled.result()

    def prepared(self, samples: Sequence[Sample]) -> Prepared:
        """Return the prepared samples of the batch returned last, which `samples` are.

        Raises:
            WeightError: a weight was refused; nothing was learned.
        """
        done, self._prepared = self._prepared, None
        found = done.result() if done is not None else None
        return self._trainer.prepare(samples) if found is None else found

    def begin(self, *, weigh: bool) -> None:
        """Begin to pull and prepare the next batch, while the caller takes a step.

        The batch before it has been prepared by then.

        Args:
            weigh: whether its samples may be weighed, which changes the estimators.
        """
        assert self._ahead is None, "one batch ahead"
        assert self._prepared is None, "one batch is weighed after the other"
        pulled = self._thread.submit(next, self._batches, Signal.ENDED)
        self._ahead = pulled, self._thread.submit(self._prepare, pulled, weigh=weigh)

    def wait(self) -> None:
        """Wait until nothing runs in our thread; an error is kept for the round of its batch."""
        if self._ahead is not None:
            wait(self._ahead[1:])  # begun last

    def close(self) -> None:
        """End our thread, after what it does; safe to repeat."""
        self._thread.shutdown()

    def _prepare(self, pulled: Future[Batch | Signal], *, weigh: bool) -> Prepared | None:
        item = pulled.result()
        if not isinstance(item, Batch):
            return None
        with self._working():
            self._trainer.tokenise(item.samples)
            self._trainer.encode_ahead(item.samples)
            return self._trainer.prepare(item.samples) if weigh else None
