"""A ring buffer of transitions for any tree of tensors; n-step returns and sequences are assembled when sampled.

Storage is flat: row r of environment e is slot ``r * N + e``, so N consecutive slots hold a step of each of N
environments, the same environment's next step is N slots on, and a slot number is all that names a transition.
Every environment has a head of its own, the number of its transitions ever stored, so that environments may
run ahead of each other. One more slot, the last, takes masked writes.

Capacity counts transitions. Where N does not divide it there are ``ceil(capacity / N)`` rows, but environments
from ``capacity % N`` on forget their oldest step one row earlier: a full buffer holds ``capacity`` exactly.

Choosing transitions (`ReplayBuffer.draw`) and assembling them (`ReplayBuffer.gather`, `ReplayBuffer.sequences`) are
apart: another way of choosing (`rlcore.prioritized`) brings its own index and needs no other storage.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlcore.errors import UserError
from rlcore.tree import leaves, tmap
from rlcore.types import Rollout, Transition

FIELDS = ("obs", "action", "reward", "terminated", "truncated", "next_obs")


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
        self._fields = _allocate(self.slots + 1, num_envs, example, self.device)
        self._extras = [name for name in example if name not in (*FIELDS, "state")]
        self._env = torch.arange(num_envs, device=device)  # (N,)
        self._limit = capacity // num_envs + (self._env < capacity % num_envs).long()  # (N,) most each may hold
        self._head = torch.zeros(num_envs, dtype=torch.int64, device=device)  # (N,) transitions ever stored
        self._scratch = torch.full((num_envs,), self.slots, device=device)  # (N,)
        self.newest = self._scratch.clone()  # (N,) slot of each environment's latest transition
        self._dense = capacity % num_envs == 0  # all environments hold equally many: stored slots are 0, 1, ...
        self._empty = True  # for all that is known without waiting for the device

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
            self.newest.copy_(slot)
            self._head += 1
        else:
            self._dense = False
            self.newest.copy_(torch.where(valid, slot, self.newest))
            self._head += valid
            slot = torch.where(valid, slot, self._scratch)
        for name, storage in self._fields.items():
            tmap(lambda into, x: into.index_copy_(0, slot, x), storage, step[name])
        return slot

    def turnover(self, length: int = 1) -> tuple[Tensor, Tensor]:
        """Return which slots became a start and which ceased to be one with each environment's latest step, (N,) each.

        A start is a transition with ``length`` steps stored from it on; where fewer are stored at all, the oldest.
        """
        start = (self._head - length).clamp_min_(0)
        return self._slot(start, self._env), self._slot(self._head - 1 - self._limit, self._env)

    def cut(self) -> None:
        """End every environment's running episode: mark its latest transition truncated.

        For a source whose environments start new episodes unasked (a resume without their state): no n-step
        return may join what was stored before with what comes next.
        """
        self._fields["truncated"].index_fill_(0, self.newest, True)

    def check_stored(self) -> None:
        """Check that there is something to draw.

        Raises:
            UserError: nothing was ever stored.
        """
        if self._empty:  # only until something is seen to be stored: later calls do not wait
            self._empty = not bool(self._head.any())
        if self._empty:
            raise UserError("replay: sampling from an empty buffer; expected transitions to be added first")

    def draw(self, count: int, generator: torch.Generator, length: int = 1) -> Tensor:
        """Return the slots (count,) int64 of starts drawn uniformly, with replacement, from all there are.

        Starts are the stored transitions with at least ``length`` steps stored from them on, themselves included;
        of an environment with fewer stored, only the oldest. With length 1 that is every stored transition.

        Raises:
            UserError: nothing was ever stored.
        """
        self.check_stored()
        size = torch.minimum(self._head, self._limit)  # (N,)
        starts = size if length == 1 else torch.minimum((size - (length - 1)).clamp_min_(1), size)  # (N,)
        uniform = torch.rand(count, dtype=torch.float64, device=self.device, generator=generator)
        nth = uniform.mul_(starts.sum()).long()  # below the sum: u <= 1 - 2**-53
        if self._dense and length == 1:
            return nth
        end = starts.cumsum(0)
        env = torch.searchsorted(end, nth, right=True)
        step = (self._head - size - end + starts).index_select(0, env) + nth  # in the environment's own count
        return self._slot(step, env)

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
        if n_step == 1:
            last, reward, discount = index, self.select("reward", index), gamma
        else:
            last, reward, discount = self._look_ahead(index, gamma, n_step)
        return Transition(
            obs=self.select("obs", index),
            action=self.select("action", index),
            reward=reward,
            discount=self.select("terminated", last).logical_not_() * discount,
            next_obs=self.select("next_obs", last),
            extras={name: self.select(name, last if name.startswith("next_") else index) for name in self._extras},
        )

    def sequences(self, index: Tensor, length: int) -> Rollout:
        """Return the ``length`` steps from each of ``index`` (B,) on, time-major: fields (L, B, ...).

        Sequences go on through ends of episodes, but not beyond the environment's latest stored step: from there
        on ``valid`` is False and the latest step is repeated. ``state`` is the stored one before the first step,
        (B, ...), or (). Every tensor is a copy.
        """
        ahead = torch.arange(length, device=self.device)[:, None]  # (L, 1)
        left = (self.newest.index_select(0, index % self.num_envs) - index) // self.num_envs % self.rows  # (B,)
        slot = (index + torch.minimum(ahead, left) * self.num_envs).remainder_(self.slots)  # (L, B)
        flat = slot.view(-1)

        def select(name: str) -> Any:
            return tmap(lambda x: x.view(*slot.shape, *x.shape[1:]), self.select(name, flat))

        return Rollout(
            **{name: select(name) for name in FIELDS},
            valid=ahead <= left,
            act={},
            extras={name: select(name) for name in self._extras},
            state=self.select("state", index) if "state" in self._fields else (),
        )

    def select(self, name: str, index: Tensor) -> Any:
        """Return a field's tree (B, ...) at the slots ``index`` (B,): copies."""
        return tmap(lambda x: x.index_select(0, index), self._fields[name])

    def _slot(self, step: Tensor, env: Tensor) -> Tensor:
        """Return the slots of steps in the environments' own counts."""
        return step % self.rows * self.num_envs + env

    def _look_ahead(self, index: Tensor, gamma: float, n_step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the last slot, the discounted sum of rewards and gamma**n of each return, each (B,)."""
        ahead = torch.arange(n_step, device=self.device)  # (n,)
        slot = (index[:, None] + ahead * self.num_envs).remainder_(self.slots)  # (B, n)
        flat = slot.view(-1)
        stop = slot == self.newest.index_select(0, index % self.num_envs)[:, None]
        for name in ("terminated", "truncated"):
            stop.view(-1).logical_or_(self.select(name, flat))
        stop.select(1, -1).fill_(True)
        last = stop.view(torch.uint8).argmax(1, keepdim=True)  # (B, 1): the first True
        power = (gamma ** ahead.double()).float()  # (n,)
        reward = self.select("reward", flat).view_as(slot) * power
        reward = reward.masked_fill_(ahead > last, 0.0).sum(1)
        return slot.gather(1, last).squeeze(1), reward, power.index_select(0, last.squeeze(1)) * gamma

    def __len__(self) -> int:
        """Return the number of transitions stored. Waits for the device: for use between iterations only."""
        return int(torch.minimum(self._head, self._limit).sum())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        own = (self._env, self._limit, self._head, self._scratch, self.newest)
        return sum(x.nbytes for x in own) + sum(x.nbytes for x in leaves(self._fields))

    def state_dict(self) -> dict[str, Any]:
        """Return numbers, the heads and the written rows of every field: views, to be saved before the next add."""
        written = min(int(self._head.max()), self.rows) * self.num_envs
        return {
            "capacity": self.capacity,
            "num_envs": self.num_envs,
            "dense": int(self._dense),
            "head": self._head,
            "newest": self.newest,
            "fields": tmap(lambda x: x[:written], self._fields),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was called.

        Raises:
            UserError: the state is of a buffer with another capacity, number of environments or set of fields.
        """
        saved = {"capacity": state["capacity"], "num_envs": state["num_envs"], "fields": layout(state["fields"])}
        own = {"capacity": self.capacity, "num_envs": self.num_envs, "fields": layout(self._fields)}
        for name, value in own.items():
            if saved[name] != value:
                raise UserError(f"replay: the saved buffer has {name} {saved[name]}; expected {value}")
        self._dense = bool(state["dense"])
        self._head.copy_(state["head"])
        self.newest.copy_(state["newest"])
        self._empty = not bool(self._head.any())
        tmap(lambda into, x: into[: len(x)].copy_(x), self._fields, state["fields"])


def _allocate(slots: int, num_envs: int, example: dict[str, Any], device: torch.device) -> dict[str, Any]:
    if missing := [name for name in FIELDS if name not in example]:
        raise UserError(f"replay: the example lacks '{missing[0]}'; expected {', '.join(FIELDS)}")
    size = 0
    for name, field in example.items():
        for x in leaves(field):
            if x.shape[:1] != (num_envs,):
                raise UserError(f"replay: '{name}' has shape {tuple(x.shape)}; expected ({num_envs}, ...)")
            size += slots * x[0].nbytes
    try:  # zeros, not empty: n-step returns read, and mask, slots never written
        return tmap(lambda x: torch.zeros((slots, *x.shape[1:]), dtype=x.dtype, device=device), example)
    except RuntimeError as error:
        memory = f"{size / 2**30:.1f} GiB on {device}"
        raise UserError(f"replay: {slots - 1} transitions need {memory}, more than there is; lower capacity") from error


def layout(fields: Any) -> Any:
    """Return the dtype and shape of the items of every tensor of a tree, as text."""
    return tmap(lambda x: f"{str(x.dtype).removeprefix('torch.')}{list(x.shape[1:])}", fields)


def split(data: Transition, index: Tensor, batches: int) -> list[tuple[Transition, Tensor]]:
    """Cut one gather of items and their slots into that many batches: views of it, disjoint, never written again."""
    if batches == 1:
        return [(data, index)]
    fields = {name: value for name, value in data._asdict().items() if value is not None}
    parts = tmap(lambda x: x.view(batches, -1, *x.shape[1:]).unbind(), fields)
    rows = [tmap(lambda _, part, i=i: part[i], fields, parts) for i in range(batches)]
    return list(zip((Transition(**row) for row in rows), index.view(batches, -1).unbind(), strict=True))
