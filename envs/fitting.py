"""Fitting an `Encoding` to a table: every statistic comes from the training rows alone."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import NamedTuple

import numpy as np

from envs.columns import (
    MAX_CATEGORIES,
    OWN,
    Categorical,
    Encoding,
    Fences,
    Numeric,
    Target,
    refuse_missing,
    target_numbers,
)
from envs.options import Preparation
from envs.splits import folded, numbered
from envs.table import Table, partition
from rlcore.errors import UserError


class Prepared(NamedTuple):
    """A table's rows by part, what was left out of them, and the encoding fitted on the training rows."""

    table: Table
    features: list[str]  # asked for; the encoding has those that vary
    parts: dict[str, np.ndarray]  # indices of the rows used, sorted
    dropped: dict[str, dict[str, int]]  # rows left out: part -> reason -> count
    fences: dict[str, Fences]  # of the columns of numbers that have them
    encoding: Encoding


def prepare(
    table: Table,
    options: Preparation,
    validation: float,
    test: float,
    seed: int,
    encoding: Encoding | None = None,
    fold: tuple[int, int] | None = None,
) -> Prepared:
    """Split the rows that have a target, apply the row policies, and fit the encoding on what is left to train on.

    Args:
        table: all rows.
        options: columns and policies.
        validation: fraction of rows held out to choose models.
        test: fraction of rows held out to report.
        seed: of the split, independent of any run's.
        encoding: of a saved run, to be used as it is: its columns and statistics replace those of ``options``.
        fold: how many folds there are, and which is the test part, whose fraction is then not looked at.

    Raises:
        UserError: a column is absent or unfit for its use, a value is refused by a policy, or no rows are left.
    """
    features, target = _columns(table, options, encoding)
    if options.missing == "error":
        for name in (target, *features):
            refuse_missing(table, name)
    labelled = np.flatnonzero(~table.missing(target))
    if not len(labelled):
        raise UserError(f"{table.name}: no rows are left, the target '{target}' is missing in all of them")
    parts = _parts(table, labelled, options, validation, test, seed, fold)
    dropped = {part: {"missing": 0, "outliers": 0} for part in parts}
    if options.missing == "drop":
        lacking = np.any([table.missing(name) for name in features], axis=0)
        for part, rows in parts.items():
            parts[part] = rows[~lacking[rows]]
            dropped[part]["missing"] = len(rows) - len(parts[part])
    fences = _fences(table, parts["train"], options)
    if options.outliers == "drop":
        rows = parts["train"]
        beyond = np.zeros(len(table), bool)
        for name in (target, *features):
            beyond |= outliers(table, name, fences)
        parts["train"] = rows[~beyond[rows]]
        dropped["train"]["outliers"] = len(rows) - len(parts["train"])
    if not len(parts["train"]):
        policies = f"missing='{options.missing}' and outliers='{options.outliers}'"
        raise UserError(f"{table.name}: no rows are left to train on after {policies}")
    if encoding is None:
        encoding = _fit(table, parts, features, options, fences)
    return Prepared(table, features, parts, dropped, fences, encoding)


def _parts(
    table: Table,
    labelled: np.ndarray,
    options: Preparation,
    validation: float,
    test: float,
    seed: int,
    fold: tuple[int, int] | None,
) -> dict[str, np.ndarray]:
    """Return the rows of each split of those that have a target."""
    if fold is None:
        return partition(labelled, validation, test, seed)
    found = folded(_strata(table.take(labelled), options), *fold, validation, seed)
    return {part: labelled[rows] for part, rows in found.items()}


def _strata(table: Table, options: Preparation) -> np.ndarray:
    """Return (rows,) the classes that folds are to share out, all alike for regression."""
    if options.kind == "regression":
        return np.zeros(len(table))
    if options.bins is None:
        return numbered(table.column(options.target))
    return target_numbers(table, options.target).argsort().argsort() * options.bins // len(table)


def outliers(table: Table, name: str, fences: dict[str, Fences]) -> np.ndarray:
    """Return (rows,) bool: True where a number lies beyond the fences of its column."""
    values = table.numbers(name)
    if values is None or name not in fences:
        return np.zeros(len(table), bool)
    low, high = fences[name]
    return (values < low) | (values > high)  # NaN compares False: missing is not outlying


def _columns(table: Table, options: Preparation, encoding: Encoding | None) -> tuple[list[str], str]:
    if encoding is not None:
        features, target = [feature.name for feature in encoding.features], encoding.target.name
        kind = "regression" if encoding.target.classes is None else "classification"
        if (target, kind) != (options.target, options.kind) or {*features} - {*(options.features or features)}:
            asked = f"{options.kind} of '{options.target}' from {options.features or 'all other columns'}"
            raise UserError(
                f"{table.name}: {asked} does not fit the saved encoding, {kind} of '{target}' from {features}"
            )
    else:
        target = options.target
        features = [name for name in table.cells if name != target] if options.features is None else options.features
    for name in (target, *features):
        table.column(name)
    if target in features:
        raise UserError(f"features: '{target}' is the target, expected other columns")
    if not features or len({*features}) < len(features):
        raise UserError(f"features: got {features}, expected distinct columns beside the target, at least one")
    return features, target


