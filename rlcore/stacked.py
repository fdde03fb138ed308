"""K agents of one structure updated as one batched computation: every tensor of theirs is a row of a stacked one.

With w (K, P) the weights of a parameter group, row k those of agent k, and B_k the batch of agent k:

    L_k = loss(w_k, B_k)                              one vectorised call over k, see `rlcore.batched`
    g = d/dw sum_k L_k                                one backward pass: row k is the gradient of L_k alone
    g_k <- g_k / n_k, clipped by its own norm         rowwise
    w_k <- step(w_k, g_k, lr_k)                       one step of torch's optimiser, with the K own states

Nothing is copied from update to update: an agent's own parameters, buffers and gradients are views of its row, and its
optimiser's moments are rows of those that the common step moves. So everything that knows a single agent (acting,
evaluation, checkpoints) goes on as if it were alone, and so may the agent itself.
"""

# pyright: reportPrivateImportUsage=false
# The _foreach operations have no public name, see `rlcore.targets`.

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlcore import compiled_graph, graphs
from rlcore.agent import Agent
from rlcore.batched import traced, vmapped
from rlcore.errors import UserError
from rlcore.meter import Table
from rlcore.overheads import flushed
from rlcore.stacked_rows import Rows
from rlcore.trainer import Trainer
from rlcore.tree import leaves, tmap
from rlcore.types import Batch, Loss

SHAPES = 4  # of batches, for which a phase is traced; others cost more
_RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


Compiled = dict[Any, "tuple[Callable[[list[Tensor]], Any], list[Any]] | None"]  # by phase and shapes; None: cannot be


