"""AdamW with clipped gradients and L2-SP."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from learner.config import LearnerConfig
from learner.process_group import ProcessGroup
from learner.ranker import Ranker


class Optimizer:
    """Owner of everything that one update of the parameters changes."""

    def __init__(self, config: LearnerConfig, ranker: Ranker, process_group: ProcessGroup) -> None:
        """Start at the parameters as they are; L2-SP pulls the encoder towards them."""
        self._config = config
        self._ranker = ranker
        self._process_group = process_group
        encoder = ranker.encoder.trainable_parameters()
        heads = list(ranker.heads().values())
        self._start = [p.detach().clone() for p in encoder]
        groups = [
            {"params": encoder, "lr": config.lr, "weight_decay": config.weight_decay},
            {"params": heads, "lr": config.head_lr, "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(groups, lr=config.lr)

    def parameters(self) -> list[torch.nn.Parameter]:
        """Return every parameter that moves, always in one order."""
        return [p for group in self._adamw.param_groups for p in group["params"]]

    def zero_grad(self) -> None:
        """Set gradients to zero; a parameter that never had one keeps none."""
        self._adamw.zero_grad(set_to_none=False)

    def clip(self) -> float:
        """Sum the gradients of all processes and clip them; return the norm before clipping."""
        moving = [p for p in self.parameters() if p.grad is not None]
        self._process_group.sum_([p.grad for p in moving if p.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(moving, self._config.max_grad_norm)
        return float(norm)

    def step(self) -> None:
        """Take one AdamW step.

        L2-SP (Li et al., ICML 2018) is decoupled from the gradient, as AdamW's decay is: the start
        is remembered for 1 / (lr l2_sp) steps.
        """
        self._adamw.step()
        self._ranker.constrain()
        rate = min(1.0, self._config.lr * self._config.l2_sp)
        encoder = self._ranker.encoder.trainable_parameters()
        with torch.no_grad():
            for parameter, start in zip(encoder, self._start, strict=True):
                parameter.lerp_(start, rate)

    def state(self) -> dict[str, torch.Tensor]:
        """Return AdamW's state on the host, as ``parameter|field`` -> tensor."""
        state = self._adamw.state
        return {
            f"{name}|{field}": state[parameter][field].detach().cpu()
            for name, parameter in sorted(self._named().items())
            if parameter in state
            for field in sorted(state[parameter])
        }

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore the state returned by `state`."""
        named = self._named()
        self._adamw.state.clear()
        for key, tensor in tensors.items():
            name, _, field = key.partition("|")
            parameter = named[name]
            # AdamW counts steps on the host
            device = tensor.device if field == "step" else parameter.device
            self._adamw.state[parameter][field] = tensor.to(device).clone()

    def _named(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self._ranker.named_parameters() if p.requires_grad}
