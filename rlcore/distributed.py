"""Data-parallel training over torch's process groups: ``torchrun --nproc-per-node 2 scripts/train.py CONFIG``.

Every rank holds the same weights and a share of the items. Sums and counts are added up over ranks before anything is
divided, so uneven shares are exact. The clock counts the frames of all ranks, hence all decide alike what is due.
Without a process group there is one rank, and nothing here costs anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rlcore.errors import UserError

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # of a rank that waits for another, which may be saving or loading


def gpus() -> int:
    """Return how many GPUs the ranks of this machine have, one each in their order; 0: too few for all."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return ranks if ranks <= torch.cuda.device_count() else 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the ranks that torchrun started, if it did, and part from them at the end."""
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if gpus():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # The device is not known yet. What the host knows goes by gloo always, so that no GPU is waited for.
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus() else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(n: int) -> slice:
    """Return which of n items are this rank's: contiguous parts whose sizes differ by one at most."""
    least, more = divmod(n, size())
    start = rank() * least + min(rank(), more)
    return slice(start, start + least + (rank() < more))


def shared(n: int, what: str) -> int:
    """Return how many of n items are this rank's.

    Raises:
        UserError: there are fewer than ranks; ``what`` names the setting.
    """
    if n < size():
        raise UserError(f"{what}: got {n}, expected at least {size()}, one for each rank")
    part = share(n)
    return part.stop - part.start


def stream(name: str) -> str:
    """Return the name of this rank's own random stream; that of rank 0 is the one of a run alone."""
    return f"{name}/{rank()}" if rank() else name


def sum_(*tensors: Tensor) -> None:
    """Add each tensor up over the ranks, in place; all ranks get the same bits."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)


def total(n: int) -> int:
    """Return the sum over ranks of a number known on the host."""
    number = torch.tensor(n, dtype=torch.int64)
    sum_(number)
    return int(number)


def anywhere(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return flag if size() == 1 else total(flag) > 0


def every(value: T) -> list[T]:
    """Return the values of all ranks, in their order; small ones, since all ranks get them."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def gathered(value: T) -> list[T]:
    """Return the values of all ranks on rank 0, and [] on the others."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] | None = [None] * size() if rank() == 0 else None
    dist.gather_object(value, values)
    return values or []


def mean(values: dict[str, float]) -> dict[str, float]:
    """Return the means over ranks of numbers by name; a name missing on some is averaged over the others."""
    if not dist.is_initialized():
        return values
    parts = every(values)
    names = dict.fromkeys(name for part in parts for name in part)
    columns = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(column) / len(column) for name, column in columns.items()}


def first(call: Callable[[], T]) -> T:
    """Return on every rank what rank 0's call returns.

    Raises:
        UserError: the call's, on every rank.
    """
    answer: Any = None
    if rank() == 0:
        try:
            answer = call()
        except UserError as error:
            answer = error
    answer = every(answer)[0]
    if isinstance(answer, UserError):
        raise answer
    return answer


def together() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()
