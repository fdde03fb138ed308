"""What tasks share whose items have names and whose answers are classes or labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from envs import figures, metrics, mistakes
from envs.one_step import OneStepTask


class Classification(OneStepTask):
    """Classes or labels of named items; played by a `OneStep` environment with ``names_rows``."""

    classes: Sequence[str]

    @abstractmethod
    def item(self, row: int) -> str:
        """Return what is shown of row ``row`` of this split."""

    def metrics(self, outcomes: dict[str, Tensor]) -> dict[str, float]:
        """Return the accuracy; for logits (E, C) also precision, recall, f1, roc_auc and cross_entropy (nats)."""
        prediction, target = outcomes["prediction"], outcomes["target"]
        return (metrics.classification if self.spec.loss is None else metrics.labelling)(prediction, target)

    def figures(self, outcomes: dict[str, Tensor]) -> dict[str, Any]:
        """Return the confusion matrix and, for logits, the ROC curves."""
        return figures.classification(outcomes["prediction"], outcomes["target"], self.classes)

    def mistakes(self, outcomes: dict[str, Tensor], n: int) -> str:
        """Return the n items with the highest losses among those that are misclassified, as a Markdown table."""
        items = [self.item(row) for row in outcomes["row"].tolist()]
        return mistakes.labels(outcomes["prediction"], outcomes["target"], self.classes, items, n)
