"""Metrics of supervised tasks, from tensors of predictions and targets."""

from __future__ import annotations

import functools
import importlib.util
import math

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from rlcore.errors import note


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


def language(nll: Tensor, tokens: Tensor, correct: Tensor, per_character: float) -> dict[str, float]:
    """Return loss (nats a token), perplexity, bits_per_character and accuracy over E windows.

    The mean is over tokens, whichever windows they are in: perplexity = exp(sum nll / sum tokens).

    Args:
        nll: (E,) the windows' summed negative log-likelihoods, in nats.
        tokens: (E,) how many count in each.
        correct: (E,) how many of those are predicted rightly.
        per_character: tokens a character of the text.
    """
    total = float(tokens.sum())
    loss = float(nll.double().sum()) / total
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_character": loss * per_character / math.log(2),
        "accuracy": float(correct.sum()) / total,
    }


def labelling(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Return accuracy, precision, recall, f1, roc_auc and cross_entropy (nats) over E items.

    Precision, recall, F1 and the area under the ROC curve (one class against the rest) are means over classes. Of
    several labels an item (Godbole and Sarawagi 2004), accuracy is over single labels, exact over whole items, and
    cross_entropy the mean over labels. There is no roc_auc where a class has no item, or no other class has. Without
    scikit-learn, accuracy and cross_entropy alone.

    Args:
        logits: (E, C).
        target: (E,) int64 classes, or (E, C) which labels hold, 0 or 1.
    """
    several = target.dim() == 2
    held = target.bool() if several else F.one_hot(target, logits.shape[1]).bool()  # (E, C)
    said = logits > 0 if several else F.one_hot(logits.argmax(-1), logits.shape[1]).bool()
    scores = logits.double().sigmoid() if several else logits.double().softmax(-1)
    right = held == said  # (E, C)
    values = {"accuracy": float(right.double().mean() if several else right.all(1).double().mean())}
    if has_scikit_learn():
        values |= _macro(held.numpy(force=True), said.numpy(force=True), scores.numpy(force=True))
    if several:
        entropy = F.binary_cross_entropy_with_logits(logits.double(), target.double())
        return values | {"exact": float(right.all(1).double().mean()), "cross_entropy": float(entropy)}
    return values | {"cross_entropy": float(F.cross_entropy(logits.double(), target))}


def _macro(held: np.ndarray, said: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Return means over classes of what holds (E, C) bool, is said (E, C) bool and how likely it is said to be."""
    from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

    precision, recall, f1, _ = precision_recall_fscore_support(
        held,
        said,
        average="macro",
        zero_division=0,  # pyright: ignore[reportArgumentType] - a number or "warn"
    )
    values = {"precision": float(precision), "recall": float(recall), "f1": float(f1)}
    if not (held.any(0) & ~held.all(0)).all():
        _without_area()
        return values
    return values | {"roc_auc": float(roc_auc_score(held, scores, average="macro"))}


@functools.cache  # says it once
def _without_area() -> None:
    note("there is no roc_auc: a split has no item of one class, or of no other")


@functools.cache  # says it once
def has_scikit_learn() -> bool:
    """Whether scikit-learn is installed; if not, say what is missing without it."""
    if importlib.util.find_spec("sklearn") is None:
        note("there is no precision, recall, f1 or roc_auc without scikit-learn; pip install scikit-learn")
        return False
    return True