class Stack:
    """The agents of K trainers of one recipe, their tensors stacked.

    Args:
        trainers: of equal settings but for their seeds; one update from now on moves them all.
        size: rows, at least as many as trainers; those beyond begin as the first and learn from its batches.
        compiled: losses and gradients that are compiled already, for any stack of the same recipe, to which those that
            this one compiles are added; None: they are not to be.

    Raises:
        UserError: something of the agent or its settings can only be trained alone.
    """

    def __init__(self, trainers: Sequence[Trainer], size: int = 0, compiled: Compiled | None = None) -> None:
        self.trainers, self.size, self.compiled = list(trainers), size or len(trainers), compiled
        agents = [trainer.agent for trainer in trainers]
        _require_stackable(self.trainers)
        if compiled is not None:
            compiled_graph.prepare()
        self.model = copy.deepcopy(agents[0])  # whose tensors are the stacked ones
        names = trainers[0].optim.groups
        self.groups = {name: Rows([t.optim.groups[name] for t in trainers], self.size) for name in names}
        stacked: dict[int, Tensor] = {}
        for group in self.groups.values():
            stacked.update(zip(map(id, group.first), group.leaves, strict=True))
        self.slots: list[tuple[dict[str, Any], str]] = []  # of the model, one for each of the stacked tensors
        self.tensors: list[Tensor] = []  # (K, ...)
        for (slots, name), *own in zip(*map(slots_of, (self.model, *agents)), strict=True):
            ones = [theirs[name] for theirs, name in own]
            if id(ones[0]) not in stacked:
                stacked[id(ones[0])] = _bound(ones, self.size)
            slots[name] = stacked[id(ones[0])]
            self.slots.append((slots, name))
            self.tensors.append(slots[name])
        self._table = Table()  # of all agents' metrics
        self._graphs: dict[Any, Any] = {}  # by phase and shapes: the loss's form, and what computes it
        self._proven: set[str] = set()  # phases whose losses were compared with the agents' own

    @flushed
    def update(self, batches: Sequence[Batch]) -> list[Loss]:
        """Learn from a batch each, as `Trainer.update` does, and return the losses; the metrics are in the meters.

        Agents whose batches differ in shape, or whose phases differ, learn alone this time.
        """
        trainers, clock = self.trainers, self.trainers[0].clock
        together = all(t.clock == clock for t in trainers)
        doubles = [batches[0]] * (self.size - len(batches))
        batch = _stacked([*batches, *doubles]) if together or self._alike() else None
        if batch is None:
            return [trainer.update(batch) for trainer, batch in zip(trainers, batches, strict=True)]
        outs, metrics = self._learn(batch, batches, together)
        entry = self._table.put(metrics)
        for k, trainer in enumerate(trainers):
            trainer.clock.updates += 1
            trainer.meter.note(trainer.clock.updates, entry, k)
        if together:
            self.model.after_update(clock)
        else:
            for trainer in trainers:
                trainer.agent.after_update(trainer.clock)
        for trainer in trainers:
            trainer.clock.updated = trainer.clock.frames
        return outs

    def _alike(self) -> bool:
        names = [[name for name, _ in t.agent.phases(t.clock.updates)] for t in self.trainers]
        return all(one == names[0] for one in names)

    def _learn(self, batch: Batch, batches: Sequence[Batch], together: bool) -> tuple[list[Loss], dict[str, Tensor]]:
        """Run all phases, as `rlcore.optim.Optim.update` does; return each agent's last loss, and all metrics (K,).

        ``together``: all clocks agree.
        """
        trainers, k = self.trainers, self.size
        metrics: dict[str, Tensor] = {}  # each (K,)
        priority: Tensor | None = None
        out: Loss | None = None
        for name, function in self.model.phases(trainers[0].clock.updates):
            group = self.groups[name]
            out, gradients = self._loss(name, function, batch)
            self._prove(name, out.total, batches)
            priority = priority if out.priority is None else out.priority
            suffix = "" if len(self.groups) == 1 else f"/{name}"
            metrics["loss" + suffix] = out.total.detach() / out.count
            lrs = [t.optim.lr(name, t.clock) for t in trainers[: 1 if together else k]]
            lrs *= len(trainers) // len(lrs)
            metrics["grad_norm" + suffix] = group.step(gradients, out.count, lrs)
            metrics.update(out.metrics)
        assert out is not None
        stops = out.stop.unbind() if isinstance(out.stop, Tensor) else [out.stop] * k
        counts = out.count.unbind() if isinstance(out.count, Tensor) else [out.count] * k
        priorities = [None] * k if priority is None else priority.detach().unbind()
        rows = zip(out.total.detach().unbind(), counts, priorities, stops, strict=True)
        losses = [Loss(total, count, {}, p, stop) for total, count, p, stop in rows]
        return losses[: len(trainers)], {name: values.detach() for name, values in metrics.items()}

    def _loss(self, name: str, function: Callable[[Batch], Loss], batch: Batch) -> tuple[Loss, list[Tensor]]:
        """Return a phase's loss with every tensor (K, ...), and the gradients of its group's weights (K, ...)."""
        data = batch.data, batch.knobs, batch.noise
        inputs = [*self.tensors, *leaves(data)]
        key = (name, function, *(x.shape for x in inputs[len(self.tensors) :]))
        form, call = self._graphs.get(key, (None, None))
        if call is None:
            form, pure = self._pure(name, function, data)
            if len(self._graphs) < SHAPES * len(self.groups):
                call = self._guarded(name, lambda: self._made(name, function, pure, form, inputs))
                self._graphs[key] = form, call
            else:
                call = lambda tensors: self._guarded(name, lambda: pure(tensors))  # noqa: E731
        results = iter(call(inputs))
        return tmap(lambda x: next(results) if x is ... else x, form[0]), list(results)

    def _guarded(self, name: str, do: Callable[[], Any]) -> Any:
        """Do something with the model's tensors replaced, and put them back; what cannot be done is a UserError."""
        try:
            return do()
        except RuntimeError as error:
            if name in self._proven:
                raise
            raise alone(self.trainers[0].agent, str(error).splitlines()[0].rstrip(".")) from error
        finally:
            self.place(iter(self.tensors))

    def place(self, tensors: Iterator[Tensor]) -> None:
        """Make the next tensors, as many as the model has and in their order, the model's."""
        for (slots, slot), tensor in zip(self.slots, tensors, strict=False):
            slots[slot] = tensor

    def _pure(self, name: str, function: Callable[[Batch], Loss], data: Any) -> tuple[list[Any], Any]:
        """Return a phase's losses and gradients as a function of tensors, and the loss's form, filled by a call."""
        own = {id(leaf) for leaf in self.groups[name].leaves}
        places = {id(x): i for i, x in enumerate(self.tensors) if id(x) in own}
        places = [places[id(leaf)] for leaf in self.groups[name].leaves]
        form: list[Any] = []

        def run(tensors: list[Tensor]) -> list[Tensor]:
            given = iter(tensors)
            self.place(given)
            out = function(Batch(*tmap(lambda _: next(given), data)))
            results = [out.total]  # first, and the first of the form
            form[:] = [tmap(lambda x: results.append(x) or ... if isinstance(x, Tensor) else x, out)]
            return results

        def call(tensors: list[Tensor]) -> list[Tensor]:
            tensors = list(tensors)
            for i in places:
                tensors[i] = tensors[i].detach().requires_grad_()
            total, *results = vmapped(run, tensors)
            gradients = torch.autograd.grad(total.sum(), [tensors[i] for i in places], materialize_grads=True)
            return [x.detach() for x in (*results, *gradients)]

        return form, call

    def _made(self, name: str, function: Any, pure: Any, form: list[Any], inputs: list[Tensor]) -> Any:
        """Return losses and gradients as a list of operations, or as one compiled graph; fill the loss's form."""
        key = (name, function.__name__, *(x.shape for x in inputs))
        if self.compiled is not None and key not in self.compiled:
            what = f"{type(self.model).__name__}.{function.__name__} of {self.size} seeds runs"
            given = [x.detach() for x in inputs]
            made = compiled_graph.attempted(what, lambda: compiled_graph.compile_graph(lambda *x: pure([*x]), given))
            self.compiled[key] = made and (made, form)
        if found := self.compiled and self.compiled[key]:
            made, form[:] = found
            given = [x.detach() for x in inputs]
            return torch.no_grad()(graphs.replayed(made, given, len(inputs) - len(self.tensors)))
        return traced(pure, inputs)

    def _prove(self, phase: str, totals: Tensor, batches: Sequence[Batch]) -> None:
        """Compare a phase's first losses (K,) with those that the agents compute themselves."""
        if phase in self._proven:
            return
        self._proven.add(phase)
        pairs = zip(self.trainers, batches, strict=True)
        with torch.no_grad():
            own = [dict(t.agent.phases(t.clock.updates))[phase](batch).total for t, batch in pairs]
        if not torch.allclose(torch.stack(own), totals[: len(own)], rtol=1e-3, atol=1e-3, equal_nan=True):
            raise alone(self.trainers[0].agent, "its loss depends on more than its tensors and the batch")


