"""From cells to tensors and back: policies fitted on the training rows, kept as plain numbers and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from envs.table import Table, from_rows
from rlcore.config import Model
from rlcore.errors import UserError, nearest
from rlcore.fields import explain

MAX_CATEGORIES = 1_000  # beyond it a column is text or an identifier, and one-hot would exhaust memory
OWN = "(missing)"  # category of missing cells
Fences = tuple[float, float]


class Numeric(Model):
    """A column of numbers: clipped, filled, standardised."""

    kind: Literal["numeric"] = "numeric"
    name: str
    clip: Fences | None
    fill: float | None  # None: a missing cell is an error
    mean: float
    std: float = Field(gt=0)

    @property
    def outputs(self) -> list[str]:
        """Names of the encoded columns."""
        return [self.name]

    def encode(self, table: Table) -> np.ndarray:
        """Return (B, 1) float64."""
        values = table.numbers(self.name)
        if values is None:
            row = table.text_row(self.name)
            cell = table.column(self.name)[row]
            raise UserError(f"{table.where(row)}, column '{self.name}': got '{cell}', expected a number")
        if self.fill is None:
            refuse_missing(table, self.name)
        else:
            values = np.where(np.isnan(values), self.fill, values)
        if self.clip is not None:
            values = values.clip(*self.clip)
        return ((values - self.mean) / self.std)[:, None]


class Categorical(Model):
    """A column of categories: one-hot; an unknown category is all zeros."""

    kind: Literal["categorical"] = "categorical"
    name: str
    categories: tuple[str, ...]
    fill: str | None  # the category of a missing cell; None: it is an error

    @property
    def outputs(self) -> list[str]:
        """Names of the encoded columns."""
        return [f"{self.name}={category}" for category in self.categories]

    def index(self, table: Table) -> np.ndarray:
        """Return (B,) int64: the category of each row, -1 where unknown."""
        cells, missing = table.column(self.name), table.missing(self.name)
        if self.fill is None:
            refuse_missing(table, self.name)
        order = {category: i for i, category in enumerate(self.categories)}
        fill = order.get(self.fill or "", -1)
        return np.array(
            [fill if m else order.get(c, -1) for c, m in zip(cells, missing.tolist(), strict=True)], np.int64
        )

    def encode(self, table: Table) -> np.ndarray:
        """Return (B, C) float64."""
        return (self.index(table)[:, None] == np.arange(len(self.categories))).astype(np.float64)


class Target(Model):
    """The column to predict: a number, standardised or not, or one of several classes."""

    name: str
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    classes: tuple[str, ...] | None = None  # None: regression
    edges: tuple[float, ...] | None = None  # classes of a number: class k holds edges[k-1] <= y < edges[k]

    def encode(self, table: Table) -> Tensor:
        """Return (B, 1) float32 numbers, or (B,) int64 classes."""
        if self.classes is not None and self.edges is None:
            order = {label: i for i, label in enumerate(self.classes)}
            for row, cell in enumerate(table.column(self.name)):
                if cell not in order:
                    raise UserError(
                        f"{table.where(row)}: class '{cell}' of '{self.name}' is unknown{nearest(cell, order)}"
                    )
            return torch.tensor([order[cell] for cell in table.column(self.name)], dtype=torch.int64)
        values = target_numbers(table, self.name)
        if self.edges is not None:
            return torch.from_numpy(np.searchsorted(np.array(self.edges), values, side="right"))
        return _float32(((values - self.mean) / self.std)[:, None], table, [self.name])

    def units(self, values: Tensor) -> Tensor:
        """Return encoded numbers in the target's units, float64."""
        return values.double() * self.std + self.mean

    def decode(self, prediction: Tensor) -> list[float] | list[str]:
        """Return values in the target's units, or labels; from (B, 1) numbers, (B, C) logits or (B,) classes."""
        if self.classes is None:
            return self.units(prediction).flatten().tolist()
        index = prediction.argmax(-1) if prediction.is_floating_point() else prediction
        return [self.classes[i] for i in index.tolist()]


class Encoding(Model):
    """Fitted preprocessing. ``state`` is plain and JSON-able: a saved run predicts without its training data."""

    features: tuple[Annotated[Numeric | Categorical, Field(discriminator="kind")], ...]
    target: Target

    @property
    def outputs(self) -> list[str]:
        """Names of the F encoded columns."""
        return [name for feature in self.features for name in feature.outputs]

    def encode(self, rows: Table | Sequence[Mapping[str, object]]) -> Tensor:
        """Return (B, F) float32.

        Raises:
            UserError: a feature is absent, not a number where one was learnt, or missing without a fill.
        """
        table = self._table(rows)
        return _float32(np.concatenate([f.encode(table) for f in self.features], axis=1), table, self.outputs)

    def unknown(self, rows: Table | Sequence[Mapping[str, object]]) -> dict[str, int]:
        """Return by column how many rows hold a category that no training row held (encoded as zeros)."""
        table = self._table(rows)
        return {f.name: int((f.index(table) < 0).sum()) for f in self.features if isinstance(f, Categorical)}

    def _table(self, rows: Table | Sequence[Mapping[str, object]]) -> Table:
        return rows if isinstance(rows, Table) else from_rows(rows, [feature.name for feature in self.features])

    def decode(self, prediction: Tensor) -> list[float] | list[str]:
        """Return predictions in the target's units, or class labels."""
        return self.target.decode(prediction)

    def state(self) -> dict[str, Any]:
        """Return everything fitted as dicts, lists, numbers and strings."""
        return self.model_dump(mode="json")

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Encoding:
        """Rebuild from ``state``.

        Raises:
            UserError: it is not a saved encoding.
        """
        try:
            return cls.model_validate(state)
        except ValidationError as error:
            raise UserError(f"saved encoding: {explain(error, cls)}") from None


def _float32(values: np.ndarray, table: Table, names: Sequence[str]) -> Tensor:
    """Return (B, F) as float32; raise UserError where a number is too far from the training rows to fit."""
    beyond = np.abs(values) > np.finfo(np.float32).max
    if beyond.any():
        row, column = (int(i[0]) for i in beyond.nonzero())
        raise UserError(f"{table.where(row)}, column '{names[column]}': the value is too far from the training rows")
    return torch.from_numpy(values.astype(np.float32))


def refuse_missing(table: Table, name: str) -> None:
    """Raise UserError at the first missing cell of a column."""
    missing = table.missing(name)
    if missing.any():
        raise UserError(f"{table.where(int(missing.argmax()))}, column '{name}': the value is missing, expected one")


def target_numbers(table: Table, name: str) -> np.ndarray:
    """Return the target (B,) float64.

    Raises:
        UserError: a cell is missing or not a number.
    """
    refuse_missing(table, name)
    values = table.numbers(name)
    if values is None:
        row = table.text_row(name)
        raise UserError(f"{table.where(row)}: target '{name}' is '{table.column(name)[row]}', expected a number")
    return values
