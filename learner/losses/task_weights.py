"""Balance between the tasks: what each task's loss counts in the sum."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from weighting.constraints import NotNegative, SettingError, check
from weighting.tasks import TaskName

if TYPE_CHECKING:  # the settings load neither torch nor river
    from weighting.config import WeigherConfig

_YOUNGER = frozenset({"purchase_over_all", "value"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskWeights:
    """L = 1/N sum over tasks of weight x sum of its samples' losses, N samples of all tasks.

    So a task of more samples counts more. With 0 a task teaches the encoder nothing, and its own
    head nothing.
    """

    click: Annotated[NotNegative, Meta(description="Factor of the loss of clicks.")] = 1.0
    purchase: Annotated[
        NotNegative, Meta(description="Factor of the loss of purchases, told by their click.")
    ] = 1.0
    purchase_over_all: Annotated[
        NotNegative,
        Meta(
            description="Factor of the loss of purchases over all shown items, p(click) x "
            "p(purchase | click), also those not clicked (ESMM); 0: none."
        ),
    ] = 0.0
    value: Annotated[
        NotNegative,
        Meta(description="Factor of the loss of what is paid for a bought item; 0: no such head."),
    ] = 0.0

    def __post_init__(self) -> None:
        """Check every field."""
        check(self, "learner.task_weights")

    def of(self, task: TaskName) -> float:
        """Return the factor of a task."""
        weight: float = getattr(self, task)
        return weight

    def check_weighting(self, weighting: WeigherConfig) -> None:
        """Refuse a product of probabilities that importance weights have moved.

        Raises:
            SettingError: it is asked for under weights that are not 1.
        """
        if self.purchase_over_all and weighting.reweighed_by:
            name, value = weighting.reweighed_by
            raise SettingError(
                "learner.task_weights",
                "purchase_over_all",
                self.purchase_over_all,
                "0 with",
                (f"weighting.{name}", value),
            )

    def on_disk(self) -> dict[str, float]:
        """Return the weights as digests and versions have them: without younger ones that are 0."""
        plain = asdict(self)
        return {name: plain[name] for name in plain if name not in _YOUNGER or plain[name]}
