"""One root seed, any number of named and independent random streams.

Every random draw of a run comes from a generator that its owner holds and checkpoints. Adding a
stream, or drawing more from one, never moves another.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcore.arrays import array, tensor

_MANY = 4096  # numbers drawn at once


def derive(seed: int, name: str) -> int:
    """Return a 63-bit seed for the stream ``name`` of the run seeded ``seed`` (numpy's SeedSequence)."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator for the stream ``name`` on ``device``."""
    return torch.Generator(device).manual_seed(derive(seed, name))


class Uniforms:
    """Uniform numbers in [0, 1), float64, drawn from a generator some thousands at once.

    A few hundred are drawn in less time than it takes to ask a generator for them.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self._drawn: Any = array(torch.empty(0, dtype=torch.float64, device=generator.device))
        self._used = 0  # of these

    def take(self, count: int) -> Any:
        """Return ``count`` numbers, (count,), as `array` returns them: not to be written to.

        They are the next ones; where fewer are left, these are left out and others drawn.
        """
        end = self._used + count
        if end > len(self._drawn):
            size, rng = max(count, _MANY), self.generator
            self._drawn = array(torch.rand(size, dtype=torch.float64, device=rng.device, generator=rng))
            self._used, end = 0, count
        taken, self._used = self._drawn[self._used : end], end
        return taken

    def state_dict(self) -> Tensor:
        """Return what is drawn and not taken yet; the generator is its owner's."""
        return tensor(self._drawn[self._used :])

    def load_state_dict(self, state: Tensor) -> None:
        """Continue where ``state_dict`` was called."""
        self._drawn, self._used = array(state.to(self.generator.device, copy=True)), 0
