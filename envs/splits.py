"""Splits of rows that give every class its share in every part.

Rows stand in order of their class, within it in a random order of the split's own seed. By fractions, every
(1 / fraction)-th is held out; by folds, the k-th of them is in fold k mod K, so that the K folds are disjoint, cover
all rows, and hold as many rows of each class, give or take one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlcore.errors import UserError


def stratified(labels: np.ndarray, validation: float, test: float, seed: int) -> dict[str, np.ndarray]:
    """Split rows by fractions so that every class has its share in every part, give or take one row.

    Row k of n, in order of the classes, belongs to the test part where floor(k * test + 1/2) steps up, and of the
    others to the validation part likewise.

    Returns:
        Sorted rows by part, disjoint and together all of ``labels`` (M,).

    Raises:
        UserError: a part would be empty though its fraction is above 0.
    """
    order = _ordered(labels, seed)
    in_test = _every(len(order), test)
    return _parts(order[~in_test], order[in_test], validation, test)


def folded(labels: np.ndarray, folds: int, fold: int, validation: float, seed: int) -> dict[str, np.ndarray]:
    """Split rows so that the test part is fold ``fold`` of ``folds``, and the validation part is taken from the rest.

    Args:
        labels: (M,) classes; all alike where there are none.
        folds: K, at least 2.
        fold: from 0.
        validation: fraction of all rows, below 1 - 1 / K.
        seed: of the order of the rows; the same for all folds of a set.

    Returns:
        Sorted rows by part, disjoint and together all of ``labels``.

    Raises:
        UserError: there are fewer rows than folds, or another part would be empty.
    """
    if len(labels) < folds:
        raise UserError(f"env.kwargs.folds: got {folds}, expected at most {len(labels)}, the number of rows")
    order = _ordered(labels, seed)
    in_test = np.arange(len(order)) % folds == fold
    return _parts(order[~in_test], order[in_test], validation, 1 / folds)


def numbered(labels: Sequence[str]) -> np.ndarray:
    """Return (M,) int64, one number for each different label."""
    return np.unique(np.array(labels), return_inverse=True)[1].reshape(-1)


def _ordered(labels: np.ndarray, seed: int) -> np.ndarray:
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    return shuffled[np.argsort(labels[shuffled], kind="stable")]


def _every(n: int, fraction: float) -> np.ndarray:
    """Return (n,) bool, True for evenly spread rows, round(n * fraction) in all."""
    return np.diff(np.floor(np.arange(n + 1) * fraction + 0.5)) > 0


def _parts(rest: np.ndarray, held: np.ndarray, validation: float, test: float) -> dict[str, np.ndarray]:
    in_validation = _every(len(rest), validation / (1 - test))
    parts = {"train": rest[~in_validation], "validation": rest[in_validation], "test": held}
    for name, fraction in (("train", 1.0), ("validation", validation), ("test", test)):
        if fraction > 0 and not len(parts[name]):
            n = len(rest) + len(held)
            raise UserError(f"the {name} split is empty: {n} rows are too few for a fraction of {fraction:g}")
    return {name: np.sort(part) for name, part in parts.items()}
