"""A parameter group of K agents: their weights, gradients and moments as rows, conditioned and stepped at once.

What `rlcore.optim.Group` does for one agent is done here rowwise, over (K, P), for all.
"""

# pyright: reportPrivateImportUsage=false
# The _foreach operations have no public name, see `rlcore.targets`.

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.optim import Group, make_optimizer

_ALIGNED = 16  # float32 numbers: rows begin where kernels that read many numbers at once begin


class Rows:
    """The same parameter group of K agents: weights and gradients (K, P), one optimiser step for all rows.

    Args:
        groups: of the agents.
        size: K; rows beyond the groups begin as the first.
    """

    def __init__(self, groups: Sequence[Group], size: int) -> None:
        self.groups = list(groups)
        self.config, self.factors, self.decayed = groups[0].config, groups[0].factors, groups[0].decayed
        self.first = list(groups[0].parameters)
        self.whole, self.whole_grad = _rebound(groups, size)  # (K, P and padding, which stays zero)
        p = groups[0].flat.numel()
        self.flat, self.grad = self.whole[:, :p], self.whole_grad[:, :p]
        sizes = [p.numel() for p in self.first]
        self.sizes = groups[0].sizes
        self.leaves = [
            part.view(size, *p.shape).detach().requires_grad_()
            for p, part in zip(self.first, self.flat.split(sizes, 1), strict=True)
        ]
        self.grads = [g.view(size, *p.shape) for p, g in zip(self.first, self.grad.split(sizes, 1), strict=True)]
        segments = [group.segments for group in groups]
        self.optimizer = make_optimizer(segments[0], groups[0].decayed, groups[0].config)
        self.segments: list[list[nn.Parameter]] = [list(row) for row in zip(*segments, strict=True)]  # [segment][k]
        for group in groups:
            for segment in group.segments:
                self.optimizer.state[segment] = group.optimizer.state[segment]  # the very dict, if still empty
        self._step = _bare(self.optimizer)
        self._joint: Callable[[], object] | None = None  # steps all rows as one tensor
        self._settings: dict[str, Any] = {}  # of that
        self._steps: Tensor | None = None  # (K,) taken, where the optimiser counts them
        self._unite()

    def _unite(self) -> None:
        """Make the moments of all agents rows of common ones, if they have any yet and lie in one segment."""
        states = [self.optimizer.state[segment] for segment in self.segments[0]]
        none = self.config.name == "sgd" and not self.config.momentum
        if len(self.segments) > 1 or not (none or all(states)):
            return
        optimizer = make_optimizer([self.whole], self.decayed, self.config)
        state = optimizer.state[self.whole]
        state.clear()
        for name, first in states[0].items():
            if not isinstance(first, Tensor):
                continue
            rows = torch.zeros_like(self.whole) if first.dim() else first.new_zeros(len(self.whole))
            for own, row in zip(states, rows, strict=False):
                own[name] = (row[: first.numel()] if first.dim() else row).copy_(own[name])
            rows[len(states) :] = rows[0]
            if first.dim():
                state[name] = rows
            else:
                self._steps, state[name] = rows, rows[0]
        self.whole.grad = self.whole_grad
        self._settings, self._joint = optimizer.param_groups[0], _bare(optimizer)

    def step(self, gradients: list[Tensor], count: Tensor | int, lrs: Sequence[float]) -> Tensor:
        """Do what `Group` does in its step, rowwise; return the norms (K,) before clipping."""
        with torch.no_grad():
            torch._foreach_copy_(self.grads, gradients)
            norm = self._condition(count)
            # Else some have learnt alone.
            even = self._steps is None or len(set(self._steps[: len(self.groups)].tolist())) == 1
            if self._joint is not None and even and len(set(lrs)) == 1:
                self._settings["lr"] = lrs[0] * self.factors[0]
                self._joint()
                if self._steps is not None:
                    self._steps[1:] += 1  # the first is the optimiser's own
            else:
                self._step_rows(lrs)
            self.whole_grad.zero_()
        return norm

    def _step_rows(self, lrs: Sequence[float]) -> None:
        """Step each row with its own moments, those of one learning rate at once."""
        for lr in dict.fromkeys(lrs):
            rows = [k for k, own in enumerate(lrs) if own == lr]
            for settings, factor, segments in zip(
                self.optimizer.param_groups, self.factors, self.segments, strict=True
            ):
                settings["lr"] = lr * factor
                settings["params"] = [segments[k] for k in rows]
            self._step()
        if self._joint is None:
            self._unite()

    def _condition(self, count: Tensor | int) -> Tensor:
        """Divide by the items, penalise and clip the gradients, each row by its own norm, in place; return these."""
        config, grad = self.config, self.whole_grad
        grad.div_(count.unsqueeze(1) if isinstance(count, Tensor) else count)
        if config.l1 or config.l2:
            parts = zip(self.flat.split(self.sizes, 1), self.grad.split(self.sizes, 1), self.decayed, strict=True)
            for w, g in [(w, g) for w, g, decayed in parts if decayed]:
                g.add_(w.sign(), alpha=config.l1).add_(w, alpha=config.l2)
        norm = torch.linalg.vector_norm(grad, dim=1)
        if config.clip:
            grad.mul_(torch.clamp(config.clip / (norm + 1e-6), max=1.0).unsqueeze(1))
        elif config.clip_value:
            grad.clamp_(-config.clip_value, config.clip_value)
        return norm


def _bare(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """Return an optimiser's step without its profiling and hooks, see `rlcore.optim.Group`."""
    return inspect.unwrap(type(optimizer).step).__get__(optimizer)


@torch.no_grad()
def _rebound(groups: Sequence[Group], size: int) -> tuple[Tensor, Tensor]:
    """Stack the weights and the gradients of groups, padded, and make the groups' own views of the rows."""
    p = groups[0].flat.numel()
    wide = -(-p // _ALIGNED) * _ALIGNED
    flat, grad = (groups[0].flat.new_zeros(size, wide).detach() for _ in range(2))
    for weights, gradient, group in zip(flat[:, :p], grad[:, :p], groups, strict=False):
        weights.copy_(group.flat)
        gradient.copy_(group.flat.grad)  # pyright: ignore[reportArgumentType]
        for owners in (group.parameters, group.segments):
            sizes = [own.numel() for own in owners]
            for own, w, g in zip(owners, weights.split(sizes), gradient.split(sizes), strict=True):
                own.data, own.grad = w.view(own.shape), g.view(own.shape)
        group.flat.data, group.flat.grad = weights, gradient
    flat[len(groups) :], grad[len(groups) :] = flat[0].clone(), grad[0].clone()
    return flat, grad
