"""Trees of tensors: a tensor, or dicts and (named) tuples of trees; None is an absent branch.

Observations, recurrent states and batches are trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def tmap(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply ``fn`` to corresponding leaves of trees of one structure; return a tree of the results."""
    if isinstance(tree, dict):
        return {k: tmap(fn, v, *(r[k] for r in rest)) for k, v in tree.items()}
    if isinstance(tree, tuple):
        mapped = [tmap(fn, *branches) for branches in zip(tree, *rest, strict=True)]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else tuple(mapped)
    return None if tree is None else fn(tree, *rest)


def leaves(tree: Any) -> Iterator[Tensor]:
    """Yield the leaves in a fixed order (that of the dicts and tuples)."""
    if isinstance(tree, dict):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, tuple):
        for value in tree:
            yield from leaves(value)
    elif tree is not None:
        yield tree
