"""What stands around training: signals that end an iteration instead of tearing it, and memory that ran out."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator
from typing import Any

import torch

from rlcore.errors import UserError
from rlcore.trainer import Trainer


@contextlib.contextmanager
def memory() -> Iterator[None]:
    """Turn torch's complaint of too little memory into a sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        lack = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
        if not lack:
            raise
        size = re.search(r"allocate (\d+) bytes", str(error))
        what = f"a tensor of {int(size[1]) / 2**30:,.1f} GiB does not fit" if size else "there is too little"
        raise UserError(
            f"memory: {what}; lower env.num_envs, source.batch_size, source.capacity or the network's size"
        ) from error


@contextlib.contextmanager
def interruptible(*trainers: Trainer) -> Iterator[None]:
    """Let Ctrl-C (and SIGTERM) end the iteration instead of tearing it; a second Ctrl-C stops at once."""

    def stop(signum: int, frame: Any) -> None:
        for trainer in trainers:
            trainer.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever started it interrupts it some other way
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
