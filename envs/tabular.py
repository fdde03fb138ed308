"""Regression and classification over tables, as one-step tasks and as environments."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from envs import figures, metrics, mistakes
from envs.columns import Encoding
from envs.criterion import Criterion
from envs.fitting import Prepared, prepare
from envs.one_step import OneStep, OneStepTask
from envs.options import LineConfig, Preparation, TabularConfig, validated
from envs.report import render, report
from envs.splits import folded
from envs.table import Table, from_rows, partition, read
from rlcore.errors import UserError
from rlcore.types import Example, Spec
from rlcore.vector import Autoreset, Split

Reward = Callable[[Tensor, Tensor], Tensor]  # (prediction (B, ...), target (B, ...)) -> (B,)


class TableTask(OneStepTask):
    """Examples of one split of a prepared table, in memory on the device."""

    def __init__(
        self, prepared: Prepared, split: Split, device: str | torch.device, spec: Spec, reward: Reward
    ) -> None:
        self.prepared, self.spec, self._reward = prepared, spec, reward
        rows = prepared.parts[split]
        if not len(rows):
            raise UserError(f"{prepared.table.name}: the {split} split is empty, expected at least one row")
        table = prepared.table.take(rows)
        self._table = table
        self._x = prepared.encoding.encode(table).to(device)  # (size, F)
        self._target = prepared.encoding.target.encode(table).to(device)  # (size, 1) or (size,)
        self.size = len(self._target)

    def draw(self, index: Tensor) -> Example:
        """Return the examples (B, ...) at ``index`` (B,) int64."""
        return Example(self._x.index_select(0, index), self._target.index_select(0, index))

    def reward(self, action: Tensor, target: Tensor, /) -> Tensor:
        """Return minus the loss of each prediction (B,), or 1 for a right class and 0 for a wrong one."""
        return self._reward(action, target)

    def metrics(self, outcomes: dict[str, Tensor]) -> dict[str, float]:
        """Return mse, rmse, mae and r2 in the target's units; or of classes what `envs.metrics` says.

        That is the accuracy, and for logits also precision, recall, f1, roc_auc and cross_entropy.
        """
        prediction, true, target = outcomes["prediction"], outcomes["target"], self.prepared.encoding.target
        if target.classes is not None:
            return (metrics.classification if self.spec.loss is None else metrics.labelling)(prediction, true)
        return metrics.regression(target.units(prediction), target.units(true))

    def figures(self, outcomes: dict[str, Tensor]) -> dict[str, Any]:
        """Return of classes the confusion matrix and, for logits, ROC curves, of numbers predictions over targets."""
        prediction, true, target = outcomes["prediction"], outcomes["target"], self.prepared.encoding.target
        if target.classes is not None:
            return figures.classification(prediction, true, target.classes)
        return figures.regression(target.units(prediction), target.units(true))

    def mistakes(self, outcomes: dict[str, Tensor], n: int) -> str:
        """Return the n rows with the highest losses among those misclassified, or the largest errors, as Markdown."""
        prediction, true, target = outcomes["prediction"], outcomes["target"], self.prepared.encoding.target
        items = [self._describe(row) for row in outcomes["row"].tolist()]
        if target.classes is not None:
            return mistakes.labels(prediction, true, target.classes, items, n)
        return mistakes.numbers(target.units(prediction), target.units(true), items, n)

    def _describe(self, row: int) -> str:
        """Return the line and the features of row ``row`` of this split."""
        cells = (f"{f.name}={self._table.cells[f.name][row]}" for f in self.prepared.encoding.features)
        return f"line {self._table.lines[row]}: {', '.join(cells)}"


def right(action: Tensor, target: Tensor) -> Tensor:
    """Return 1 where the chosen class (B,) is the true one (B,), else 0."""
    return (action == target).float()


def specify(encoding: Encoding, config: TabularConfig | LineConfig) -> tuple[Spec, Reward]:
    """Return the spaces of a table's task, with the loss where the reward is differentiable, and the reward."""
    obs_space = spaces.Box(-np.inf, np.inf, (len(encoding.outputs),), np.float32)
    classes = encoding.target.classes
    if isinstance(config, TabularConfig) and config.bandit:
        return Spec(obs_space, spaces.Discrete(len(classes or ()))), right
    if classes is None:
        criterion, width = Criterion(config.loss or "MSELoss", "regression"), 1
    else:
        criterion, width = Criterion(config.loss or "CrossEntropyLoss", "classification"), len(classes)
    action_space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
    return Spec(obs_space, action_space, loss=criterion.loss), criterion.reward


