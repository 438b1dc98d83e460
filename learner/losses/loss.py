"""Protocol of a loss: L = 1/N sum w_i loss(M(x_i), y_i).

Legend: N samples of a step, n of them in a micro-batch.

A sample's label and weight arrive as a pair (a, b): a is the factor of -log f, b of -log(1 - f).
For a hard label y with weight w that is (w y, w (1 - y)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from torch import Tensor


class Sampled(NamedTuple):
    """Columns (n,) by which a sample's item is a negative of other lists.

    Attributes:
        query_id: int64, number of the query.
        item_id: int64, number of the item.
        log_frequency: log of how often a click is on the item.
    """

    query_id: Tensor
    item_id: Tensor
    log_frequency: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Targets:
    """Columns (n,) that a loss reads beside the logits, on their device.

    Attributes:
        a: factor of -log f.
        b: factor of -log(1 - f).
        examination: chance that the place of the sample is looked at.
        discount: share of an example that the sample counts for.
        prior: p(y=1) of the sample's task, as if shown first.
        list_id: int64, number of the list that the sample was shown in.
        num_lists: every `list_id` is below it.
        longest_list: no list has more samples.
        sampled: where a loss compares lists with each other.
    """

    a: Tensor
    b: Tensor
    examination: Tensor
    discount: Tensor
    prior: Tensor
    list_id: Tensor
    num_lists: int
    longest_list: int
    sampled: Sampled | None = None

    def columns(self) -> list[Tensor]:
        """Return every column, always in one order."""
        own = self.a, self.b, self.examination, self.discount, self.prior, self.list_id
        return [*own, *(self.sampled or ())]

    def with_columns(self, columns: Sequence[Tensor]) -> Targets:
        """Return the same with other columns, in the order of `columns`."""
        a, b, examination, discount, prior, list_id, *sampled = columns
        return replace(
            self,
            a=a,
            b=b,
            examination=examination,
            discount=discount,
            prior=prior,
            list_id=list_id,
            sampled=Sampled(*sampled) if sampled else None,
        )

    def at(self, places: Tensor) -> Targets:
        """Select rows."""
        return self.with_columns([column[places] for column in self.columns()])


class Loss(Protocol):
    """A weighted loss, computed where the logits are.

    Attributes:
        whole_lists: whether all samples of a list must be in one micro-batch.
        learns_bias: whether it changes when all logits of a list rise alike. Where it does not,
            the bias of a task has a pointwise loss of its own.
        across_lists: whether it compares the lists of a micro-batch with each other. It is given
            the logits (n, n) of each query with each item, without what is added to all, in place
            of (n,), and `Targets.sampled`; and it depends on how a step is divided into
            micro-batches.
    """

    whole_lists: bool
    learns_bias: bool
    across_lists: bool

    def __call__(self, logit: Tensor, targets: Targets) -> Tensor:
        """Return the sum over n samples, as a scalar; the caller divides by N."""
