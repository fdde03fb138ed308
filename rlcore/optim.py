"""From a loss to a weight change: backward, accumulate, clip, schedule, step. One optimiser per parameter group.

An update of a group whose batches gave losses sum_i L_i over n items in all:

    g = d/dw [ sum_i L_i / n  +  l1 * sum |w|  +  l2 / 2 * sum w^2 ]
    g <- g * min(1, clip / ||g||),  or  g held within [-clip_value, clip_value]
    w <- step(w, g, lr * schedule(progress) * factor(w), weight_decay)

The penalties count once an update, however many items or batches it has; they act on what weight decay acts on, are no
part of the logged loss, and differ from it in being clipped and scaled by the optimiser as any gradient is (AdamW's
weight decay is neither). ||g|| is over the whole group, whatever the factors of its parameters.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from rlcore import distributed
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.compiling import Compiler
from rlcore.config import OptimConfig
from rlcore.errors import UserError, nearest
from rlcore.fields import explain
from rlcore.parameters import decays, factors, learning
from rlcore.types import Batch, Loss

OPTIMIZERS: dict[str, tuple[Any, tuple[str, ...]]] = {  # by name: torch's class, the settings it takes
    "sgd": (torch.optim.SGD, ("momentum",)),
    "adam": (torch.optim.Adam, ("betas", "eps")),
    "adamw": (torch.optim.AdamW, ("betas", "eps")),
    "rmsprop": (torch.optim.RMSprop, ("momentum", "eps")),
    "radam": (torch.optim.RAdam, ("betas", "eps")),
    "adagrad": (torch.optim.Adagrad, ("eps",)),
}
FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad)
CAPTURABLE = (torch.optim.RMSprop, torch.optim.RAdam)  # the others; a graph of theirs needs their counts as tensors


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


def make_optimizer(
    segments: Sequence[Tensor], decay: Sequence[bool], config: OptimConfig, fused: bool = True, captured: bool = False
) -> torch.optim.Optimizer:
    """Build the named torch optimiser over flat segments, with weight decay on those that ``decay`` tells.

    Args:
        segments: to step.
        decay: of each, whether it decays.
        config: settings.
        fused: with one kernel where torch has one, else of single operations.
        captured: so that its steps can be graphs, with what it keeps on the segments' device; steps of RAdam that are
            none of a graph are then less precise.
    """
    cls, options = OPTIMIZERS[config.name]
    keywords = {name: getattr(config, name) for name in options}
    if not fused:
        keywords["foreach"] = False
    elif cls in FUSED and segments[0].device.type in ("cpu", "cuda"):
        keywords["fused"] = True
    if cls in CAPTURABLE:
        keywords["capturable"] = captured
    groups = [
        {"params": [segment], "weight_decay": config.weight_decay if decayed else 0.0}
        for segment, decayed in zip(segments, decay, strict=True)
    ]
    return cls(groups, lr=config.lr, **keywords)


class Group:
    """The parameters of one group, flat, with their optimiser and the sums of an unfinished accumulation.

    Parameters that differ in decay or in their factor on the learning rate lie in different segments of the flat one;
    there is one segment where nothing differs.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimConfig, compiled: bool = False) -> None:
        self.config = config
        factor = factors(list(parameters), config.scale, config.layer_decay)
        shrinks = bool(config.weight_decay or config.l1 or config.l2)
        parts: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, p in parameters.items():
            decayed = shrinks and (config.decay == "all" or decays(name, p))
            parts.setdefault((decayed, factor[name]), []).append(p)
        self.parameters = [p for part in parts.values() for p in part]
        self.flat = flatten_parameters(self.parameters)
        self.sizes = [sum(p.numel() for p in part) for part in parts.values()]
        self.segments = _segments(self.flat, self.sizes)
        self.decayed = [decayed for decayed, _ in parts]
        self.factors = [factor for _, factor in parts]
        captured = compiled and self.whole and self.flat.device.type == "cuda"
        self.optimizer = make_optimizer(self.segments, self.decayed, config, captured=captured)
        # torch wraps step in profiling and hooks, which cost as much again as a small fused step itself.
        self._step = inspect.unwrap(type(self.optimizer).step).__get__(self.optimizer)
        self.count: Tensor | int = 0  # items whose gradients are summed in flat.grad
        self.batches = 0
        self.compiled: list[str] = []  # shapes of batches, in the order in which they were met
        half = config.precision == "bf16"
        self.precision: AbstractContextManager[Any] = (
            torch.autocast(self.flat.device.type, torch.bfloat16) if half else nullcontext()
        )

    def learn(self, function: Callable[[Batch], Loss], batch: Batch, lr: float) -> tuple[Loss, Tensor, Tensor | None]:
        """Learn from a batch; return its loss, the mean over its items, and the gradient's norm if weights moved."""
        with self.precision:
            out = function(batch)
        self.backward(out if batch.counts else out._replace(total=out.total * 0, count=out.count * 0))
        return out, out.total.detach() / out.count, self.step_if_due(lr)

    def backward(self, loss: Loss) -> None:
        """Add the gradient of the loss's sum, to this group's parameters only."""
        loss.total.backward(inputs=self.parameters)
        self.add(loss.count)

    def add(self, count: Tensor | int) -> None:
        """Note that the gradient of so many items, one batch, was added."""
        self.count = self.count + count
        self.batches += 1

    def step_if_due(self, lr: float) -> Tensor | None:
        """Step once all batches of an update are added; return the norm of the gradient before clipping."""
        return self.step(lr) if self.batches == self.config.accumulate else None

    def condition(self, weights: Tensor, grad: Tensor, count: Tensor | int) -> Tensor:
        """Divide a gradient (P,) by the items, penalise and clip it, in place; return its norm before clipping."""
        config = self.config
        grad.div_(count)
        if config.l1 or config.l2:
            for w, g, decayed in zip(weights.split(self.sizes), grad.split(self.sizes), self.decayed, strict=True):
                if decayed:
                    g.add_(w.sign(), alpha=config.l1).add_(w, alpha=config.l2)
        norm = torch.linalg.vector_norm(grad)
        if config.clip:
            grad.mul_(torch.clamp(config.clip / (norm + 1e-6), max=1.0))
        elif config.clip_value:
            grad.clamp_(-config.clip_value, config.clip_value)
        return norm

    @torch.no_grad()
    def step(self, lr: float) -> Tensor:
        """Sum over ranks, condition the gradient, step and clear; return the norm before clipping."""
        grad = self.flat.grad
        assert grad is not None
        if distributed.size() > 1:
            self.count = torch.as_tensor(self.count, dtype=torch.float32, device=grad.device).clone()
            distributed.sum_(grad, self.count)
        norm = self.condition(self.flat, grad, self.count)
        for settings, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            settings["lr"] = lr * factor
        self._step()
        grad.zero_()
        self.count, self.batches = 0, 0
        return norm

    @property
    def whole(self) -> bool:
        """Whether a batch is an update: nothing is to be added to its gradient before the step."""
        return self.config.accumulate == 1 and distributed.size() == 1

    @property
    def moments(self) -> list[list[str]]:
        """The names of the tensors that the optimiser keeps of each segment; empty before the first step."""
        state = self.optimizer.state
        return [[k for k, v in state[s].items() if isinstance(v, Tensor)] if s in state else [] for s in self.segments]

    @property
    def ready(self) -> bool:
        """Whether the optimiser has made the tensors that it keeps, as its first step does."""
        return len(self.optimizer.state) == len(self.segments) or (
            self.config.name == "sgd" and not self.config.momentum
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's moments, (P,) each, and what an unfinished accumulation has summed."""
        states = list(self.optimizer.state_dict()["state"].values())
        moments = dict(states[0]) if states else {}
        for name, value in moments.items():  # numbers of steps are the same for all segments
            if len(states) > 1 and isinstance(value, Tensor) and value.dim():
                moments[name] = torch.cat([state[name] for state in states])
        return {
            "optimizer": moments,
            "grad": self.flat.grad,
            "count": self.count,
            "batches": self.batches,
            "compiled": self.compiled,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore in place: the parameters stay views of the flat one."""
        full, moments = self.optimizer.state_dict(), state["optimizer"]
        sizes = [segment.numel() for segment in self.segments]
        full["state"] = {i: {} for i in range(len(sizes))} if moments else {}
        for name, value in moments.items():
            flat = isinstance(value, Tensor) and value.dim()
            # A copy of its own is aligned as torch aligns, so kernels round as before.
            parts = [part.clone() for part in value.split(sizes)] if flat else [copy.deepcopy(value) for _ in sizes]
            for i, part in enumerate(parts):
                full["state"][i][name] = part
        self.optimizer.load_state_dict(full)
        assert self.flat.grad is not None
        self.flat.grad.copy_(state["grad"])
        self.count, self.batches = state["count"], state["batches"]
        self.compiled = list(state.get("compiled", []))


def _segments(flat: nn.Parameter, sizes: Sequence[int]) -> list[nn.Parameter]:
    """Return parameters that are views of consecutive parts of a flat one, as their gradients are of its."""
    assert flat.grad is not None
    segments = [nn.Parameter(part) for part in flat.data.split(sizes)]
    for segment, grad in zip(segments, flat.grad.split(sizes), strict=True):
        segment.grad = grad
    return segments


class Optim:
    """Turns the losses of an agent's phases into weight changes.

    Raises:
        UserError: the settings name a group or parameters that the agent does not have, or freeze a whole group.
    """

    def __init__(self, agent: Agent, config: OptimConfig, compiled: bool = False) -> None:
        own = {id(p): name for name, p in agent.named_parameters()}
        groups = {name: {own[id(p)]: p for p in group} for name, group in agent.groups().items() if group}
        for name in config.groups:
            if name not in groups:
                raise UserError(f"optim.groups.{name} is not a parameter group of the agent{nearest(name, groups)}")
        configs = {name: _for_group(config, name) for name in groups}
        self.groups = {name: Group(named, configs[name], compiled) for name, named in learning(groups, configs).items()}
        self.compiler = Compiler(agent) if compiled else None

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
            group, lr = self.groups[name], self.lr(name, clock)
            learnt = self.compiler.learn(group, function, batch, lr) if self.compiler else None
            out, mean, norm = learnt or group.learn(function, batch, lr)
            priority = priority if out.priority is None else out.priority
            suffix = "" if len(self.groups) == 1 else f"/{name}"  # a name stays when other phases wait for their turn
            metrics["loss" + suffix] = mean
            if norm is not None:
                stepped = True
                metrics["grad_norm" + suffix] = norm
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


def redistributed(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what this rank loads of the states that another number of ranks saved.

    Moments are the same on all; what unfinished accumulations have summed goes to rank 0 together.
    """
    result: dict[str, Any] = {}
    for name, state in states[0].items():
        parts = [of_rank[name] for of_rank in states if distributed.rank() == 0]
        grad = sum((part["grad"] for part in parts), torch.zeros_like(state["grad"]))
        result[name] = {**state, "grad": grad, "count": sum(part["count"] for part in parts)}
    return result


def _for_group(config: OptimConfig, name: str) -> OptimConfig:
    own = config.groups.get(name, {})
    try:
        return OptimConfig.model_validate({**config.model_dump(), "groups": {}, **own})
    except ValidationError as error:
        raise UserError(explain(error, OptimConfig, f"optim.groups.{name}.")) from None
