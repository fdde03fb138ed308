"""A ring buffer of transitions for any tree of tensors; n-step returns and sequences are assembled when sampled.

Storage is flat: row r of environment e is slot ``r * N + e``, so N consecutive slots hold a step of each of N
environments, the same environment's next step is N slots on, and a slot number is all that names a transition.
Every environment has a head of its own, the number of its transitions ever stored, so that environments may
run ahead of each other. One more slot, the last, takes masked writes.

Capacity counts transitions. Where N does not divide it there are ``ceil(capacity / N)`` rows, but environments
from ``capacity % N`` on forget their oldest step one row earlier: a full buffer holds ``capacity`` exactly.

Small fields lie side by side in one record a slot (`rlcore.records`), so that a batch is one gather; those of large
items, such as images, are tensors of their own. On a CPU, heads and slot numbers are NumPy arrays: operators, and the
functions of `rlcore.records`, serve both.

Choosing transitions (`ReplayBuffer.choose`) and assembling them (`ReplayBuffer.gather`, `ReplayBuffer.sequences`) are
apart: another way of choosing (`rlcore.prioritized`) brings its own index and needs no other storage.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcore.arrays import array, storage, tensor, whole
from rlcore.errors import UserError
from rlcore.records import FIELDS, Records, check_example, fewest, find, fits, layout, minimum, pick, unless, where
from rlcore.tree import cut, tmap
from rlcore.types import Rollout, Transition

Reader = Callable[[Any, Any, Any], Any]  # of a buffer, its records and their slots; a part of it, it refers to none


class ReplayBuffer:
    """Preallocated memory of the latest ``capacity`` transitions of N environments.

    Args:
        capacity: transitions kept, at least N. Environment e keeps its own latest ``capacity // N``, and one
            more if ``e < capacity % N``.
        num_envs: N.
        example: one step by field, each a tree of (N, ...) tensors that gives shapes and dtypes; values are
            not read. `FIELDS` are required; "state" is a recurrent state before the step; every other name is an
            extra.
        device: where the storage lives. Steps added and the generator must be there too.

    Raises:
        UserError: the capacity is below N, a field is missing or misshapen, or memory is too small.
    """

    def __init__(
        self, capacity: int, num_envs: int, example: dict[str, Any], device: torch.device | str = "cpu"
    ) -> None:
        if capacity < num_envs:
            raise UserError(f"replay: capacity is {capacity}; expected at least num_envs = {num_envs} transitions")
        self.capacity, self.num_envs, self.device = capacity, num_envs, torch.device(device)
        self.rows = -(-capacity // num_envs)
        self.slots = self.rows * num_envs  # numbered from 0; slot number `slots` takes masked writes
        self._allocate(example)
        self._extras = [name for name in example if name not in (*FIELDS, "state")]
        env = torch.arange(num_envs, device=device)
        self.newest = torch.full_like(env, self.slots)  # (N,) slot of each environment's latest transition
        self._env, self._newest, self._scratch = array(env), array(self.newest), array(self.newest.clone())  # (N,)
        self._limit = array(capacity // num_envs + (env < capacity % num_envs).long())  # (N,) most each may hold
        self._head = array(torch.zeros_like(env))  # (N,) transitions ever stored
        self._even = True  # so far every environment stored one with every step
        self._empty = True  # for all that is known without waiting for the device
        self._powers: dict[tuple[float, int], Any] = {}

    def _allocate(self, example: dict[str, Any]) -> None:
        check_example(example, self.num_envs)
        number = iter(range(2**31))
        self._fields = tmap(lambda _: f"{next(number)}", example)  # trees of names, of ...
        named: dict[str, Tensor] = {}
        tmap(named.__setitem__, self._fields, example)
        slots, device = self.slots + 1, self.device
        try:  # zeros, not empty: n-step returns read, and mask, slots never written
            self._records = Records(slots, {k: x for k, x in named.items() if fits(x)}, device)
            self._large = {k: storage((slots, *x.shape[1:]), x.dtype, device) for k, x in named.items() if not fits(x)}
        except RuntimeError as error:
            size = f"{slots * sum(x[0].nbytes for x in named.values()) / 2**30:.1f} GiB on {device}"
            raise UserError(
                f"replay: {slots - 1} transitions need {size}, more than there is; lower capacity"
            ) from error
        self._layout = layout(example)
        self._read = {name: self._reader(name) for name in self._fields}

    def add(self, step: dict[str, Any], valid: Tensor | None = None) -> Tensor:
        """Store one step of the N environments in place, over the oldest where a ring is full.

        Returns:
            The slots (N,) written; `slots` where nothing was stored.

        Args:
            step: the fields of the example, each (N, ...).
            valid: (N,) bool; rows that are False are not stored and do not move their environment's head.
                None: all are valid.
        """
        slot = self._slot(self._head, self._env)  # (N,)
        if valid is None:
            self._empty = False
            self._newest[:] = slot
            self._head += 1
        else:
            stored = array(valid)
            self._even = False
            self._newest[:] = where(stored, slot, self._newest)
            self._head += stored
            slot = where(stored, slot, self._scratch)
        successive = self._even and isinstance(slot, np.ndarray)
        self._write(slice(int(slot[0]), int(slot[0]) + self.num_envs) if successive else slot, step)
        return tensor(slot)

    def extend(self, steps: dict[str, Any]) -> None:
        """Store steps of the N environments, fields (T, N, ...), all valid: as adding one after the other does."""
        head, count, n = self._head, len(steps["reward"]), self.num_envs
        if count > self.rows:
            for t in range(count):
                self.add(tmap(lambda x, t=t: x[t], steps))
            return
        if self._even and isinstance(head, np.ndarray):
            first = int(head[0]) % self.rows
            left = min(count, self.rows - first)  # rows before the ring's end
            if left == count:
                self._write(slice(first * n, (first + left) * n), steps, True)
            else:
                self._write(slice(first * n, (first + left) * n), tmap(lambda x: x[:left], steps), True)
                self._write(slice(0, (count - left) * n), tmap(lambda x: x[left:], steps), True)
        else:
            ahead: Any = array(torch.arange(count, device=self.device))
            self._write(self._slot(head + ahead[:, None], self._env).reshape(-1), steps, True)
        self._empty = False
        head += count
        self._newest[:] = self._slot(head - 1, self._env)

    def _write(self, at: Any, items: dict[str, Any], steps: bool = False) -> None:
        """Write items (N, ...), or ``steps`` (T, N, ...), into slots: an array, or a slice on a CPU if they succeed."""

        def put(name: str, x: Tensor) -> None:
            large = self._large.get(name)
            if large is None:
                self._records.put(at, name, x, steps)
                return
            x = x.flatten(0, 1) if steps else x
            if isinstance(at, slice):
                large[at] = x
            else:
                large.index_copy_(0, tensor(at), x)

        for name, field in self._fields.items():
            tmap(put, field, items[name])

    def turnover(self, length: int = 1) -> tuple[Tensor, Tensor]:
        """Return which slots became a start and which ceased to be one with each environment's latest step, (N,) each.

        A start is a transition with ``length`` steps stored from it on; where fewer are stored at all, the oldest.
        """
        start = (self._head - length).clip(0)
        oldest = self._head - 1 - self._limit
        return tensor(self._slot(start, self._env)), tensor(self._slot(oldest, self._env))

    def cut(self) -> None:
        """End every environment's running episode: mark its latest transition truncated.

        For a source whose environments start new episodes unasked (a resume without their state): no n-step
        return may join what was stored before with what comes next.
        """
        self._records.put(self._newest, self._fields["truncated"], torch.ones_like(self.newest, dtype=torch.bool))

    def check_stored(self) -> None:
        """Check that there is something to draw.

        Raises:
            UserError: nothing was ever stored.
        """
        if self._empty:  # only until something is seen to be stored: later calls do not wait
            self._empty = not bool(self._head.any())
        if self._empty:
            raise UserError("replay: sampling from an empty buffer; expected transitions to be added first")

    def heads(self) -> list[Tensor]:
        """Return what says where the next step is stored, and the latest is."""
        return [tensor(self._head), self.newest]

    def places(self) -> list[Tensor]:
        """Return the tensors whose memory may come to lie elsewhere."""
        return []

    def choose(self, uniform: Any, length: int = 1) -> Tensor:
        """Return the slots (B,) int64 of the starts that ``uniform`` (B,) float64 in [0, 1) hits, all as likely.

        Starts are the stored transitions with at least ``length`` steps stored from them on, themselves included;
        of an environment with fewer stored, only the oldest. With length 1 that is every stored transition. Something
        must have been stored.
        """
        number = array(uniform)  # times a size it is below that size: u <= 1 - 2**-53
        if self._even and length == 1 and self.slots == self.capacity:  # all stored slots are 0, 1, ...
            return tensor(whole(number * (fewest(self._head, self.rows) * self.num_envs)))
        size = minimum(self._head, self._limit)  # (N,)
        starts = size if length == 1 else minimum((size - (length - 1)).clip(1), size)  # (N,)
        end = starts.cumsum(0)
        nth = whole(number * end[-1:])
        env = find(end, nth)
        step = pick(self._head - size - end + starts, env) + nth  # in the environment's own count
        return tensor(self._slot(step, env))

    def gather(self, index: Tensor, gamma: float, n_step: int = 1) -> Transition:
        """Return the transitions that start at ``index`` (B,), each followed for at most ``n_step`` steps.

        A return sums rewards up to the first of: n steps, the end of its episode (terminated or truncated), the
        environment's latest stored step. With n <= n_step the number of steps really summed (Sutton and Barto,
        2nd edition, equation 7.1)::

            reward = r_t + gamma r_{t+1} + ... + gamma**(n-1) r_{t+n-1}
            discount = gamma**n * (1 - terminated_{t+n-1}),   next_obs = the successor of step t+n-1

        Extras are those of step t, but those named ``next_...`` belong to the successor and are those of step
        t+n-1. Every tensor is a copy: later writes and samples never change a batch.
        """
        at, read = array(index), self._read
        ahead, powers = self._powers.get((gamma, n_step)) or self._steps(gamma, n_step)
        if n_step == 1:
            start = final = self._records.take(at)
            last, reward, power = at, read["reward"](self, start, at), powers[1:]
        else:
            start, last, reward, power = self._look_ahead(at, ahead, powers)
            final = self._records.take(last)
        return Transition(  # in their order, which costs a microsecond less than by name
            read["obs"](self, start, at),
            read["action"](self, start, at),
            reward,
            unless(self._column("terminated", final), power),
            read["next_obs"](self, final, last),
            self._more((start, at), (final, last)) if self._extras else {},
        )

    def _more(self, now: tuple[Any, Any], then: tuple[Any, Any]) -> dict[str, Any]:
        """Return the extras, of records and slots of the first step and of the last."""
        return {name: self._read[name](self, *(then if name.startswith("next_") else now)) for name in self._extras}

    def sequences(self, index: Tensor, length: int) -> Rollout:
        """Return the ``length`` steps from each of ``index`` (B,) on, time-major: fields (L, B, ...).

        Sequences go on through ends of episodes, but not beyond the environment's latest stored step: from there
        on ``valid`` is False and the latest step is repeated. ``state`` is the stored one before the first step,
        (B, ...), or (). Every tensor is a copy.
        """
        at = array(index)
        ahead = array(torch.arange(length, device=self.device))[:, None]  # (L, 1)
        left = (pick(self._newest, at % self.num_envs) - at) // self.num_envs % self.rows  # (B,)
        slot = (at + minimum(ahead, left) * self.num_envs) % self.slots  # (L, B)
        records = self._records.take(slot)
        return Rollout(
            **{name: self._read[name](self, records, slot) for name in FIELDS},
            valid=tensor(ahead <= left),
            act={},
            extras={name: self._read[name](self, records, slot) for name in self._extras},
            state=self._read["state"](self, records[0], at) if "state" in self._fields else (),
        )

    def select(self, name: str, index: Tensor) -> Any:
        """Return a field's tree (B, ...) at the slots ``index`` (B,): copies."""
        at = array(index)
        return self._read[name](self, self._records.take(at), at)

    def _reader(self, name: str) -> Reader:
        """Return what makes a field's tree of a buffer's records and of their slots."""
        field = self._fields[name]
        plain = isinstance(field, str) and field not in self._large
        return partial(_view if plain and isinstance(array(self._records.data), np.ndarray) else _items, field)

    def _far(self, key: str, at: Any) -> Tensor:
        large = self._large[key]
        return large.index_select(0, tensor(at).view(-1)).view(*at.shape, *large.shape[1:])

    def _column(self, name: str, records: Any) -> Any:
        return self._records.column(records, self._fields[name])

    def _slot(self, step: Any, env: Any) -> Any:
        """Return the slots of steps in the environments' own counts."""
        return step % self.rows * self.num_envs + env

    def _steps(self, gamma: float, n_step: int) -> tuple[Any, Any]:
        """Return how many slots 0 ... n steps are, and the powers of gamma, (n + 1,) each; kept for later calls."""
        ahead = torch.arange(n_step + 1, device=self.device)
        self._powers[gamma, n_step] = array(ahead * self.num_envs), array((gamma ** ahead.double()).float())
        return self._powers[gamma, n_step]

    def _look_ahead(self, at: Any, ahead: Any, power: Any) -> tuple[Any, Any, Any, Any]:
        """Return the first record, the last slot, the discounted sum of rewards and gamma**n of each return, (B,)."""
        slot = (at + ahead[:-1, None]) % self.slots  # (n, B)
        steps = self._records.take(slot)
        stop = self._column("terminated", steps) | self._column("truncated", steps)
        stop |= slot == pick(self._newest, at % self.num_envs)
        for k in range(1, len(stop)):
            stop[k] |= stop[k - 1]
        goes_on = ~stop[:-1]  # (n - 1, B): beyond step 0, 1, ...
        rewards = self._column("reward", steps) * power[:-1, None]
        reward = rewards[0] + where(goes_on, rewards[1:], 0.0).sum(0)
        beyond = goes_on.sum(0)  # (B,) steps after the first
        return steps[0], (at + pick(ahead, beyond)) % self.slots, tensor(reward), pick(power, beyond + 1)

    def __len__(self) -> int:
        """Return the number of transitions stored. Waits for the device: for use between iterations only."""
        return int(minimum(self._head, self._limit).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        own = (self._env, self._limit, self._head, self._scratch, self._newest, self._records.data)
        return sum(x.nbytes for x in (*own, *self._large.values()))

    def state_dict(self) -> dict[str, Any]:
        """Return numbers, the heads and the written rows: views, to be saved before the next add."""
        written = min(int(self._head.max()), self.rows) * self.num_envs
        return {
            "capacity": self.capacity,
            "num_envs": self.num_envs,
            "fields": self._layout,
            "even": int(self._even),
            "head": tensor(self._head),
            "newest": self.newest,
            "records": self._records.data[:written],
            "large": {name: x[:written] for name, x in self._large.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was called.

        Raises:
            UserError: the state is of a buffer with another capacity, number of environments or set of fields.
        """
        for name, value in {"capacity": self.capacity, "num_envs": self.num_envs, "fields": self._layout}.items():
            if state[name] != value:
                raise UserError(f"replay: the saved buffer has {name} {state[name]}; expected {value}")
        self._even = bool(state["even"])
        tensor(self._head).copy_(state["head"])
        self.newest.copy_(state["newest"])
        self._empty = not bool(self._head.any())
        own = {"records": self._records.data, "large": self._large}
        tmap(lambda into, x: into[: len(x)].copy_(x), own, {name: state[name] for name in own})


def _view(name: str, buffer: ReplayBuffer, records: Any, at: Any) -> Tensor:
    """Do what `_items` does of one small tensor where records are arrays, in less time."""
    return torch.from_numpy(records[name])


def _items(field: Any, buffer: ReplayBuffer, records: Any, at: Any) -> Any:
    own, large = buffer._records, buffer._large
    return tmap(lambda key: buffer._far(key, at) if key in large else own.items(records, key), field)


def split(data: Transition, index: Tensor, batches: int) -> list[tuple[Transition, Tensor]]:
    """Cut one gather of items and their slots into that many batches: views of it, disjoint, never written again."""
    return [(data, index)] if batches == 1 else list(zip(cut(data, batches), cut(index, batches), strict=True))
