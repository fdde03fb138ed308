"""Prioritised replay, proportional variant (Schaul et al. 2016)::

    P(i) = m_i / sum_k m_k,   m_i = (|TD error of i| + 1e-6)**alpha              equation 1
    w_i = (N P(i))**-beta / max_j (N P(j))**-beta = (min_j m_j / m_i)**beta      section 3.4, j over the batch

Masses are the leaves of a tree in which a block of 32 numbers has its sum one level up, until at most 1024 sums are
left. A draw inverts the cumulative distribution of these and then, level by level, that of the block hit; a change
sums the blocks it touched anew. A binary tree would need four times as many operations; nothing waits for the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcore.arrays import array, float32, storage, tensor
from rlcore.records import find, minimum, pick, where
from rlcore.replay import ReplayBuffer

EPSILON = 1e-6  # added to |TD error|, so that nothing stored is never seen again
BLOCK = 32
TOP = 1024  # sums that are searched without a level above them
BELOW_ONE = 1 - 2**-53  # the largest float64 below 1; a positive number times it is smaller


class Masses:
    """Masses >= 0 of slots 0 ... n - 1, all 0 at first, in float64 on any device."""

    def __init__(self, n: int, device: torch.device | str = "cpu") -> None:
        self._levels: list[Any] = []  # (blocks, BLOCK) each, leaves first
        while n > TOP or not self._levels:
            blocks = -(-n // BLOCK)
            self._levels.append(array(storage((blocks, BLOCK), torch.float64, device)))
            n = blocks
        self._top = array(torch.zeros(n + 1, dtype=torch.float64, device=device))  # its first is always 0
        self._flat = [level.reshape(-1) for level in self._levels] + [self._top[1:]]  # views

    @property
    def mass(self) -> Tensor:
        """The masses, (slots,), and a few zeros more."""
        return tensor(self._flat[0])

    def set(self, index: Tensor, mass: Tensor) -> None:
        """Give the slots ``index`` (B,) the masses (B,) float64; of several for one slot the largest counts."""
        at, leaves = array(index), self._flat[0]
        # Unlike a copy the largest does not depend on the order of duplicates.
        if isinstance(leaves, np.ndarray):
            leaves[at] = 0.0
            np.maximum.at(leaves, at, array(mass))
        else:  # a number assigned to what an index names would be copied to the device, for which no graph can wait
            leaves.index_fill_(0, at, 0.0).scatter_reduce_(0, at, mass, "amax")
        for level, above in zip(self._levels, self._flat[1:], strict=True):
            at = at // BLOCK
            # Sums are taken anew, never adjusted by differences: rounding errors cannot build up.
            above[at] = pick(level, at).sum(1)

    def tensors(self) -> dict[str, Tensor]:
        """Return the masses and the sums of every level, by name."""
        return {f"level{k}": tensor(x) for k, x in enumerate(self._flat)}

    def draw(self, uniform: Any) -> tuple[Tensor, Tensor]:
        """Return slots (B,) in proportion to mass, and their masses, for ``uniform`` (B,) float64 in [0, 1).

        A slot without mass is never returned, provided that any has some.
        """
        edge = cumulated(self._top)  # number b of the top lies between edges b and b + 1
        target = array(uniform) * edge[-1:]  # below the total: u <= 1 - 2**-53
        at = find(edge[1:], target)  # the first that ends beyond the target: it has mass
        target = target - pick(edge, at)  # not below 0, as it would be by roundings if sums were subtracted
        for k in reversed(range(len(self._levels))):
            edge = cumulated(pick(self._levels[k], at))  # (B, BLOCK)
            target = minimum(target, edge[:, -1] * BELOW_ONE)  # sums differ by rounding
            place = first(edge > target[:, None])  # (B,)
            at = at * BLOCK + place
            if k:
                target = target - before(edge, place)
        return tensor(at), tensor(pick(self._flat[0], at))


class Prioritized:
    """Draws from a replay buffer in proportion to priorities.

    Args:
        buffer: where transitions are stored; tell `add` of each.
        alpha: how much priorities matter; 0: uniform.
        length: steps of a sequence: priorities are those of its first step, and starts are those of
            `ReplayBuffer.choose`. 1: transitions.
    """

    def __init__(self, buffer: ReplayBuffer, alpha: float, length: int = 1) -> None:
        self.buffer, self.alpha, self.length = buffer, alpha, length
        self.masses = Masses(buffer.slots + 1, buffer.device)
        self.largest = torch.ones((), dtype=torch.float64, device=buffer.device)  # mass given so far; 1 at first
        self._priority = torch.zeros_like(self.largest)  # sums of priorities ...
        self._weight = array(torch.zeros_like(self.largest))  # ... and weights of ...
        self._items = array(torch.zeros((), dtype=torch.int64, device=buffer.device))  # ... so many since `statistics`

    def add(self, slot: Tensor) -> None:
        """Give what the step stored in slots (N,) made drawable the largest mass so far; forget what it replaced."""
        at = array(slot)
        stored = at != self.buffer.slots
        new, old = (where(stored, array(x), at) for x in self.buffer.turnover(self.length))
        mass = array(self.largest) * stored
        self.masses.set(joined(new, old), joined(mass, 0.0 * mass))

    def choose(self, uniform: Any, beta: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return the slots that ``uniform`` (B,) float64 in [0, 1) hits, and importance weights, (B,) each.

        Something must have been stored.
        """
        # In their order what is read lies closer together. To a batch the order of its items is nothing.
        index, drawn = self.masses.draw(ascending(array(uniform)))
        mass = array(drawn)
        weight = (mass.min() / mass) ** beta
        self._weight += weight.sum()
        return index, tensor(float32(weight))

    def update(self, index: Tensor, priority: Tensor) -> None:
        """Set the priorities |TD error| (B,) of the slots ``index`` (B,)."""
        priority = priority.detach().double()
        # A run that diverges goes on until its losses are next looked at, which then says so.
        # Roundings put a divergence a hair below 0.
        mass = (priority.clamp_min(0.0) + EPSILON).pow_(self.alpha).nan_to_num_(0.0, 1e30)
        self.masses.set(index, mass)
        torch.maximum(self.largest, mass.max(), out=self.largest)
        self._priority += priority.sum()
        self._items += len(index)

    def statistics(self) -> dict[str, float]:
        """Return the mean priority and weight since the last call. Waits for the device."""
        if not self._items:
            return {}
        items = self._items.item()
        means = {"priority": self._priority.item() / items, "weight": self._weight.item() / items}
        for x in self.sums():
            x.zero_()
        return means

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(x.nbytes for x in self.masses.tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        sums = {"priority": self._priority, "weight": tensor(self._weight)}
        return {**self.masses.tensors(), "largest": self.largest, **sums}

    def sums(self) -> list[Tensor]:
        """Return what draws and updates add to."""
        return [self._priority, tensor(self._weight), tensor(self._items)]

    def state_dict(self) -> dict[str, Any]:
        """Return masses and running numbers: views, to be saved before the next change."""
        return {**self._tensors(), "items": int(self._items)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was called."""
        tensor(self._items).fill_(state["items"])
        for name, value in self._tensors().items():
            value.copy_(state[name])


def joined(x: Any, y: Any) -> Tensor:
    """Return two arrays (N,) one after the other."""
    return tensor(np.concatenate([x, y]) if isinstance(x, np.ndarray) else torch.cat([x, y]))


def ascending(x: Any) -> Any:
    """Return an array's numbers (B,) in ascending order."""
    if not isinstance(x, np.ndarray):
        return x.sort().values
    x = x.copy()  # in place is faster than np.sort
    x.sort()
    return x


def cumulated(x: Any) -> Any:
    """Return the cumulative sums along the last axis of an array."""
    return array(tensor(x).cumsum(-1))  # torch's is several times faster than NumPy's


def first(flag: Any) -> Any:
    """Return the place of the first True in each row (B, k) of an array."""
    return flag.argmax(1) if isinstance(flag, np.ndarray) else flag.view(torch.uint8).argmax(1)


def before(x: Any, place: Any) -> Any:
    """Return of each row (B, k) of an array the number before ``place`` (B,); before the first 0."""
    if isinstance(x, np.ndarray):  # of the first row, what is before the first place is the last row's end
        return x.reshape(-1).take(np.arange(-1, x.size - 1, x.shape[1]) + place) * (place > 0)
    return x.gather(1, (place - 1).clamp_min(0)[:, None]).squeeze(1) * (place > 0)
