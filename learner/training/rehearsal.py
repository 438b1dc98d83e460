"""Rehearsal of past lists against forgetting: a uniform sample of the stream, bounded in bytes.

Legend: N samples of a step, n of them with a gradient, M samples rehearsed, m of one list.

Each list has a number by a hash of its name, and the memory keeps the lists of the smallest numbers
that fit. That is reservoir sampling (Vitter 1985) in the form of bottom-k sampling (Cohen & Kaplan
2007): every list of the stream is kept with the same probability, however old it is, and which ones
does not depend on the steps that the stream was cut into. A list is kept whole, with the late
copies and the purchases of its items. Who knows the seed can choose names that are kept.

A step moves the encoder along L and along the loss of M past samples, about as many as make `share`
of all that it moves along (experience replay: Chaudhry et al. 2019, Rolnick et al. 2019):

    gradient = n / (n + M) grad L + M / (n + M) grad L_past,    L_past = F/N mean of w_j loss_j

F/N is the part of the step that has a gradient: samples without one, as those of a list without a
click under a loss that compares items, are neither kept nor counted. The weights w_j are those of
then. Heads that only set a level learn from the stream alone, as do estimators, stackers, parts,
residuals and evaluation, which learn each sample once.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from learner.errors import Corrupt
from weighting.constraints import NotNegativeInt, SettingError, check
from weighting.sample import Sample
from weighting.tasks import TaskName

if TYPE_CHECKING:  # the settings load neither torch nor river
    from learner.losses.loss import Loss
    from weighting.weighted import WeightedBatch

_COLUMNS = ("a", "b", "label", "p_y", "examination", "discount")
_LARGEST_SHARE = 1 / 16
"""Of the memory, for one list: a larger one would push out all others."""

_PER_ENTRY = 24
"""Bytes of an entry in a snapshot beside its own."""

_SMALLEST = 100_000
_END = (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalConfig:
    """Rehearsal of past lists, against forgetting what the stream no longer shows."""

    size_bytes: Annotated[
        NotNegativeInt,
        Meta(description="Memory of past lists, in each checkpoint too; 0: none. About 1 kB each."),
    ] = 0
    share: Annotated[
        float,
        Meta(gt=0, lt=1, description="Share of past samples in what the encoder moves along."),
    ] = 0.25

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "learner.rehearsal")
        if 0 < self.size_bytes < _SMALLEST:
            expected = f"0B, or at least {_SMALLEST // 1000}KB"
            raise SettingError("learner.rehearsal", "size_bytes", self.size_bytes, expected, None)


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """What the encoder reads of a sample that was learned before."""

    task: TaskName
    list_id: str
    query: str
    item_id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rehearsed:
    """Past samples to move along; columns as of `WeightedBatch`.

    Attributes:
        lists: places of the samples of each list.
        own_share: n / (n + M).
        divisor: of the sum of their losses: N (n + M) / F.
    """

    samples: Sequence[Past]
    lists: Sequence[range]
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    label: NDArray[np.float32]
    p_y: NDArray[np.float32]
    examination: NDArray[np.float32]
    discount: NDArray[np.float32]
    own_share: float
    divisor: float


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    """The samples of a list and task in one step.

    Attributes:
        items: (m,) id and text.
        columns: f32 (6, m).
    """

    task: TaskName
    list_id: str
    query: str
    items: tuple[tuple[str, str], ...]
    columns: bytes


class _State(msgspec.Struct, array_like=True):
    end: int
    num_too_large: int
    kept: list[tuple[int, list[bytes]]]


_decode = msgspec.msgpack.Decoder(_Entry).decode


class Rehearsal:
    """Memory of past lists.

    Attributes:
        num_bytes: that a snapshot has, but for a few.
        num_too_large: lists that were not kept, or not with all of their samples, because they
            exceeded a sixteenth of the size.
    """

    def __init__(
        self,
        config: RehearsalConfig,
        *,
        seed: int,
        losses: Mapping[TaskName, Loss],
        task_weight: Callable[[TaskName], float] = lambda task: 1.0,
    ) -> None:
        """Start empty.

        Args:
            config: its size is not 0.
            seed: of what is kept and drawn.
            losses: of the tasks, which say what has a gradient.
            task_weight: factor of a task's loss.
        """
        self._config = config
        self._seed = seed
        self._key = f"rehearsal {seed}".encode()[:64]
        self._losses = losses
        self._task_weight = task_weight
        self._forget()

    def _forget(self) -> None:
        self.num_bytes = 0
        self.num_too_large = 0
        self._kept: dict[int, list[bytes]] = {}
        self._order: list[int] = []  # of the keys, ascending
        self._end = _END  # no list of this number or a larger one is kept any more

    @property
    def num_lists(self) -> int:
        """Number of lists kept."""
        return len(self._kept)

    def draw(
        self, weighted: WeightedBatch, drawn: NDArray[np.float64], *, step: int
    ) -> Rehearsed | None:
        """Return past samples to move along in a step, not yet kept; None where there are none.

        Args:
            weighted: the N samples of the step.
            drawn: (N,) by which the samples that the encoder is given stand for all; others are 0.
            step: number of the step.
        """
        teaches = self._teaches(weighted) & (drawn > 0)
        num_own = int(teaches.sum())
        share = self._config.share
        entries = list(self._drawn(share / (1 - share) * num_own, step))
        if not entries:
            return None
        samples = [past for entry in entries for past in _samples(entry)]
        tables = [np.frombuffer(entry.columns, np.float32) for entry in entries]
        table = np.concatenate([own.reshape(len(_COLUMNS), -1) for own in tables], axis=1)
        ends = np.cumsum([len(entry.items) for entry in entries]).tolist()
        columns = dict(zip(_COLUMNS, table, strict=True))
        num_all = num_own + len(samples)
        return Rehearsed(
            samples=samples,
            lists=[range(e - len(own.items), e) for e, own in zip(ends, entries, strict=True)],
            own_share=num_own / num_all,
            divisor=len(weighted.samples) * num_all / float(drawn[teaches].sum()),
            **columns,
        )

    def _drawn(self, wanted: float, step: int) -> Iterator[_Entry]:
        """Yield entries of about `wanted` samples, as many in the mean; each list at most once."""
        if wanted <= 0 or not self._order:
            return
        draw = np.random.Generator(np.random.PCG64([self._seed, step]))
        left = wanted
        for place in draw.permutation(len(self._order)).tolist():
            entries = [_decode(data) for data in self._kept[self._order[place]]]
            number = sum(len(entry.items) for entry in entries)
            if number > left and draw.random() >= left / number:
                return
            yield from entries
            left -= number
            if left <= 0:
                return

    def learn(self, weighted: WeightedBatch, counts: NDArray[np.float64] | None = None) -> None:
        """Keep the lists of a step whose numbers are small enough; others make room.

        Args:
            weighted: N samples with their weights.
            counts: (N,) what each counts beside them; 1 by default.
        """
        table = np.stack([getattr(weighted, name) for name in _COLUMNS]).astype(np.float64)
        if counts is not None:
            table[:2] *= counts
        teaches = self._teaches(weighted)
        for (task, list_id, _), places in _units(weighted.samples).items():
            first = weighted.samples[places[0]]
            number = self._number(list_id or first.sample_id)
            if number >= self._end or not teaches[places[0]]:
                continue
            samples = [weighted.samples[place] for place in places]
            entry = _Entry(
                task=task,
                list_id=list_id,
                query=first.query,
                items=tuple((s.item_id, s.text) for s in samples),
                columns=table[:, places].astype(np.float32).tobytes(),
            )
            self._add(number, msgspec.msgpack.encode(entry))
            self._make_room()

    def _add(self, number: int, data: bytes) -> None:
        of_list = self._kept.get(number, [])
        if _size([*of_list, data]) > _LARGEST_SHARE * self._config.size_bytes:
            self.num_too_large += 1
            return
        if not of_list:
            insort(self._order, number)
            self._kept[number] = of_list
        of_list.append(data)
        self.num_bytes += _size([data])

    def _make_room(self) -> None:
        while self.num_bytes > self._config.size_bytes:
            self._end = self._order.pop()
            self.num_bytes -= _size(self._kept.pop(self._end))

    def _number(self, name: str) -> int:
        data = name.encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(data, digest_size=8, key=self._key).digest(), "little")

    def _teaches(self, weighted: WeightedBatch) -> NDArray[np.bool_]:
        """Tell of each sample (N,) whether the loss of its list has a gradient."""
        found = np.zeros(len(weighted.samples), dtype=bool)
        for (task, _, _), places in _units(weighted.samples).items():
            loss = self._losses[task]
            own = bool((weighted.a[places] > 0).any())
            if loss.learns_bias:
                own = own or bool((weighted.b[places] > 0).any())
            elif not loss.across_lists:
                own = own and len(places) > 1
            found[places] = own and self._task_weight(task) > 0
        return found

    def snapshot(self) -> bytes:
        """Return the state after the last step kept."""
        kept = [(number, self._kept[number]) for number in self._order]
        return msgspec.msgpack.encode(
            _State(end=self._end, num_too_large=self.num_too_large, kept=kept)
        )

    def restore(self, data: bytes) -> None:
        """Restore the state returned by `snapshot`; no bytes are a start without a list.

        What exceeds the size, where that is smaller now, makes room.

        Raises:
            Corrupt: the data is none.
        """
        fresh = Rehearsal(
            self._config, seed=self._seed, losses=self._losses, task_weight=self._task_weight
        )
        try:
            state = msgspec.msgpack.decode(data or fresh.snapshot(), type=_State)
            for entry in (_decode(own) for _, of_list in state.kept for own in of_list):
                if len(entry.columns) != 4 * len(_COLUMNS) * len(entry.items):
                    raise ValueError(f"{len(entry.columns)} bytes for {len(entry.items)} samples")
        except (msgspec.DecodeError, ValueError) as error:
            expected = "lists to rehearse"
            raise Corrupt("rehearsal", expected=expected, found=str(error)) from error
        self._forget()
        self._end, self.num_too_large = state.end, state.num_too_large
        self._kept = dict(state.kept)
        self._order = sorted(self._kept)
        self.num_bytes = sum(map(_size, self._kept.values()))
        self._make_room()


def _size(entries: Sequence[bytes]) -> int:
    return sum(len(data) + _PER_ENTRY for data in entries)


def _units(samples: Sequence[Sample]) -> dict[tuple[TaskName, str, str], list[int]]:
    """Return the places of the samples of each list of a task; one without a list is alone."""
    found: dict[tuple[TaskName, str, str], list[int]] = {}
    for place, s in enumerate(samples):
        alone = "" if s.list_id else s.sample_id
        found.setdefault((s.task, s.list_id, alone), []).append(place)
    return found


def _samples(entry: _Entry) -> Iterator[Past]:
    for item_id, text in entry.items:
        yield Past(
            task=entry.task, list_id=entry.list_id, query=entry.query, item_id=item_id, text=text
        )
