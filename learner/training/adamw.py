"""AdamW whose steps are measured in samples, so that every sample moves as far in any batch.

Legend: N samples of a step, B of a reference step, k = N / B; g the mean gradient of the step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.training import adamw_formula
from learner.training.adamw_formula import Factors, Move, Tensors, factors

log = logging.getLogger("steelyard.learner")

_TOLERANCE = 1e-3
"""Of a kernel's step, as a share of the step."""


@dataclass(slots=True, kw_only=True)
class Group:
    """Parameters with one learning rate, that of a step of B samples; a schedule may change it."""

    parameters: Sequence[torch.nn.Parameter]
    lr: float
    weight_decay: float = 0.0


@dataclass(slots=True, kw_only=True, eq=False)
class _Moments:
    """Fading means of one parameter's gradient and of its second moment at B samples."""

    first: Tensor
    second: Tensor
    num_samples: int = 0


class AdamW:
    """AdamW (Loshchilov & Hutter, ICLR 2019) in which a step of N samples counts as k steps of B.

        m <- b1^k m + (1 - b1^k) g
        v <- b2^k v + (1 - b2^k) s,    s = k g^2 + (1 - k) m^2
        p <- (1 - lr decay)^k p - k lr m / (sqrt(v) + eps)

    with m and v corrected for their start at zero, as always. The mean gradient over N samples has
    the second moment G^2 + V/N, G the expected gradient and V its variance over samples; s
    estimates what it would be over B samples, G^2 + V/B, with m for G (McCandlish et al. 2018,
    appendix A.1). Where noise prevails that is the square-root rule, a step of k lr g / sqrt(k g^2)
    (Malladi et al., NeurIPS 2022); where the signal does, it is the linear one. For k > 1, s is
    at least g^2, as V >= 0. At N = B this is AdamW itself.
    """

    def __init__(
        self, groups: Iterable[Group], reference_batch_size: int, *, move: Move | None = None
    ) -> None:
        """Start at zero moments.

        Args:
            groups: of the parameters.
            reference_batch_size: B.
            move: calculates the formula; by default the fastest of the device.
        """
        self._groups = list(groups)
        self._move = move
        self._reference = reference_batch_size
        self._moments: dict[torch.nn.Parameter, _Moments] = {}

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return every parameter, always in one order."""
        return [p for group in self._groups for p in group.parameters]

    def zero_grad(self) -> None:
        """Drop all gradients; a parameter that had one before and gets none moves all the same."""
        for parameter in self.parameters():
            parameter.grad = None

    @torch.no_grad()
    def step(self, num_samples: int) -> None:
        """Take the step of N samples, of which the gradients are the mean."""
        for group in self._groups:
            for p in self._moments.keys() & set(group.parameters):
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            moving = [p for p in group.parameters if p.grad is not None]
            for own in self._of_one_age(moving, num_samples):
                if self._move is None:
                    self._move = fastest(own[0].device)
                given = self._factors(own[0], group, num_samples)
                self._move([self._tensors(p) for p in own], given)

    def _of_one_age(
        self, moving: Sequence[torch.nn.Parameter], num_samples: int
    ) -> Iterable[list[torch.nn.Parameter]]:
        """Count the samples; yield the parameters that have had equally many."""
        by_age: dict[int, list[torch.nn.Parameter]] = {}
        for p in moving:
            own = self._moments.get(p)
            if own is None:
                own = _Moments(first=torch.zeros_like(p), second=torch.zeros_like(p))
                self._moments[p] = own
            own.num_samples += num_samples
            by_age.setdefault(own.num_samples, []).append(p)
        return by_age.values()

    def _tensors(self, p: torch.nn.Parameter) -> Tensors:
        own = self._moments[p]
        assert p.grad is not None
        return p, p.grad, own.first, own.second

    def _factors(self, p: torch.nn.Parameter, group: Group, num_samples: int) -> Factors:
        k, steps = num_samples / self._reference, self._moments[p].num_samples / self._reference
        return factors(k, steps, lr=group.lr, decay=group.weight_decay)

    def state(self) -> dict[torch.nn.Parameter, dict[str, Tensor]]:
        """Return each parameter's state on the host, by field; moments are not copied."""
        return {
            parameter: {
                "exp_avg": own.first.detach().cpu(),
                "exp_avg_sq": own.second.detach().cpu(),
                "num_samples": torch.tensor(own.num_samples, dtype=torch.int64),
            }
            for parameter, own in self._moments.items()
        }

    def restore(self, state: Mapping[torch.nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Restore the state returned by `state`."""
        self._moments = {
            parameter: _Moments(
                first=fields["exp_avg"].to(parameter.device, copy=True),
                second=fields["exp_avg_sq"].to(parameter.device, copy=True),
                num_samples=int(fields["num_samples"]),
            )
            for parameter, fields in state.items()
        }


def fastest(device: torch.device) -> Move:
    """Return what moves parameters of a device: one kernel where it has it, and where it agrees."""
    if device.type != "cuda":
        return adamw_formula.move
    try:
        from learner.training.adamw_kernel import Fused

        fused = Fused()
        difference = fused.difference(device)
    # Triton raises errors of many classes: of its compiler, the driver, a missing C compiler
    except Exception as error:
        log.warning("no AdamW in one kernel", extra={"error": str(error)})
        return adamw_formula.move
    if not difference <= _TOLERANCE:
        log.warning("no AdamW in one kernel: it moved otherwise", extra={"difference": difference})
        return adamw_formula.move
    return fused
