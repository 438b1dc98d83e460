"""SGD with momentum whose steps are measured in samples, as those of `adamw` are.

Legend: N samples of a step, B of a reference step, k = N / B; g the mean gradient of the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from learner.training.adamw import Group


class SGD:
    """SGD with momentum mu, in which a step of N samples is k steps of B with the same gradient.

        v <- mu v + g,    p <- p - lr v

    is one step of B. k of them with g held, summed up, are

        p <- p - lr (s v + (k - s) / (1 - mu) g),    s = mu (1 - mu^k) / (1 - mu)
        v <- mu^k v + (1 - mu^k) / (1 - mu) g

    also for k that is no whole number: a step of N samples and one of M with the same g are that of
    N + M. Weight decay is L2, a part of g, so it is coupled with the momentum as in torch, and not
    as AdamW's. At N = B this is `torch.optim.SGD`. Learning rates are another size than AdamW's,
    which divides a gradient by its own size.
    """

    def __init__(
        self, groups: Iterable[Group], reference_batch_size: int, *, momentum: float
    ) -> None:
        """Start at rest; `reference_batch_size` is B, `momentum` mu in [0, 1)."""
        self._groups = list(groups)
        self._reference = reference_batch_size
        self._momentum = momentum
        self._velocity: dict[torch.nn.Parameter, Tensor] = {}

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return every parameter, always in one order."""
        return [p for group in self._groups for p in group.parameters]

    def zero_grad(self) -> None:
        """Drop all gradients; a parameter that has momentum moves without one all the same."""
        for parameter in self.parameters():
            parameter.grad = None

    @torch.no_grad()
    def step(self, num_samples: int) -> None:
        """Take the step of N samples, of which the gradients are the mean."""
        mu, k = self._momentum, num_samples / self._reference
        kept = mu**k
        gained = (1 - kept) / (1 - mu)
        for group in self._groups:
            moving = [p for p in group.parameters if p.grad is not None or p in self._velocity]
            for p in moving:
                if p not in self._velocity:
                    self._velocity[p] = torch.zeros_like(p)
            for own in _together(moving):
                v = [self._velocity[p] for p in own]
                given = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
                values: list[Tensor] = list(own)
                g = torch._foreach_add(given, values, alpha=group.weight_decay)
                torch._foreach_add_(values, v, alpha=-group.lr * mu * gained)
                torch._foreach_add_(values, g, alpha=-group.lr * (k - mu * gained) / (1 - mu))
                torch._foreach_mul_(v, kept)
                torch._foreach_add_(v, g, alpha=gained)

    def state(self) -> dict[torch.nn.Parameter, dict[str, Tensor]]:
        """Return each parameter's state on the host, by field; nothing is copied."""
        return {p: {"momentum": v.detach().cpu()} for p, v in self._velocity.items()}

    def restore(self, state: Mapping[torch.nn.Parameter, Mapping[str, Tensor]]) -> None:
        """Restore the state returned by `state`."""
        self._velocity = {
            p: fields["momentum"].to(p.device, copy=True) for p, fields in state.items()
        }


def _together(
    moving: Sequence[torch.nn.Parameter],
) -> Sequence[Sequence[torch.nn.Parameter]]:
    """Return what to calculate with at once: on a device all, on a CPU one after the other."""
    if moving and moving[0].device.type != "cpu":
        return [list(moving)]
    return [[p] for p in moving]
