"""AdamW whose steps are measured in samples, so that every sample moves as far in any batch.

Legend: N samples of a step, B of a reference step, k = N / B; g the mean gradient of the step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

_BETA1, _BETA2 = 0.9, 0.999
_EPSILON = 1e-8
_PIECE = 1 << 17
"""Numbers of a parameter that are moved at once on a CPU, so that its tensors stay in a cache."""


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


class _Factors(NamedTuple):
    """k, and by how much m and v have left their start."""

    k: float
    start1: float
    start2: float


_Tensors: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""p, g, m and v, as the formula names them."""


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

    def __init__(self, groups: Iterable[Group], reference_batch_size: int) -> None:
        """Start at zero moments; `reference_batch_size` is B."""
        self._groups = list(groups)
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
                for tensors in _together([self._tensors(p) for p in own]):
                    _move(tensors, group, self._factors(own[0], num_samples))

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

    def _tensors(self, p: torch.nn.Parameter) -> _Tensors:
        own = self._moments[p]
        assert p.grad is not None
        return p, p.grad, own.first, own.second

    def _factors(self, p: torch.nn.Parameter, num_samples: int) -> _Factors:
        k, steps = num_samples / self._reference, self._moments[p].num_samples / self._reference
        return _Factors(k, 1 - _BETA1**steps, 1 - _BETA2**steps)

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


def _move(tensors: Sequence[_Tensors], group: Group, factors: _Factors) -> None:
    """Move parameters by the formula of `AdamW`."""
    p, g, m, v = (list(column) for column in zip(*tensors, strict=True))
    k, start1, start2 = factors
    torch._foreach_lerp_(m, g, 1 - _BETA1**k)
    s = torch._foreach_mul(g, g)
    if k != 1:
        squares = s
        s = torch._foreach_mul(squares, k)
        torch._foreach_addcmul_(s, m, m, value=(1 - k) / start1**2)
        if k > 1:
            torch._foreach_maximum_(s, list(squares))
    torch._foreach_lerp_(v, s, 1 - _BETA2**k)
    scale = torch._foreach_sqrt(v)  # of v before its correction, so that eps is as much smaller
    torch._foreach_add_(scale, _EPSILON * math.sqrt(start2))
    if group.weight_decay:
        torch._foreach_mul_(p, (1 - group.lr * group.weight_decay) ** k)
    torch._foreach_addcdiv_(p, m, scale, value=-k * group.lr * math.sqrt(start2) / start1)


def _together(tensors: Sequence[_Tensors]) -> Iterable[Sequence[_Tensors]]:
    """Yield what to calculate with at once: on a device all, on a CPU what fits its cache."""
    whole = [own for own in tensors if own[0].device.type != "cpu" or not _contiguous(own)]
    if whole:
        yield whole
    for own in tensors:
        if own[0].device.type == "cpu" and _contiguous(own):
            pieces = (torch.split(tensor.view(-1), _PIECE) for tensor in own)
            for p, g, m, v in zip(*pieces, strict=True):
                yield [(p, g, m, v)]


def _contiguous(tensors: _Tensors) -> bool:
    return all(tensor.is_contiguous() for tensor in tensors)
