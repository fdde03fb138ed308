"""Trees of tensors: a tensor, or dicts and (named) tuples of trees; None is an absent branch.

Observations, recurrent states and batches are trees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


def signature(tree: Any, inputs: list[Tensor]) -> Any:
    """Return the structure of a tree of tensors, with shapes, strides and types; add the tensors to ``inputs``."""
    if isinstance(tree, Tensor):
        inputs.append(tree)
        return (*tree.shape, tree.stride(), tree.dtype)
    if isinstance(tree, dict):
        return (*tree, *[signature(value, inputs) for value in tree.values()])
    if isinstance(tree, tuple):
        return (type(tree).__name__, *[signature(value, inputs) for value in tree])
    if tree is None:
        return None
    raise TypeError(f"a tree holds {type(tree).__name__}")


def cut(tree: Any, parts: int) -> Sequence[Any]:
    """Return trees (B, ...), views of the successive parts of a tree (parts * B, ...)."""
    if isinstance(tree, Tensor):
        return tree.view(parts, -1, *tree.shape[1:]).unbind()
    if isinstance(tree, dict):
        rows = zip(*[cut(branch, parts) for branch in tree.values()], strict=True)
        return [dict(zip(tree, row, strict=True)) for row in rows] if tree else [{}] * parts
    if isinstance(tree, tuple):
        rows = zip(*[cut(branch, parts) for branch in tree], strict=True)
        made = [type(tree)(*row) if hasattr(tree, "_fields") else row for row in rows]
        return made if tree else [()] * parts
    return [None] * parts