class TablePredictor:
    """Predicts new rows from a fitted encoding alone."""

    def __init__(self, encoding: Encoding, spec: Spec) -> None:
        self.encoding, self.spec = encoding, spec

    def read(self, words: Sequence[str]) -> Path | list[dict[str, str]]:
        """Return the path of a CSV file, or one row of NAME=VALUE pairs.

        Raises:
            UserError: the words are neither.
        """
        if len(words) == 1 and "=" not in words[0]:
            return Path(words[0])
        row: dict[str, str] = {}
        for word in words:
            name, equals, value = word.partition("=")
            if not equals or name in row:
                expected = "every name once" if equals else "a CSV file alone, or NAME=VALUE pairs of one row"
                raise UserError(f"input '{word}': expected {expected}")
            row[name] = value
        return [row]

    def encode(self, inputs: str | Path | Sequence[Mapping[str, object]]) -> tuple[Tensor, list[str]]:
        """Return observations (B, F) for the rows of a CSV file or {column: value} mappings, and remarks.

        Raises:
            UserError: the file cannot be read, or a row lacks what the encoding needs.
        """
        rows = read(inputs) if isinstance(inputs, (str, Path)) else inputs
        remarks = [
            f"column '{name}': {count} of {len(rows)} rows hold a category unknown to training, encoded as zeros"
            for name, count in self.encoding.unknown(rows).items()
            if count
        ]
        return self.encoding.encode(rows), remarks

    def names(self, inputs: str | Path | Sequence[Mapping[str, object]], obs: Tensor) -> list[list[str]]:
        """Return for each row the cells that the columns of its observation (F,) stand for, "NAME = CELL"."""
        features = self.encoding.features
        rows = read(inputs) if isinstance(inputs, (str, Path)) else from_rows(inputs, [f.name for f in features])
        texts = [[f"{f.name} = {cell or 'missing'}" for cell in rows.column(f.name)] for f in features]
        widths = [len(f.outputs) for f in features]
        return [[t for t, w in zip(row, widths, strict=True) for _ in range(w)] for row in zip(*texts, strict=True)]

    @property
    def target(self) -> str:
        """Name of what is predicted."""
        return self.encoding.target.name

    def decode(self, action: Tensor) -> list[Any]:
        """Return B numbers in the target's units, or B class labels."""
        return self.encoding.decode(action)


class TableEnv(OneStep):
    """What environments over tables share: the saved preprocessing, the report, prediction."""

    Config: ClassVar[type[TabularConfig | LineConfig]]
    has_folds = True
    names_rows = True

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device = "cpu",
        split: Split = "train",
        autoreset: Autoreset = "same_step",
        **kwargs: Any,
    ) -> None:
        config = validated(self.Config, kwargs)
        encoding = Encoding.from_state(config.encoding) if config.encoding else None
        fractions = (config.val_fraction, config.test_fraction, config.split_seed)
        fold = (config.folds, config.fold) if config.folds else None
        self.prepared = prepare(*self.table(config), *fractions, encoding, fold)
        spec, reward = specify(self.prepared.encoding, config)
        super().__init__(TableTask(self.prepared, split, device, spec, reward), num_envs, device, split, autoreset)

    @staticmethod
    @abstractmethod
    def table(config: Any) -> tuple[Table, Preparation]:
        """Return the table and how to prepare it."""

    def fitted(self) -> dict[str, Any]:
        """Return the keyword ``encoding`` that makes another instance encode as this one does."""
        return {"encoding": self.prepared.encoding.state()}

    def report(self) -> tuple[dict[str, Any], str]:
        """Return the data-quality report of the whole table as a dict (see `envs.report`) and as text."""
        values = report(self.prepared)
        return values, render(values)

    @classmethod
    def predictor(cls, kwargs: Mapping[str, Any]) -> TablePredictor:
        """Return what predicts new rows, from the environment's keywords and what ``fitted`` returned."""
        config = validated(cls.Config, kwargs)
        encoding = Encoding.from_state(config.encoding or {})
        return TablePredictor(encoding, specify(encoding, config)[0])


class Tabular(TableEnv):
    """Predict a column of a table. Keywords: `TabularConfig`.

    Raises:
        UserError: a keyword is unknown or of the wrong kind, or the table cannot be used as asked.
    """

    Config = TabularConfig

    @staticmethod
    def table(config: TabularConfig) -> tuple[Table, Preparation]:
        """Return the file's table."""
        return read(config.path), config


class Line(TableEnv):
    """Points around a line: y = slope * x + intercept + noise. Keywords: `LineConfig`.

    x is in units of the training inputs, which have mean 0 and standard deviation 1 exactly; y is not scaled.
    """

    Config = LineConfig

    @staticmethod
    def table(config: LineConfig) -> tuple[Table, Preparation]:
        """Return the points as a table."""
        rng = np.random.default_rng(config.data_seed)
        x, noise = rng.standard_normal((2, config.n))
        validation, seed = config.val_fraction, config.split_seed
        if config.folds:
            parts = folded(np.zeros(config.n), config.folds, config.fold, validation, seed)
        else:
            parts = partition(np.arange(config.n), validation, config.test_fraction, seed)
        train = x[parts["train"]]
        x = (x - train.mean()) / train.std()
        y = config.slope * x + config.intercept + config.noise * noise
        cells = {"x": [repr(v) for v in x.tolist()], "y": [repr(v) for v in y.tolist()]}
        return Table("line", cells, list(range(1, config.n + 1))), Preparation(target="y")
