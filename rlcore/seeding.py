"""One root seed, any number of named and independent random streams.

Every random draw of a run comes from a generator that its owner holds and checkpoints. Adding a
stream, or drawing more from one, never moves another.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def derive(seed: int, name: str) -> int:
    """Return a 63-bit seed for the stream ``name`` of the run seeded ``seed`` (numpy's SeedSequence)."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(name.encode())])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator for the stream ``name`` on ``device``."""
    return torch.Generator(device).manual_seed(derive(seed, name))
