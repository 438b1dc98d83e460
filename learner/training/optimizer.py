"""AdamW with clipped gradients and L2-SP, each per sample."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch

from learner.config import LearnerConfig
from learner.process_group import ProcessGroup
from learner.ranker import Ranker
from learner.training.adamw import AdamW, Group


class Optimizer:
    """Owner of everything that one update of the parameters changes.

    Learning rates, clipping and the pull towards the start are per sample: a stream teaches the
    same whatever the sizes of the steps that it is cut into, as far as gradients allow, which are
    taken where the model stands at the start of a step.
    """

    def __init__(self, config: LearnerConfig, ranker: Ranker, process_group: ProcessGroup) -> None:
        """Start at the parameters as they are; L2-SP pulls the encoder towards them."""
        self._config = config
        self._ranker = ranker
        self._process_group = process_group
        encoder = list(ranker.encoder.trainable_parameters())
        heads = list(ranker.heads().values())
        self._start = [p.detach().clone() for p in encoder]
        groups = [
            Group(parameters=encoder, lr=config.lr, weight_decay=config.weight_decay),
            Group(parameters=heads, lr=config.head_lr),
        ]
        self._adamw = AdamW(groups, config.reference_batch_size)

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return every parameter that moves, always in one order."""
        return self._adamw.parameters()

    def zero_grad(self) -> None:
        """Set gradients to zero; a parameter that never had one keeps none."""
        self._adamw.zero_grad()

    def clip(self, num_samples: int) -> float:
        """Sum the gradients of all processes and clip them; return the norm before clipping.

        The bound holds for a step of the reference size. As the noise of a mean over N samples, it
        grows with 1 / sqrt(N).

        Args:
            num_samples: of the step, of all processes.
        """
        moving = [p for p in self.parameters() if p.grad is not None]
        self._process_group.sum_([p.grad for p in moving if p.grad is not None])
        noise = math.sqrt(self._config.reference_batch_size / max(num_samples, 1))
        norm = torch.nn.utils.clip_grad_norm_(moving, self._config.max_grad_norm * noise)
        return float(norm)

    def step(self, num_samples: int) -> None:
        """Take one AdamW step, then let the distance to the start fade: exp(-N / memory).

        L2-SP (Li et al., ICML 2018) is decoupled from gradient and learning rate, as AdamW's decay
        is from the gradient.

        Args:
            num_samples: N of the step, of all processes.
        """
        self._adamw.step(num_samples)
        self._ranker.constrain()
        memory = self._config.l2_sp_samples
        if not memory:
            return
        faded = -math.expm1(-num_samples / memory)
        encoder = self._ranker.encoder.trainable_parameters()
        with torch.no_grad():
            for parameter, start in zip(encoder, self._start, strict=True):
                parameter.lerp_(start, faded)

    def state(self) -> dict[str, torch.Tensor]:
        """Return AdamW's state on the host, as ``parameter|field`` -> tensor."""
        names = {parameter: name for name, parameter in self._named().items()}
        state = {names[parameter]: fields for parameter, fields in self._adamw.state().items()}
        return {
            f"{name}|{field}": tensor
            for name, fields in sorted(state.items())
            for field, tensor in sorted(fields.items())
        }

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore the state returned by `state`."""
        named = self._named()
        state: defaultdict[torch.nn.Parameter, dict[str, torch.Tensor]] = defaultdict(dict)
        for key, tensor in tensors.items():
            name, _, field = key.partition("|")
            state[named[name]][field] = tensor
        self._adamw.restore(state)

    def _named(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self._ranker.named_parameters() if p.requires_grad}
