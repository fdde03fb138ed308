"""Small tensors of a step side by side in memory: what is drawn together is read together.

A record holds one item of every tensor, the widest numbers first, so that all are aligned without gaps. Drawing B
items at random is then one gather of B records, a cache miss or two each, whatever the number of tensors; of the
records gathered every tensor is a strided view. On a CPU NumPy gathers, in a third of torch's time for small
records; elsewhere torch does, on the same bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlcore.arrays import array, storage
from rlcore.errors import UserError
from rlcore.tree import leaves, tmap

WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
NUMBERS = (  # what NumPy knows as well
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.float32, torch.float64),
)
ZERO = np.zeros((), np.float32)
FIELDS = ("obs", "action", "reward", "terminated", "truncated", "next_obs")  # of every step
SMALL = 256  # bytes; an item of several cache lines gains nothing from a record, and is better left contiguous


def fits(x: Tensor) -> bool:
    """Return whether items of ``x`` (N, ...) belong in records."""
    return x[0].nbytes <= SMALL and x.dtype in NUMBERS


class Records:
    """Items of several tensors in ``slots`` records, all 0 at first.

    Args:
        slots: records.
        examples: tensors (N, ...) by name, for shapes and types; all `fits`.
        device: where they live.

    Raises:
        RuntimeError: memory is too small.
    """

    def __init__(self, slots: int, examples: dict[str, Tensor], device: torch.device | str = "cpu") -> None:
        widest = sorted(examples, key=lambda name: -examples[name].element_size())
        word = max((examples[name].element_size() for name in widest), default=1)
        self._at: dict[str, tuple[int, torch.dtype, tuple[int, ...]]] = {}  # bytes from the start, type, shape
        used = 0
        for name in widest:
            self._at[name] = (used, examples[name].dtype, tuple(examples[name].shape[1:]))
            used += examples[name][0].nbytes
        self.data = storage((slots, -(-max(used, 1) // word)), WORDS[word], device)  # (slots, words)
        whole: Any = array(self.data)
        self._whole = whole.view(self._record(word)).reshape(-1) if isinstance(whole, np.ndarray) else whole
        self._columns = {name: self.column(self._whole, name) for name in self._at}

    def _record(self, word: int) -> np.dtype[Any]:
        parts = [(f"{kind}".removeprefix("torch."), shape) for _, kind, shape in self._at.values()]
        offsets = [at for at, _, _ in self._at.values()]
        size = self.data.shape[1] * word
        return np.dtype({"names": list(self._at), "formats": parts, "offsets": offsets, "itemsize": size})

    def take(self, index: Any) -> Any:
        """Return copies of the records at ``index``, an array of any shape, for `column`."""
        if isinstance(self._whole, np.ndarray):
            return self._whole.take(index)
        return self._whole.index_select(0, index.reshape(-1)).view(*index.shape, -1)

    def column(self, records: Any, name: str) -> Any:
        """Return the items of one tensor in records: a view, an array as the records are one."""
        if isinstance(records, np.ndarray):
            return records[name]
        at, kind, shape = self._at[name]
        numbers, first = records.view(kind), at // kind.itemsize
        return (
            numbers.narrow(-1, first, torch.Size(shape).numel()).unflatten(-1, shape) if shape else numbers[..., first]
        )

    def items(self, records: Any, name: str) -> Tensor:
        """Return what `column` does as a tensor."""
        return torch.from_numpy(records[name]) if isinstance(records, np.ndarray) else self.column(records, name)

    def put(self, slot: Any, name: str, items: Tensor, steps: bool = False) -> None:
        """Write items (N, ...), or ``steps`` (T, N, ...), of one tensor into the records ``slot``.

        These are an array, or on a CPU a slice.

        Raises:
            TypeError: the items are of another type.
        """
        if items.dtype != self._at[name][1]:
            raise TypeError(f"items of {items.dtype} for a place of {self._at[name][1]}")
        column = self._columns[name]
        given = array(items)
        if steps:
            given = given.reshape(given.shape[0] * given.shape[1], *given.shape[2:])
        if isinstance(column, np.ndarray):
            column[slot] = given
        else:
            column.index_copy_(0, slot, given)


def check_example(example: dict[str, Any], num_envs: int) -> None:
    """Check that a step of ``num_envs`` environments has all that a step has.

    Raises:
        UserError: a field is missing, or is not (num_envs, ...).
    """
    if missing := [name for name in FIELDS if name not in example]:
        raise UserError(f"replay: the example lacks '{missing[0]}'; expected {', '.join(FIELDS)}")
    for name, field in example.items():
        for x in leaves(field):
            if x.shape[:1] != (num_envs,):
                raise UserError(f"replay: '{name}' has shape {tuple(x.shape)}; expected ({num_envs}, ...)")


def layout(fields: Any) -> Any:
    """Return the dtype and shape of the items of every tensor of a tree, as text."""
    return tmap(lambda x: f"{str(x.dtype).removeprefix('torch.')}{list(x.shape[1:])}", fields)


def pick(x: Any, index: Any) -> Any:
    """Return the items of an array at ``index`` (B,)."""
    return x.take(index, axis=0) if isinstance(x, np.ndarray) else x.index_select(0, index)


def where(flag: Any, x: Any, y: Any) -> Any:
    """Return the array ``x`` where ``flag``, else ``y``, as an array like ``x``."""
    return np.where(flag, x, np.asarray(y, x.dtype)) if isinstance(flag, np.ndarray) else torch.where(flag, x, y)


def minimum(x: Any, y: Any) -> Any:
    """Return the smaller ones of two arrays' numbers."""
    return np.minimum(x, y) if isinstance(x, np.ndarray) else torch.minimum(x, y)


def unless(flag: Any, x: Any) -> Tensor:
    """Return the array ``x`` (B,) or (1,) in float32 where not ``flag`` (B,), and else 0: a tensor."""
    if isinstance(flag, np.ndarray):
        return torch.from_numpy(np.where(flag, ZERO, x))
    return torch.where(flag, 0.0, x)


def fewest(heads: Any, rows: int) -> Any:
    """Return the first of heads, or ``rows`` if that is less: a number of an array, else a tensor (1,)."""
    return min(heads.item(0), rows) if isinstance(heads, np.ndarray) else heads[:1].clamp(max=rows)


def find(edges: Any, x: Any) -> Any:
    """Return for each of ``x`` (B,) the number of ascending ``edges`` (k,) that are not above it."""
    if isinstance(edges, np.ndarray):
        return edges.searchsorted(x, "right")
    return torch.searchsorted(edges, x, right=True)
