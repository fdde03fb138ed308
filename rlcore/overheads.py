"""What a process spends on nothing while it trains: arithmetic on denormal numbers, and sweeps for garbage.

Denormals (below 1.2e-38 for float32) are numbers too small for full precision. Where a weight's gradient stays zero, as
behind a ReLU that has died, Adam's moments decay until they are denormal, and stay so: nine tenths of the smallest
number round to that number. Processors take ten to a hundred times as long for them: DQN with two layers of 256 spent a
quarter of its time on moments that mean nothing.

Python's cycle collector now and then goes through every object there is. Imported modules have hundreds of thousands,
which takes a tenth of a second each time, as long as a hundred updates.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")
_DENORMAL = 5e-324


def flushing() -> bool:
    """Whether this thread's arithmetic takes denormals for zero."""
    return _DENORMAL == 0.0  # by the same arithmetic as tensors


def flushed(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Return a function that takes denormals for zero while it runs, where one thread computes.

    Of several threads each has its own setting, made when it begins: what they compute would depend on when that was.
    """

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if torch.get_num_threads() > 1 or flushing():
            return function(*args, **kwargs)
        torch.set_flush_denormal(True)
        try:
            return function(*args, **kwargs)
        finally:
            torch.set_flush_denormal(False)

    return run


@contextmanager
def unswept() -> Iterator[None]:
    """Let the cycle collector leave alone what is there already; what is made from now on it looks through.

    Where something is frozen already, it stays as it is.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def settle() -> None:
    """Within `unswept`, count what has been made since as there already: a compiler's tables, say."""
    if gc.get_freeze_count():
        gc.freeze()
