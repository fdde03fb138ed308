"""An update compiled into one graph: loss, backward, division by the count, penalties, clipping, optimiser step.

The graph is traced from the code that runs uncompiled: the agent's own loss, `Group.condition`, and the step of torch's
own optimiser. It reads and writes the tensors of the module and of the optimiser in place, so nothing else in a run
knows of it, and checkpoints are the same. Each phase has a graph per shape of batch, up to `SHAPES`.
"""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rlcore import compiled_graph, graphs
from rlcore.agent import Agent
from rlcore.config import Config, DatasetConfig, ReplayConfig
from rlcore.errors import UserError
from rlcore.functional import FunctionalLoss
from rlcore.tree import signature, tmap
from rlcore.types import Batch, Loss

if TYPE_CHECKING:
    from rlcore.optim import Group

REPAYS = 20_000  # planned updates from which compiling is worth its time, see docs/TRAINING.md
SHAPES = 4  # of batches, for which a phase is compiled; others run as they would without


def why_not(device: str) -> str | None:
    """Return why updates cannot be compiled for a device, in a clause; None: they can."""
    if device.startswith("mps"):
        return "device mps is not compiled for"
    if device.startswith("cuda"):
        return None if find_spec("triton") else "the package triton is not installed"
    return why_no_cpp()


@functools.cache
def why_no_cpp() -> str | None:
    """Return why C++ that torch generates cannot be compiled, in a clause; None: it can."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or shutil.which(compiler) is None:
        return f"no C++ compiler is installed (looked for {compiler or 'g++ and clang++'})"
    command = [compiler, "-x", "c++", "-", "-fopenmp", "-I", sysconfig.get_paths()["include"], "-o", os.devnull]
    with tempfile.TemporaryDirectory() as folder:
        command[-1] = str(Path(folder) / "probe.so")
        code = "#include <Python.h>\n#include <omp.h>\nint f() { return omp_get_num_threads(); }\n"
        tried = subprocess.run([*command, "-shared", "-fPIC"], input=code, text=True, capture_output=True, check=False)
    if tried.returncode:
        first = tried.stderr.strip().partition("\n")[0]
        return f"the C++ compiler {compiler} fails{f': {first}' if first else ''}"
    return None


def planned_updates(config: Config[Any]) -> float:
    """Return the updates that a run plans: those of its schedules' horizon, after which it may stop."""
    source, frames = config.source, min(config.budget.frames, config.budget.horizon or config.budget.frames)
    if isinstance(source, ReplayConfig):
        return (frames - source.learning_starts) * source.updates_per_frame / config.optim.accumulate
    if isinstance(source, DatasetConfig):
        return frames / (source.batch_size or frames) / config.optim.accumulate
    rollouts = frames / (source.horizon * config.env.num_envs)
    return rollouts * source.epochs * source.minibatches / config.optim.accumulate


def resolved(config: Config[Any]) -> Config[Any]:
    """Return a new run's settings with ``compile`` on or off: auto is on where it repays itself and is possible.

    Raises:
        UserError: it is on and not possible.
    """
    repays = config.compile == "auto" and planned_updates(config) >= REPAYS
    return chosen(config, "on" if repays and not why_not(config.device) else "off")


def chosen(config: Config[Any], choice: Literal["auto", "on", "off"]) -> Config[Any]:
    """Return the settings with ``choice`` (of a new run, or of the one that goes on) in place of auto.

    Raises:
        UserError: updates are to be compiled, and cannot be.
    """
    if config.compile == "auto":
        config = config.model_copy(update={"compile": choice})
    if config.compile == "on" and (reason := why_not(config.device)):
        raise UserError(f"compile: got 'on', expected off: {reason}")
    return config


Learnt = tuple[Loss, Tensor, Tensor | None]  # the loss, its mean, the gradient's norm where the weights moved


class Compiler:
    """Compiles the phases of one agent, each when it first meets a shape of batch."""

    def __init__(self, agent: Agent) -> None:
        compiled_graph.prepare()
        self.agent = agent
        self.names = {id(p): name for name, p in agent.named_parameters()}
        self.updates: dict[Any, Update | None] = {}  # None: cannot be compiled

    def learn(self, group: Group, function: Callable[[Batch], Loss], batch: Batch, lr: float) -> Learnt | None:
        """Do a phase's update as `Group.learn` does, compiled; None: it is to be done uncompiled."""
        if getattr(function, "__self__", None) is not self.agent or not batch.counts:
            return None
        if group.whole and not group.ready:  # the first step makes what the optimiser keeps
            return None
        inputs: list[Tensor] = []
        key = (function.__name__, group.whole, signature((batch.data, batch.knobs, batch.noise), inputs))
        if key not in self.updates:
            # What is compiled goes by the order in which shapes are met, so it is kept for a resume.
            text = repr(key)
            if text not in group.compiled:
                if len(group.compiled) == SHAPES:
                    return None
                group.compiled.append(text)
            self.updates[key] = self._compiled(group, function, batch)
        made = self.updates[key]
        return None if made is None else made(inputs, lr)

    def _compiled(self, group: Group, function: Callable[[Batch], Loss], batch: Batch) -> Update | None:
        named = {self.names[id(p)]: p for p in group.parameters}
        rest = {k: v for k, v in compiled_graph.named_tensors(self.agent) if k not in named}
        loss = FunctionalLoss(self.agent, function, named)
        what = f"{type(self.agent).__name__}.{function.__name__} runs"
        return compiled_graph.attempted(what, lambda: Update(group, loss, rest, batch))


