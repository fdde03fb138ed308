"""Numbers too small for full precision (denormals, below 1.2e-38 for float32) count as zero where weights are changed.

Where a weight's gradient stays zero, as behind a ReLU that has died, Adam's moments decay until they are denormal, and
stay so: nine tenths of the smallest number round to that number. Processors take ten to a hundred times as long for
them: DQN at the zoo's settings spent a quarter of its time on moments that mean nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
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
