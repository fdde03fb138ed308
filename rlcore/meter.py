"""Means of metrics over an interval, gathered without ever waiting for the device."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlcore.errors import Diverged

_HALVES = (torch.float32, torch.bfloat16, torch.float16)  # what float32 holds exactly


class Entry(NamedTuple):
    """Where a `Table` holds the metrics of an update."""

    names: tuple[str, ...]
    values: Tensor  # (entries, names) or, of K runs, (entries, names, K)
    at: int


class Table:
    """Metrics of many updates in memory of their own.

    Were each kept as the small tensor that it comes as, these would come to lie between the large ones that an update
    makes and drops: then every update of many seeds takes fresh memory from the system.
    """

    _SIZE = 1000  # entries

    def __init__(self) -> None:
        self._values: dict[tuple[str, ...], tuple[Tensor, int]] = {}  # and how many entries are used

    def put(self, metrics: Mapping[str, Tensor]) -> Entry:
        """Write down metrics, all 0-dim, or all (K,).

        Raises:
            ValueError: one carries a graph.
        """
        names, tensors = tuple(metrics), [*metrics.values()]
        values, used = self._values.get(names, (None, 0))
        if values is None or used == len(values):
            exact = all(x.dtype in _HALVES for x in tensors)
            shape = self._SIZE, len(tensors), *tensors[0].shape
            values = tensors[0].new_empty(shape, dtype=torch.float32 if exact else torch.float64)
            used = 0
        try:
            torch.stack(tensors, out=values[used])
        except RuntimeError:
            for name, tensor in metrics.items():
                if tensor.requires_grad:
                    raise ValueError(f"metric '{name}' carries a graph; expected a detached tensor") from None
            torch.stack([x.to(values) for x in tensors], out=values[used])  # one is of another device or precision
        self._values[names] = values, used + 1
        return Entry(names, values, used)


class Meter:
    """Means of metrics over an interval, gathered without ever waiting for the device.

    The means do not depend on when the interval's tensors were stacked, saved or loaded: they are the correctly rounded
    float64 means.
    """

    _COMPACT = 1000  # entries held as they came, at most
    _SMALL = 1024  # numbers

    def __init__(self) -> None:
        self._metrics, self._inputs = _Series("update"), _Series("frame")
        self._table = Table()
        self._entries: list[tuple[int, Entry, int | None]] = []
        self._watched: list[tuple[Sequence[int], str, Tensor]] = []
        self._held = 0  # steps, of all these

    def add(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Add the metrics of update number ``step``, 0-dim and detached.

        Raises:
            ValueError: one carries a graph.
        """
        self.note(step, self._table.put(metrics))

    def note(self, step: int, entry: Entry, k: int | None = None) -> None:
        """Add metrics that a table holds; with ``k`` they are those of several runs, and this is one's place."""
        self._entries.append((step, entry, k))
        if len(self._entries) >= self._COMPACT:
            self._compact()

    def watch(self, steps: Sequence[int], name: str, tensor: Tensor) -> None:
        """Add tensors of successive steps (T, ...), detached and not written to afterwards, that have to be finite."""
        # Small ones are added up many at once: an operation costs more than what it adds.
        rows = tensor.reshape(len(steps), -1)
        self._watched.append((steps, name, rows if rows.shape[1] <= self._SMALL else rows.sum(1, keepdim=True)))
        self._held += len(steps)
        if self._held >= self._COMPACT:
            self._compact()

    def flush(self) -> dict[str, float]:
        """Return the mean of each metric since the last flush and start anew.

        Raises:
            Diverged: something was NaN or infinite; names it and the first step at which it was.
        """
        columns = self._checked()
        self._metrics, self._inputs = _Series("update"), _Series("frame")
        return {name: math.fsum(column.tolist()) / len(column) for name, column in columns.items()}

    def check(self) -> None:
        """Look whether everything is finite so far.

        Raises:
            Diverged: as `flush`.
        """
        self._checked()

    def _checked(self) -> dict[str, np.ndarray]:
        self._compact()
        self._inputs.checked()  # first: what came in explains what came out
        return self._metrics.checked()

    def state_dict(self) -> dict[str, Any]:
        """Return the interval so far.

        Raises:
            Diverged: as `flush`, so that no checkpoint is taken of a run that has diverged.
        """
        self._compact()
        return {"inputs": self._inputs.state_dict(), "metrics": self._metrics.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a half-filled interval."""
        self._entries.clear()
        self._watched.clear()
        self._held = 0
        self._inputs.load_state_dict(state["inputs"])
        self._metrics.load_state_dict(state["metrics"])

    def _compact(self) -> None:
        """Take all that was gathered into the series: one tensor for each name."""
        runs: dict[tuple[int, int | None], list[tuple[int, int, Entry]]] = {}  # by table, and place in it
        for at, (step, entry, k) in enumerate(self._entries):
            runs.setdefault((id(entry.values), k), []).append((at, step, entry))
        parts: dict[str, list[tuple[Any, ...]]] = {}
        for (_, k), rows in runs.items():
            came, steps, entries = zip(*rows, strict=True)
            names, values, _ = entries[0]
            at = [entry.at for entry in entries]
            successive = at[-1] - at[0] == len(at) - 1
            found = values[at[0] : at[-1] + 1] if successive else values[at]  # (entries, names) or (entries, names, K)
            for name, column in zip(names, (found if k is None else found[..., k]).unbind(1), strict=True):
                parts.setdefault(name, []).append((came, steps, column))
        for name, own in parts.items():
            came, steps, columns = zip(*own, strict=True)
            if len(own) == 1:
                self._metrics.add(name, steps[0], columns[0])
                continue
            order = np.argsort(np.concatenate(came))
            self._metrics.add(name, np.concatenate(steps)[order].tolist(), torch.cat(columns)[torch.from_numpy(order)])
        self._entries.clear()
        for name in dict.fromkeys(name for _, name, _ in self._watched):
            steps, rows = zip(*[(steps, x) for steps, own, x in self._watched if own == name], strict=True)
            if len({x.shape[1] for x in rows}) > 1:  # of the parts of a Dict observation
                rows = [x.sum(1, keepdim=True) for x in rows]
            self._inputs.add(name, chain.from_iterable(steps), torch.cat(rows).sum(1))
        self._watched.clear()
        self._held = 0


class _Series:
    """Numbers by name and step, in the order in which they came."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.steps: dict[str, array[int]] = {}
        self.chunks: dict[str, list[Tensor]] = {}  # each (entries,)

    def add(self, name: str, steps: Iterable[int], values: Tensor) -> None:
        """Add values (entries,)."""
        self.steps.setdefault(name, array("q")).extend(steps)
        self.chunks.setdefault(name, []).append(values)

    def checked(self) -> dict[str, np.ndarray]:
        """Return the values by name, (entries,) float64; raise Diverged at the first that is not finite."""
        values = {name: torch.cat([chunk.cpu().double() for chunk in chunks]) for name, chunks in self.chunks.items()}
        columns = {name: column.numpy() for name, column in values.items()}
        bad = [
            (self.steps[name][i], name, column[i])
            for name, column in columns.items()
            for i in np.flatnonzero(~np.isfinite(column))
        ]
        if bad:
            step, name, value = min(bad, key=lambda entry: entry[0])
            raise Diverged(f"'{name}' became {'NaN' if math.isnan(value) else 'infinite'} at {self.unit} {step}")
        return columns

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return what was added."""
        columns = self.checked()
        return {
            name: {"steps": torch.tensor(self.steps[name], dtype=torch.int64), "values": torch.from_numpy(column)}
            for name, column in columns.items()
        }

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Hold what another held."""
        self.steps = {name: array("q", entry["steps"].tolist()) for name, entry in state.items()}
        self.chunks = {name: [entry["values"].clone()] for name, entry in state.items()}