def _fences(table: Table, train: np.ndarray, options: Preparation) -> dict[str, Fences]:
    """Tukey's fences (Exploratory Data Analysis, 1977) or three deviations; none for columns without spread."""
    fences = {}
    for name in table.cells:
        numbers = table.numbers(name)
        values = np.zeros(0) if numbers is None else numbers[train]
        values = values[~np.isnan(values)]
        if not len(values):
            continue
        if options.fences == "iqr":
            low, high = np.quantile(values, [0.25, 0.75])
            reach = 1.5 * (high - low)
        else:
            low = high = values.mean()
            reach = 3 * values.std()
        if reach > 0:  # a flag that is mostly 0 has no interquartile range: its ones are no outliers
            fences[name] = (float(low - reach), float(high + reach))
    return fences


def _fit(
    table: Table, parts: dict[str, np.ndarray], features: list[str], options: Preparation, fences: dict[str, Fences]
) -> Encoding:
    target = _fit_target(table, parts, options)
    train = table.take(parts["train"])
    fitted = []
    for name in features:
        if table.numbers(name) is None:
            feature = _fit_categorical(train, name, options)
        else:
            feature = _fit_numeric(train, name, options, fences.get(name) if options.outliers == "clip" else None)
        if feature is not None:
            fitted.append(feature)
    if not fitted:
        raise UserError(f"{table.name}: none of the features {features} varies over the training rows")
    return Encoding(features=tuple(fitted), target=target)


def _fit_numeric(train: Table, name: str, options: Preparation, clip: Fences | None) -> Numeric | None:
    """Return None for a column that is constant or empty."""
    values = train.numbers(name)
    assert values is not None
    if clip is not None:
        values = values.clip(*clip)
    present = values[~np.isnan(values)]
    if _constant(present):
        return None
    fill = {"mean": float(present.mean()), "median": float(np.median(present))}.get(options.missing)
    values = present if fill is None else np.where(np.isnan(values), fill, values)
    return Numeric(name=name, clip=clip, fill=fill, mean=float(values.mean()), std=float(values.std()))


def _constant(values: np.ndarray) -> bool:
    return not len(values) or values.min() == values.max() or not values.std() > 0  # the spread may underflow


def _fit_categorical(train: Table, name: str, options: Preparation) -> Categorical | None:
    """Return None for a column that is constant or empty."""
    missing = train.missing(name)
    counts = Counter(cell for cell, m in zip(train.column(name), missing.tolist(), strict=True) if not m)
    categories = sorted(counts)
    if len(categories) > MAX_CATEGORIES:
        raise UserError(
            f"{train.name}: column '{name}' has {len(categories)} distinct texts, expected at most {MAX_CATEGORIES} "
            "categories; leave it out by naming the columns to use in features=[...]"
        )
    fill = None
    if options.missing in ("mean", "median") and categories:
        fill = OWN if missing.any() else max(categories, key=counts.__getitem__)
    if fill == OWN and OWN not in counts:
        categories.append(OWN)
    return Categorical(name=name, categories=tuple(categories), fill=fill) if len(categories) > 1 else None


def _fit_target(table: Table, parts: dict[str, np.ndarray], options: Preparation) -> Target:
    name = options.target
    if options.kind == "classification" and options.bins is None:
        return _labels(table.take(np.concatenate(list(parts.values()))), name)
    target_numbers(table.take(np.flatnonzero(~table.missing(name))), name)  # text in held-out rows is an error too
    values = target_numbers(table.take(parts["train"]), name)
    if _constant(values):
        raise UserError(f"{table.name}: target '{name}' is {values[0]:g} in every training row, expected it to vary")
    if options.bins is not None:
        edges = np.quantile(values, np.arange(1, options.bins) / options.bins)
        masses = np.bincount(np.searchsorted(edges, values, side="right"), minlength=options.bins)
        if not masses.all():
            raise UserError(f"{table.name}: target '{name}' has too few distinct values for bins={options.bins}")
        shown = [f"{edge:.6g}" for edge in edges]
        inner = [f"{low} <= {name} < {high}" for low, high in itertools.pairwise(shown)]
        return Target(
            name=name, classes=(f"{name} < {shown[0]}", *inner, f"{name} >= {shown[-1]}"), edges=tuple(edges.tolist())
        )
    if not options.standardize_target:
        return Target(name=name)
    return Target(name=name, mean=float(values.mean()), std=float(values.std()))


def _labels(table: Table, name: str) -> Target:
    """Classes of all labelled rows: which labels exist is part of the question, not a statistic of the answers."""
    labels = {*table.column(name)}
    if not 2 <= len(labels) <= MAX_CATEGORIES:
        raise UserError(
            f"{table.name}: target '{name}' has {len(labels)} classes, expected 2 to {MAX_CATEGORIES} "
            "(or bins=N for a number)"
        )
    numeric = table.numbers(name) is not None
    return Target(name=name, classes=tuple(sorted(labels, key=lambda label: (float(label) if numeric else 0.0, label))))
