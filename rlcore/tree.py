"""Trees of tensors: a tensor, or dicts and tuples of trees. Observations and recurrent states are trees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def tmap(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply ``fn`` to corresponding leaves of trees of one structure; return a tree of the results."""
    if isinstance(tree, dict):
        return {k: tmap(fn, v, *(r[k] for r in rest)) for k, v in tree.items()}
    if isinstance(tree, tuple):
        return tuple(tmap(fn, *vs) for vs in zip(tree, *rest, strict=True))
    return fn(tree, *rest)


def leaves(tree: Any) -> Iterator[Tensor]:
    """Yield the leaves in a fixed order (that of the dicts and tuples)."""
    if isinstance(tree, dict):
        for value in tree.values():
            yield from leaves(value)
    elif isinstance(tree, tuple):
        for value in tree:
            yield from leaves(value)
    else:
        yield tree
