"""CUDA graphs: a compiled function is recorded once, and then all its kernels are one launch.

What a graph reads and writes lies where it was recorded. Tensors that are the same ones in every call are read and
written in place; those that vary are copied to tensors of their own, laid out alike; results are copied from where they
come to be, for the next call writes there again. Recording runs the function a few times first: what that wrote, and
drew from torch's generators, is undone.

What is compiled is recorded so (`replayed`), and what sources do beside (`Graphs`): storing steps, choosing by
priority, assembling batches, making targets.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rlcore import compiled_graph
from rlcore.tree import leaves, signature, tmap

LAYOUTS = 8  # of what a function is given, for which it is recorded; with others it runs as it is
Run = Callable[[list[Tensor]], Any]  # of tensors, some of which it may write to, to a sequence of tensors


class Record(Protocol):
    """Runs a function and returns what runs it again, and its results, which are written anew each time."""

    def __call__(
        self, function: Callable[[], Any], undo: Callable[[], None], /
    ) -> tuple[Callable[[], Any], list[Tensor]]:
        """Record a function that returns a sequence of tensors; ``undo`` undoes a run of it."""
        ...


def replayed(run: Run, tensors: Sequence[Tensor], varying: int = 0) -> Run:
    """Return a compiled function for what it is called with: as a graph if all that is on CUDA, else as it is.

    What a function does on a CPU no graph of CUDA's does again.

    Args:
        run: the function.
        tensors: it is to be called with, of these shapes; the first ones are always the same.
        varying: how many at the end vary.
    """
    return Replayed(run, varying, record) if all(x.device.type == "cuda" for x in tensors) else run


def record(function: Callable[[], Any], undo: Callable[[], None]) -> tuple[Callable[[], Any], list[Tensor]]:
    """Record a function of no arguments into a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what kernels allocate and look up when they first run is none of the graph's
        for _ in range(3):
            function()
            undo()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_pool()):
        results = [*function()]
    return graph.replay, results


@functools.cache
def _pool() -> Any:
    """Return the memory of all graphs: none needs another's results, which are copied away at once."""
    return torch.cuda.graph_pool_handle()


class Replayed:
    """A function of tensors that is recorded when it is first called, and anew when its fixed tensors are others.

    Args:
        run: the function.
        varying: how many of its last tensors vary.
        record: records.
        changed: how many of its first tensors another run would change further; what else it writes is the same however
            often it runs. None: all that are fixed.
    """

    def __init__(self, run: Run, varying: int, record: Record, changed: int | None = None) -> None:
        self.run, self.varying, self.record, self.changed = run, varying, record, changed
        self._at: Any = None  # where the fixed tensors lay
        self._held: list[Tensor] = []  # what the varying ones are copied to
        self._replay: Callable[[], Any] = list
        self._results: list[Tensor] = []

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """Run the function."""
        self._hold(self.prepare(tensors))
        self._replay()
        return [x.clone() for x in self._results]

    def prepare(self, tensors: list[Tensor]) -> list[Tensor]:
        """Record if that is due; return the tensors that vary."""
        fixed, varying = tensors[: len(tensors) - self.varying], tensors[len(tensors) - self.varying :]
        at = [(x.data_ptr(), x.shape) for x in fixed]
        if at != self._at:
            self._record(fixed, varying)
            self._at = at
        return varying

    def _hold(self, varying: Sequence[Tensor]) -> None:
        for held, x in zip(self._held, varying, strict=True):
            _distinct(held).copy_(_distinct(x))

    def _record(self, fixed: Sequence[Tensor], varying: Sequence[Tensor]) -> None:
        self._held = [_like(x) for x in varying]
        self._hold(varying)
        first = fixed[: self.changed]
        before = [x.clone() for x in first]

        def undo() -> None:
            for x, old in zip(first, before, strict=True):
                x.copy_(old)

        try:
            with torch.random.fork_rng(devices=[x.device for x in (*fixed, *varying)[:1] if x.is_cuda]):
                self._replay, self._results = self.record(lambda: self.run([*fixed, *self._held]), undo)
        finally:
            undo()


def nothing() -> Sequence[Tensor]:
    """Return no tensors."""
    return ()


class Graphs:
    """Functions of trees of tensors, each a graph for every layout of what it is given.

    Args:
        record: records them; None: they are run as they are.
    """

    def __init__(self, record: Record | None = None) -> None:
        self.record = record
        self._made: dict[Any, dict[Any, _Graph | None]] = {}  # by name and layout; None: cannot be recorded

    def __call__(
        self,
        name: str,
        function: Callable[..., Any],
        *given: Any,
        of: object = None,
        places: Callable[[], Sequence[Tensor]] = nothing,
        changed: Callable[[], Sequence[Tensor]] = nothing,
    ) -> Any:
        """Return what the function makes of trees of tensors; a recorded one is given numbers as tensors ().

        Nothing in it may wait for the device, or change anything but tensors. If it cannot be recorded a note says so.

        Args:
            name: of the function.
            function: its results are a tree of tensors, or None.
            given: to it.
            of: the object that it depends on beside, another of which has a graph of its own.
            places: returns other tensors that it reads or writes where they lie, if they may come to lie elsewhere.
            changed: returns those that another call would change further, such as counts and heads of rings.
        """
        if self.record is None:
            return function(*given)
        with torch.no_grad():
            return self._replayed((name, id(of)), function, given, [*changed()], [*places()])

    def _replayed(
        self, name: Any, function: Callable[..., Any], given: Any, changed: list[Tensor], places: list[Tensor]
    ) -> Any:
        device, varying = next(leaves(given)).device, list[Tensor]()
        number = functools.partial(torch.full, (), dtype=torch.float64, device=device)
        trees = tmap(lambda x: x if isinstance(x, Tensor) else number(x), given)
        made, key = self._made.setdefault(name, {}), signature(trees, varying)
        tensors = [*changed, *places, *varying]
        if key not in made and len(made) < LAYOUTS and self.record is not None:
            new = _Graph(function, tmap(lambda _: ..., trees), len(varying), self.record, len(changed))
            recorded = compiled_graph.attempted(f"{name[0]} runs", lambda: new.run.prepare(tensors))
            made[key] = None if recorded is None else new
        graph = made.get(key)
        # Contiguous, as a graph's results are: what learns from them is compiled for these strides.
        return tmap(torch.clone, function(*trees)) if graph is None else graph(tensors)


class _Graph:
    """A function of trees as one of tensors, recorded; of a function's results the form is kept."""

    def __init__(self, function: Callable[..., Any], form: Any, varying: int, record: Record, changed: int) -> None:
        self.function, self.form, self.result = function, form, None
        self.varying = varying
        self.run = Replayed(self._flat, varying, record, changed)

    def _flat(self, tensors: list[Tensor]) -> list[Tensor]:
        given = iter(tensors[len(tensors) - self.varying :])
        self.result, results = compiled_graph.split(self.function(*tmap(lambda _: next(given), self.form)))
        return results

    def __call__(self, tensors: list[Tensor]) -> Any:
        results = iter(self.run(tensors))
        return tmap(lambda _: next(results), self.result)


def _like(x: Tensor) -> Tensor:
    """Return a new tensor with the strides of ``x``, on which compiled code relies: a clone has others than a view."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


def _distinct(x: Tensor) -> Tensor:
    """Return of every dimension that was expanded the first item."""
    for dim, stride in enumerate(x.stride()):
        x = x if stride else x.narrow(dim, 0, min(1, x.shape[dim]))
    return x
