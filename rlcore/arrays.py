"""NumPy's arrays where small tensors lie on a CPU, torch's tensors elsewhere: what serves both; and a generator.

The generator is splitmix64 (Steele, Lea & Flood 2014) as a hash of a counter: what is drawn depends on key and
position only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # splitmix64's increment, as a signed 64-bit number
_CONSTANTS = (11, 27, 30, 31, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_11, _27, _30, _31, _FIRST, _SECOND = (np.array(x, np.uint64) for x in _CONSTANTS)
_ULP = np.array(2.0**-53)
LINE = 64  # bytes that a processor reads from memory at once
_on_tensors = False  # whether `array` leaves all tensors as they are


def array(x: Any) -> Any:
    """Return a NumPy view of the tensor ``x`` on a CPU (several times faster where ``x`` is small), else ``x`` itself.

    Code that uses operators only serves both.
    """
    return x.numpy() if isinstance(x, Tensor) and x.is_cpu and not _on_tensors else x


@contextmanager
def on_tensors() -> Iterator[None]:
    """Let everything be done on tensors on a CPU, too, as it is elsewhere: to be traced."""
    global _on_tensors
    before, _on_tensors = _on_tensors, True
    try:
        yield
    finally:
        _on_tensors = before


def tensor(x: Any) -> Any:
    """Undo `array`."""
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x


def storage(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return zeros to be read here and there: on a CPU in memory of NumPy's, which asks the system for large pages.

    Where it heeds that, reads of memory that no cache holds need no walk through tables of pages.

    Raises:
        RuntimeError: memory is too small.
    """
    if torch.device(device).type != "cpu":
        return torch.zeros(tuple(shape), dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    try:
        whole = np.empty(size + LINE, np.uint8)
    except (MemoryError, ValueError) as error:  # ValueError: more than can be numbered
        raise RuntimeError(f"can't allocate memory: could not allocate {size} bytes") from error  # as torch says it
    whole.fill(0)  # now: memory that the system promised and does not have should be missed before training
    start = -whole.ctypes.data % LINE
    return torch.from_numpy(whole[start : start + size]).view(dtype).view(tuple(shape))


def library(x: Any) -> Any:
    """Return the module that has sin, where, minimum and their kin for what `array` made, or one number of it."""
    return torch if isinstance(x, Tensor) else np


def constant(value: Any, device: torch.device, dtype: torch.dtype = torch.float64, num_envs: int = 0) -> Any:
    """Return numbers as what `array` makes of tensors, which is twice as fast in NumPy as Python's.

    With ``num_envs`` 1 a number is NumPy's scalar, as a lone environment's own are.
    """
    made = array(torch.tensor(value, dtype=dtype, device=device))
    return made[()] if num_envs == 1 and isinstance(made, np.ndarray) else made


def same(x: Any) -> Any:
    """Return ``x``."""
    return x


def stack(columns: Sequence[Any]) -> Any:
    """Return the k arrays or tensors (N,) as the rows of one, (k, N)."""
    if isinstance(columns[0], Tensor):
        return torch.stack([*columns])
    rows = np.empty((len(columns), *columns[0].shape), columns[0].dtype)  # several times faster than np.stack
    for i, column in enumerate(columns):
        rows[i] = column
    return rows


def float32(x: Any) -> Any:
    """Return a copy of an array or a tensor in float32, its rows contiguous."""
    if isinstance(x, Tensor):
        return x.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if x.ndim < 2 or len(x) < 512:
        return x.astype(np.float32, order="C")
    rows = np.empty(x.shape, np.float32)
    for i in range(x.shape[1]):  # by columns is three times faster where there are many rows
        rows[:, i] = x[:, i]
    return rows


def whole(x: Any) -> Any:
    """Return an array or a tensor in int64."""
    return x.long() if isinstance(x, Tensor) else x.astype(np.int64)


def bits(x: Any) -> Any:
    """Return what `array` does of int64 numbers, as uint64 where that is NumPy's: for `mix` and `unit`."""
    view = array(x)
    return view.view(np.uint64) if isinstance(view, np.ndarray) else view


def mix(z: Any) -> Any:
    """Scramble an int64 tensor or a uint64 array: the output function of splitmix64 (Steele, Lea & Flood 2014)."""
    if isinstance(z, np.ndarray):
        z = (z ^ (z >> _30)) * _FIRST
        z = (z ^ (z >> _27)) * _SECOND
        return z ^ (z >> _31)
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * (0xBF58476D1CE4E5B9 - 2**64)  # the masks make the shifts logical
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * (0x94D049BB133111EB - 2**64)
    return z ^ (z >> 31 & (1 << 33) - 1)


def unit(z: Any) -> Any:
    """Return float64 in [0, 1) from what `mix` returned: its upper 53 bits."""
    if isinstance(z, np.ndarray):
        return (z >> _11) * _ULP
    return (z >> 11 & (1 << 53) - 1).double() * 2.0**-53


def uniforms(key: Tensor, episode: Tensor, n: int) -> Tensor:
    """Return (N, n) float64 in [0, 1): outputs episode*n ... episode*n + n-1 of splitmix64 seeded with ``key`` (N,)."""
    draw = torch.arange(1, n + 1, device=key.device)
    return tensor(unit(mix(bits(key[:, None] + (episode[:, None] * n + draw) * GOLDEN))))