class Update:
    """One phase's update for one shape of batch."""

    def __init__(self, group: Group, loss: FunctionalLoss, rest: dict[str, Tensor], batch: Batch) -> None:
        self.group = group
        self.moments = group.moments if group.whole else []  # names of the tensors of each segment
        self.lr = torch.zeros((), dtype=torch.float64, device=group.flat.device)
        self.form: Any = None  # what comes out, with ... for the tensors
        tree = (batch.data, batch.knobs, batch.noise)
        inputs: list[Tensor] = []
        signature(tree, inputs)
        count = len(rest)

        def traced(*tensors: Tensor) -> list[Tensor]:
            own = iter(tensors)
            flat, grad, lr = next(own), next(own), next(own)
            moments = [{name: next(own) for name in names} for names in self.moments]
            named = {name: next(own) for name in rest}
            again = Batch(*tmap(lambda _: next(own), tree))
            out, *more = learn(group, loss, flat, grad, lr, moments, named, again)
            self.form, results = compiled_graph.split((out, *more))
            return results

        self.fixed = [group.flat.detach(), group.flat.grad, self.lr]
        tensors = [*self.fixed, *self._kept(), *(p.detach() for p in rest.values()), *inputs]
        self.rest = tensors[-len(inputs) - count : -len(inputs)] if inputs else tensors[-count:]
        self.run = graphs.replayed(compiled_graph.compile_graph(traced, tensors), tensors, len(inputs))

    def __call__(self, inputs: Sequence[Tensor], lr: float) -> Learnt:
        """Learn; return the loss, its mean, and the gradient's norm where the weights moved."""
        self.lr.fill_(lr)
        with torch.no_grad():
            results = iter(self.run([*self.fixed, *self._kept(), *self.rest, *inputs]))
        out, mean, norm = tmap(lambda x: next(results) if x is ... else x, self.form)
        if not self.group.whole:
            self.group.add(out.count)
            norm = self.group.step_if_due(lr)
        return out, mean, norm

    def _kept(self) -> list[Tensor]:
        """Return the optimiser's tensors, which loading a checkpoint replaces."""
        state, segments = self.group.optimizer.state, self.group.segments
        return [state[segment][name] for segment, names in zip(segments, self.moments, strict=False) for name in names]


def learn(
    group: Group,
    loss: FunctionalLoss,
    flat: Tensor,
    total: Tensor,
    lr: Tensor,
    moments: list[dict[str, Tensor]],
    rest: dict[str, Tensor],
    batch: Batch,
) -> Learnt:
    """Do a phase's update on tensors given, in place: what `Optim.update` does on those of module and optimiser."""
    leaf = flat.detach().requires_grad_()
    with group.precision:
        out = loss(leaf, rest, batch)
    (grad,) = torch.autograd.grad(out.total, leaf)
    norm = None
    with torch.no_grad():
        if group.whole:
            norm = group.condition(flat, grad, out.count)
            step(group, flat, grad, lr, moments)
        else:  # further batches, or ranks, are to be added
            total.add_(grad)
        return tmap(lambda x: x.detach() if isinstance(x, Tensor) else x, (out, out.total / out.count, norm))


def step(group: Group, flat: Tensor, grad: Tensor, lr: Tensor, moments: list[dict[str, Tensor]]) -> None:
    """Step torch's own optimiser on tensors given: flat and grad (P,), lr (), moments of each segment."""
    from rlcore.optim import make_optimizer

    segments: Any = flat.detach().split(group.sizes)
    optimizer = make_optimizer(segments, group.decayed, group.config, fused=False, captured=True)
    parts = zip(optimizer.param_groups, segments, grad.split(group.sizes), group.factors, moments, strict=True)
    counts: list[tuple[Tensor, Tensor]] = []
    for settings, segment, gradient, factor, state in parts:
        segment.grad = gradient
        settings["lr"] = lr * factor
        exact = {name: x if x.dim() else x.double() for name, x in state.items()}
        counts += [(x, exact[name]) for name, x in state.items() if not x.dim()]
        optimizer.state[segment] = exact
    # Told that it is compiled, an optimiser leaves numbers in tensors; its count of steps is as precise as Python's.
    with torch.compiler._compile_session_context(), _Numbers():
        inspect.unwrap(type(optimizer).step)(optimizer)
    for count, exact in counts:
        count.copy_(exact)


class _Numbers(TorchFunctionMode):
    """Lets torch's optimisers take tensors where they expect numbers, to be traced."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(x, Tensor) and x.dim() for x in args):
            args = tuple(_held(x) for x in args)
            kwargs = {name: _held(x) for name, x in kwargs.items()}
        if func is Tensor.add_ and isinstance(kwargs.get("alpha"), Tensor):
            return args[0].add_(args[1] * kwargs["alpha"])
        if func is Tensor.addcdiv_ and isinstance(kwargs.get("value"), Tensor):
            return args[0].add_(args[1] / args[2] * kwargs["value"])
        return func(*args, **kwargs)


def _held(x: Any) -> Any:
    """Return ``x`` as it is, a number () as a reduction: generated code makes that once, not in the loop that reads it.

    Adam's powers and roots, done again for every few weights, would take longer than all the rest of its step.
    """
    return x.expand(16).amax() if isinstance(x, Tensor) and x.dim() == 0 else x
