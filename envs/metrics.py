"""Metrics of supervised tasks, from tensors of predictions and targets."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F


def regression(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """Return mse, rmse, mae and r2 = 1 - sum (y - f)^2 / sum (y - mean y)^2 over E values each, shaped alike.

    r2 is NaN where the targets do not vary.
    """
    y = target.double().flatten()  # (E,)
    error = prediction.double().flatten() - y
    mse, spread = float(error.square().mean()), float((y - y.mean()).square().mean())
    return {
        "mse": mse,
        "rmse": math.sqrt(mse),
        "mae": float(error.abs().mean()),
        "r2": 1 - mse / spread if spread > 0 else math.nan,
    }


def classification(prediction: Tensor, target: Tensor) -> dict[str, float]:
    """Return the accuracy, and for logits the mean cross-entropy (nats).

    Args:
        prediction: (E, C) logits, or (E,) classes.
        target: (E,) classes, int64.
    """
    if not prediction.is_floating_point():
        return {"accuracy": float((prediction == target).double().mean())}
    return {
        "accuracy": float((prediction.argmax(-1) == target).double().mean()),
        "cross_entropy": float(F.cross_entropy(prediction.double(), target)),
    }
