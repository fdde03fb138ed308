"""Prioritised replay, proportional variant (Schaul et al. 2016)::

    P(i) = m_i / sum_k m_k,   m_i = (|TD error of i| + 1e-6)**alpha              equation 1
    w_i = (N P(i))**-beta / max_j (N P(j))**-beta = (min_j m_j / m_i)**beta      section 3.4, j over the batch

Masses are kept in blocks of 64 with the sum of each. A draw is an inverse cumulative distribution in two
steps: among the sums, then within the blocks hit. For up to millions of slots that takes fewer and cheaper
tensor operations than a tree with more levels; nothing waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlcore.replay import ReplayBuffer

EPSILON = 1e-6  # added to |TD error|, so that nothing stored is never seen again
BLOCK = 64
BELOW_ONE = 1 - 2**-53  # the largest float64 below 1; a positive number times it is smaller


class Masses:
    """Masses >= 0 of slots 0 ... n - 1, all 0 at first, in float64 on any device."""

    def __init__(self, n: int, device: torch.device | str = "cpu") -> None:
        blocks = -(-n // BLOCK)
        self.mass = torch.zeros(blocks, BLOCK, dtype=torch.float64, device=device)
        self._padded = torch.zeros(blocks + 1, dtype=torch.float64, device=device)  # its first is always 0
        self.sums = self._padded[1:]

    def set(self, index: Tensor, mass: Tensor) -> None:
        """Give the slots ``index`` (B,) the masses (B,) float64; of several for one slot the largest counts."""
        flat = self.mass.view(-1)
        flat.index_fill_(0, index, 0.0)
        flat.scatter_reduce_(0, index, mass, "amax")  # unlike a copy it does not depend on the order of duplicates
        block = index // BLOCK
        # Sums are taken anew, never adjusted by differences: rounding errors cannot build up.
        self.sums.index_copy_(0, block, self.mass.index_select(0, block).sum(1))

    def draw(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Return slots (B,) in proportion to mass, and their masses, for ``uniform`` (B,) float64 in [0, 1).

        A slot without mass is never returned, provided that any has some.
        """
        edge = self._padded.cumsum(0)  # block b lies between edges b and b + 1
        target = uniform * edge[-1]  # below the total: u <= 1 - 2**-53
        block = torch.searchsorted(edge[1:], target, right=True)  # the first that ends beyond the target: it has mass
        target -= edge.index_select(0, block)  # not below 0, as it would be by roundings if sums were subtracted
        mass = self.mass.index_select(0, block)  # (B, BLOCK)
        within = mass.cumsum(1)
        target = torch.minimum(target, within[:, -1] * BELOW_ONE).unsqueeze(1)  # sums differ by rounding
        slot = torch.searchsorted(within, target, right=True)  # (B, 1)
        return (block * BLOCK).add_(slot.squeeze(1)), mass.gather(1, slot).squeeze(1)


class Prioritized:
    """Draws from a replay buffer in proportion to priorities.

    Args:
        buffer: where transitions are stored; tell `add` of each.
        alpha: how much priorities matter; 0: uniform.
        length: steps of a sequence: priorities are those of its first step, and starts are those of
            `ReplayBuffer.draw`. 1: transitions.
    """

    def __init__(self, buffer: ReplayBuffer, alpha: float, length: int = 1) -> None:
        self.buffer, self.alpha, self.length = buffer, alpha, length
        self.masses = Masses(buffer.slots + 1, buffer.device)
        self.largest = torch.ones((), dtype=torch.float64, device=buffer.device)  # mass given so far; 1 at first
        self._priority, self._weight = torch.zeros_like(self.largest), torch.zeros_like(self.largest)  # sums of ...
        self._items = 0  # ... so many since `statistics` was called

    def add(self, slot: Tensor) -> None:
        """Give what the step stored in slots (N,) made drawable the largest mass so far; forget what it replaced."""
        stored = slot != self.buffer.slots
        new, old = (torch.where(stored, x, slot) for x in self.buffer.turnover(self.length))
        mass = self.largest * stored
        self.masses.set(torch.cat([new, old]), torch.cat([mass, torch.zeros_like(mass)]))

    def draw(self, count: int, generator: torch.Generator, beta: float) -> tuple[Tensor, Tensor]:
        """Return ``count`` slots, drawn independently with replacement, and importance weights, (count,) each.

        Raises:
            UserError: nothing was ever stored.
        """
        self.buffer.check_stored()
        uniform = torch.rand(count, dtype=torch.float64, device=self.buffer.device, generator=generator)
        index, mass = self.masses.draw(uniform)
        weight = (mass.min() / mass).pow_(beta).float()
        self._weight += weight.sum()
        return index, weight

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
        means = {"priority": self._priority.item() / self._items, "weight": self._weight.item() / self._items}
        self._items = 0
        self._priority.zero_()
        self._weight.zero_()
        return means

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.masses.mass.nbytes + self.masses.sums.nbytes

    def _tensors(self) -> dict[str, Tensor]:
        sums = {"priority": self._priority, "weight": self._weight}
        return {"mass": self.masses.mass, "sums": self.masses.sums, "largest": self.largest, **sums}

    def state_dict(self) -> dict[str, Any]:
        """Return masses and running numbers: views, to be saved before the next change."""
        return {**self._tensors(), "items": self._items}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was called."""
        self._items = state["items"]
        for name, value in self._tensors().items():
            value.copy_(state[name])