def slots_of(agent: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Return where an agent has its parameters and buffers: dictionaries, and the names in them."""
    kinds = (kind for module in agent.modules() for kind in (module._parameters, module._buffers))
    return [(slots, name) for slots in kinds for name, tensor in slots.items() if tensor is not None]


@torch.no_grad()
def _bound(ones: Sequence[Tensor], size: int) -> Tensor:
    """Stack tensors of agents, (K, ...), and make theirs views of the rows; those beyond begin as the first."""
    rows = torch.stack([one.detach() for one in (*ones, *[ones[0]] * (size - len(ones)))])
    for one, row in zip(ones, rows, strict=False):
        one.data = row
    return rows


def _stacked(batches: Sequence[Batch]) -> Batch | None:
    """Return K batches as one with every tensor (K, ...); None: they differ in shape."""
    columns = list(zip(*[_listed((b.data, b.knobs, b.noise), []) for b in batches], strict=True))
    try:
        given = iter([torch.stack(column) for column in columns])
    except RuntimeError:
        if all(len({x.shape for x in column}) == 1 for column in columns):
            raise
        return None
    first = batches[0]
    return Batch(*tmap(lambda _: next(given), (first.data, first.knobs, first.noise)))


def _listed(tree: Any, into: list[Tensor]) -> list[Tensor]:
    """Add the leaves of a tree to a list and return it: `leaves`, but at a third of the time."""
    for part in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(part, Tensor):
            into.append(part)
        elif part is not None:
            _listed(part, into)
    return into


def _require_stackable(trainers: Sequence[Trainer]) -> None:
    """Check what `torch.vmap` would not tell, or only in the middle of a run."""
    agent, groups = trainers[0].agent, trainers[0].optim.groups.values()
    if any(group.config.accumulate > 1 for group in groups):
        raise alone(agent, "optim.accumulate is above 1")
    if any(group.config.precision != "fp32" for group in groups):
        raise alone(agent, "optim.precision is not fp32")
    for module in agent.modules():
        drawn = isinstance(module, _RANDOM) and module.p > 0
        if drawn or isinstance(module, nn.modules.batchnorm._BatchNorm | nn.RNNBase):
            raise alone(agent, f"it has a layer {type(module).__name__}")


def alone(agent: Agent, why: str) -> UserError:
    """Return the error for agents that cannot be trained together."""
    name = agent.config.name
    return UserError(
        f"--seeds: agent '{name}' with these settings is trained one seed at a time: {why}; expected --seed, or "
        "benchmark.py results RECIPE --seeds A-B --jobs N"
    )
