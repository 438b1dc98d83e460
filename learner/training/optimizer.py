"""The chosen optimiser with clipped gradients, a schedule and L2-SP, each per sample."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch

from learner.config import LearnerConfig
from learner.errors import OptimizerChanged
from learner.process_group import ProcessGroup
from learner.ranker import Ranker
from learner.training.adamw import AdamW, Group
from learner.training.schedule import Schedule
from learner.training.sgd import SGD
from learner.value_head import of_value

_NUM_SAMPLES = "schedule|num_samples"
_FIELD = {"adamw": "exp_avg", "sgd": "momentum"}
"""Optimiser -> a field that each of its parameters has."""


class Optimizer:
    """Owner of everything that one update of the parameters changes.

    Learning rates, clipping and the pull towards the start are per sample: a stream teaches the
    same whatever the sizes of the steps that it is cut into, as far as gradients allow, which are
    taken where the model stands at the start of a step.
    """

    def __init__(self, config: LearnerConfig, ranker: Ranker, process_group: ProcessGroup) -> None:
        """Start at the parameters as they are; L2-SP pulls what was pretrained to them."""
        self._config = config
        self._ranker = ranker
        self._process_group = process_group
        encoder = ranker.pretrained()
        known = {id(p) for p in encoder}
        heads = [p for p in ranker.heads().values() if id(p) not in known]
        self._start = [p.detach().clone() for p in encoder]
        self._encoder = Group(parameters=encoder, lr=config.lr, weight_decay=config.weight_decay)
        self._heads = Group(parameters=heads, lr=config.head_lr)
        self._schedule = Schedule(
            inverse_sqrt=config.schedule == "inverse_sqrt", warm_up_samples=config.warm_up_samples
        )
        self._num_samples = 0
        groups, reference = (self._encoder, self._heads), config.reference_batch_size
        self._rule: AdamW | SGD
        if config.optimizer == "sgd":
            self._rule = SGD(groups, reference, momentum=config.momentum)
        else:
            self._rule = AdamW(groups, reference)

    @property
    def learning_rates(self) -> dict[str, float]:
        """Learning rates of the last step, by the schedule; the settings' before the first."""
        return {"encoder": self._encoder.lr, "heads": self._heads.lr}

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return every parameter that moves, always in one order."""
        return self._rule.parameters()

    def zero_grad(self) -> None:
        """Drop all gradients; a parameter that had one in a step moves in every step since."""
        self._rule.zero_grad()

    def clip(self, num_samples: int) -> torch.Tensor:
        """Sum the gradients of all processes and clip them; return the norm before clipping.

        It stays on the device, and nothing waits for it. The bound holds for a step of the
        reference size. As the noise of a mean over N samples, it grows with 1 / sqrt(N).

        Args:
            num_samples: of the step, of all processes.
        """
        moving = [p for p in self.parameters() if p.grad is not None]
        self._process_group.sum_([p.grad for p in moving if p.grad is not None])
        noise = math.sqrt(self._config.reference_batch_size / max(num_samples, 1))
        if not moving:
            return torch.zeros((), device=self._ranker.encoder.device)
        return torch.nn.utils.clip_grad_norm_(moving, self._config.max_grad_norm * noise)

    def step(self, num_samples: int) -> None:
        """Take one step, then let the distance to the start fade: exp(-N / memory).

        L2-SP (Li et al., ICML 2018) is decoupled from gradient and learning rate, as AdamW's decay
        is from the gradient.

        Args:
            num_samples: N of the step, of all processes.
        """
        factor = self._schedule.mean(self._num_samples, num_samples)
        self._encoder.lr = factor * self._config.lr
        self._heads.lr = factor * self._config.head_lr
        self._num_samples += num_samples
        self._rule.step(num_samples)
        self._ranker.constrain()
        memory = self._config.l2_sp_samples
        if not memory or not self._start:
            return
        faded = -math.expm1(-num_samples / memory)
        with torch.no_grad():
            torch._foreach_lerp_(list(self._encoder.parameters), self._start, faded)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the optimiser's state on the host, as ``parameter|field`` -> tensor.

        A schedule adds the number of samples stepped over.
        """
        names = {parameter: name for name, parameter in self._named().items()}
        state = {names[parameter]: fields for parameter, fields in self._rule.state().items()}
        tensors = {
            f"{name}|{field}": tensor
            for name, fields in sorted(state.items())
            for field, tensor in sorted(fields.items())
        }
        if not self._schedule.constant:
            tensors[_NUM_SAMPLES] = torch.tensor(self._num_samples, dtype=torch.int64)
        return tensors

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore the state returned by `state`.

        A schedule that is new to it starts at its first sample.

        Raises:
            OptimizerChanged: it is that of another optimiser.
            ValueError: a tensor has another shape than its parameter.
        """
        tensors = dict(tensors)
        num_samples = tensors.pop(_NUM_SAMPLES, torch.zeros((), dtype=torch.int64))
        self._num_samples = 0 if self._schedule.constant else int(num_samples)
        self._check(tensors)
        named = self._named()
        state: defaultdict[torch.nn.Parameter, dict[str, torch.Tensor]] = defaultdict(dict)
        for key, tensor in tensors.items():
            name, _, field = key.partition("|")
            if name not in named and of_value(name):
                continue  # it may be switched off
            if tensor.dim() and tensor.shape != named[name].shape:
                found, expected = tuple(tensor.shape), tuple(named[name].shape)
                raise ValueError(f"{key}: got the shape {found}, expected {expected}")
            state[named[name]][field] = tensor
        self._rule.restore(state)

    def _check(self, tensors: Mapping[str, torch.Tensor]) -> None:
        written = {key.partition("|")[2] for key in tensors}
        for name, field in _FIELD.items():
            if name != self._config.optimizer and field in written:
                raise OptimizerChanged(self._config.optimizer, name)

    def _named(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self._ranker.named_parameters() if p.requires_grad}
