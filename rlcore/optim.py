"""From a loss to a weight change: backward, accumulate, clip, schedule, step. One optimiser per parameter group."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.config import OptimConfig
from rlcore.errors import UserError, nearest
from rlcore.fields import explain
from rlcore.types import Batch, Loss

OPTIMIZERS: dict[str, tuple[Any, tuple[str, ...]]] = {  # by name: torch's class, the settings it takes
    "sgd": (torch.optim.SGD, ("momentum",)),
    "adam": (torch.optim.Adam, ("eps",)),
    "adamw": (torch.optim.AdamW, ("eps",)),
    "rmsprop": (torch.optim.RMSprop, ("momentum", "eps")),
    "radam": (torch.optim.RAdam, ("eps",)),
    "adagrad": (torch.optim.Adagrad, ("eps",)),
}
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)


def flatten_parameters(parameters: Sequence[nn.Parameter]) -> nn.Parameter:
    """Make parameters (and their gradients) views of one flat parameter, which is returned.

    Clipping and stepping then cost a handful of operations however many layers there are.
    Optimisers work element by element, so the result is the same.
    """
    flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
    flat.grad = torch.zeros_like(flat)
    start = 0
    for p in parameters:
        end = start + p.numel()
        p.data = flat.data[start:end].view(p.shape)
        p.grad = flat.grad[start:end].view(p.shape)
        start = end
    return flat


def make_optimizer(flat: nn.Parameter, config: OptimConfig) -> torch.optim.Optimizer:
    """Build the named torch optimiser over one flat parameter."""
    cls, options = OPTIMIZERS[config.name]
    keywords = {name: getattr(config, name) for name in options}
    if cls in FUSED and flat.device.type in ("cpu", "cuda"):
        keywords["fused"] = True
    return cls([flat], lr=config.lr, weight_decay=config.weight_decay, **keywords)


class Group:
    """The parameters of one group, flat, with their optimiser and the sums of an unfinished accumulation."""

    def __init__(self, parameters: Sequence[nn.Parameter], config: OptimConfig) -> None:
        self.config = config
        self.parameters = list(parameters)
        self.flat = flatten_parameters(self.parameters)
        self.optimizer = make_optimizer(self.flat, config)
        # torch wraps step in profiling and hooks, which cost as much again as a small fused step itself.
        self._step = inspect.unwrap(type(self.optimizer).step).__get__(self.optimizer)
        self.count: Tensor | int = 0  # items whose gradients are summed in flat.grad
        self.batches = 0

    def backward(self, loss: Loss) -> None:
        """Add the gradient of the loss's sum, to this group's parameters only."""
        loss.total.backward(inputs=self.parameters)
        self.count = self.count + loss.count
        self.batches += 1

    @torch.no_grad()
    def step(self, lr: float) -> Tensor:
        """Divide by the items, clip, step and clear; return the norm of the gradient before clipping."""
        grad = self.flat.grad
        assert grad is not None
        grad.div_(self.count)
        norm = torch.linalg.vector_norm(grad)
        if self.config.clip:
            grad.mul_(torch.clamp(self.config.clip / (norm + 1e-6), max=1.0))
        self.optimizer.param_groups[0]["lr"] = lr
        self._step()
        grad.zero_()
        self.count, self.batches = 0, 0
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's moments and what an unfinished accumulation has summed."""
        return {
            "optimizer": dict(self.optimizer.state_dict()["state"].get(0, {})),
            "grad": self.flat.grad,
            "count": self.count,
            "batches": self.batches,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore in place: the parameters stay views of the flat one."""
        full = self.optimizer.state_dict()
        full["state"] = {0: state["optimizer"]} if state["optimizer"] else {}
        self.optimizer.load_state_dict(full)
        assert self.flat.grad is not None
        self.flat.grad.copy_(state["grad"])
        self.count, self.batches = state["count"], state["batches"]


class Optim:
    """Turns the losses of an agent's phases into weight changes.

    Raises:
        UserError: the settings name a group that the agent does not have.
    """

    def __init__(self, agent: Agent, config: OptimConfig) -> None:
        parameters = {name: group for name, group in agent.groups().items() if group}
        for name in config.groups:
            if name not in parameters:
                raise UserError(f"optim.groups.{name} is not a parameter group of the agent{nearest(name, parameters)}")
        self.config = config
        self.groups = {name: Group(group, _for_group(config, name)) for name, group in parameters.items()}

    def lr(self, group: str, clock: Clock) -> float:
        """Return the learning rate of a group, that of the iteration's start: the last one learns, too."""
        config = self.groups[group].config
        return config.lr * config.schedule(min(1.0, clock.iterated / clock.horizon))

    def update(self, agent: Agent, batch: Batch, clock: Clock) -> tuple[Loss, bool]:
        """Run the agent's phases on a batch.

        Returns:
            The last phase's loss with the metrics of all and the priority of the last that gave one, and whether
            any weight moved (an accumulation may still be unfinished).
        """
        metrics: dict[str, Tensor] = {}
        out, priority, stepped = None, None, False
        for name, function in agent.phases(clock.updates):
            group = self.groups[name]
            out = function(batch)
            group.backward(out)
            priority = priority if out.priority is None else out.priority
            suffix = "" if len(self.groups) == 1 else f"/{name}"  # a name stays when other phases wait for their turn
            metrics["loss" + suffix] = out.total.detach() / out.count
            if group.batches == group.config.accumulate:
                stepped = True
                metrics["grad_norm" + suffix] = group.step(self.lr(name, clock))
            metrics.update(out.metrics)
        if out is None:
            raise ValueError(f"{type(agent).__name__}.phases returned none; expected at least one")
        return out._replace(metrics=metrics, priority=priority), stepped

    def state_dict(self) -> dict[str, Any]:
        """Return every group's state."""
        return {name: group.state_dict() for name, group in self.groups.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore every group's state."""
        for name, group in self.groups.items():
            group.load_state_dict(state[name])


def _for_group(config: OptimConfig, name: str) -> OptimConfig:
    own = config.groups.get(name, {})
    try:
        return OptimConfig.model_validate({**config.model_dump(), "groups": {}, **own})
    except ValidationError as error:
        raise UserError(explain(error, OptimConfig, f"optim.groups.{name}.")) from None
