"""Background writer: checkpoints in a thread of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from learner.artifact import Version
from learner.errors import Fenced, StoreError, without_tracebacks
from learner.store.checkpoint import Checkpointer
from learner.store.manifest import CheckpointMetadata, RunState
from weighting.provenance import Gap


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Outcome of a save in the background.

    A version with an error is durable; what failed came after.

    Attributes:
        version: None: nothing changed, the checkpoint before is in force.
        error: None: all went well.
    """

    version: Version | None
    error: StoreError | None


class BackgroundWriter:
    """Saves, announces and prunes in the background, one checkpoint at a time.

    The checkpointer is its own from the first `submit` on.
    """

    def __init__(self, checkpointer: Checkpointer, *, keep: int = 20) -> None:
        """Take an acquired checkpointer and how many versions to keep."""
        self._checkpointer = checkpointer
        self._keep = keep
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint-writer")
        self._pending: Future[Saved] | None = None

    def submit(
        self,
        files: Callable[[], Mapping[str, bytes]],
        metadata: CheckpointMetadata,
        *,
        gaps: Sequence[Gap] = (),
        live: bool = True,
    ) -> bool:
        """Hand copies over; False until the outcome before was polled.

        Args:
            files: makes those of `Checkpointer.save`, in the thread that writes them.
            metadata: where they stand.
            gaps: records found lost since the last one; every later checkpoint names them.
            live: whether a replay, if there was one, is over; until then nothing is announced.
        """
        if self._pending is not None:
            return False
        run_state = self._checkpointer.run_state
        if gaps:
            self._checkpointer.update(gaps=(*run_state.gaps, *gaps))
        if live and run_state.replay is not None:
            self._checkpointer.update(replay=None)
        run_state = self._checkpointer.run_state
        self._pending = self._executor.submit(self._run, files, metadata, run_state)
        return True

    def poll(self, *, timeout_seconds: float | None = 0.0) -> Saved | None:
        """Return the outcome of the one in flight, once.

        None while it has not ended, or if there is none.

        Args:
            timeout_seconds: how long to wait for it; None for as long as it takes.

        Raises:
            Fenced: there is another owner.
        """
        if self._pending is None:
            return None
        done, _ = wait([self._pending], timeout_seconds)
        if not done:
            return None
        (ended,), self._pending = done, None
        return ended.result()

    def close(self) -> Saved | None:
        """Wait for the one in flight, end the thread, return the outcome."""
        self._executor.shutdown(wait=True)
        return self.poll(timeout_seconds=None)

    def _run(
        self,
        files: Callable[[], Mapping[str, bytes]],
        metadata: CheckpointMetadata,
        run_state: RunState,
    ) -> Saved:
        version = None
        try:
            version = self._checkpointer.save(files(), metadata, run_state)
            if run_state.replay is None:
                self._checkpointer.announce(version)
            self._checkpointer.prune(self._keep)
        except Fenced:
            raise
        except StoreError as error:
            with contextlib.suppress(StoreError):  # a full disk: what was retired may go now
                self._checkpointer.prune(self._keep)
            return Saved(version=version, error=without_tracebacks(error))
        return Saved(version=version, error=None)
