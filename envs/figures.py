"""Figures of predictions, drawn with matplotlib: of classes the confusion matrix and the ROC curves (Fawcett 2006), of
numbers the predictions over the targets.

Row i, column j of the confusion matrix counts the items of class i that are given class j; its colour is the count as a
fraction of the row. A class's ROC curve is the fraction of its items (true positive rate) over the fraction of the
others (false positive rate) whose score is at least a threshold, for every threshold.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.metrics import has_scikit_learn
from rlcore.errors import note

# Okabe and Ito (2008), "Color Universal Design": told apart by the colour-blind; styles tell more than seven apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--")
_FONT = 14  # points; figures are read at half their size
_NAMED = 10  # curves in a legend
OUTCOMES = ("hit", "missed", "false alarm", "rightly not")  # of one label of several


def classification(prediction: Tensor, target: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Return the figures "confusion" and, for logits, "roc"; without matplotlib none, and a remark.

    Args:
        prediction: (E, C) logits, or (E,) classes.
        target: (E,) int64 classes, or (E, C) which labels hold, 0 or 1.
        classes: C names.
    """
    if not _drawable():
        return {}
    prediction, held = prediction.cpu().double(), target.cpu().long()
    if held.dim() == 2:
        drawn = {
            "confusion": _matrix(label_counts(prediction > 0, held.bool()), classes, OUTCOMES, ("label", "outcome"))
        }
    else:
        said = prediction.argmax(1) if prediction.dim() == 2 else prediction.long()
        counts = confusion_counts(said, held, len(classes))
        drawn = {"confusion": _matrix(counts, classes, classes, ("true", "predicted"))}
    if prediction.dim() == 2 and has_scikit_learn():
        several = held.dim() == 2
        truth = held.bool() if several else torch.nn.functional.one_hot(held, len(classes)).bool()
        scores = prediction.sigmoid() if several else prediction.softmax(1)
        shown = [1] if len(classes) == 2 and not several else range(len(classes))  # of two, one mirrors the other
        drawn["roc"] = roc({classes[c]: (scores[:, c].numpy(), truth[:, c].numpy()) for c in shown})
    return drawn


@functools.cache  # says it once
def _drawable() -> bool:
    if importlib.util.find_spec("matplotlib") is None:
        note("there are no figures without matplotlib; pip install 'rlcore[plot]'")
        return False
    return True


def regression(prediction: Tensor, target: Tensor) -> dict[str, Any]:
    """Return the figure "predictions" of numbers (E, 1) over targets (E, 1); without matplotlib none, and a remark."""
    if not _drawable():
        return {}
    from matplotlib.figure import Figure

    said, held = prediction.double().flatten().cpu().numpy(), target.double().flatten().cpu().numpy()
    figure = Figure(figsize=(6.5, 6.5), layout="constrained")
    axes = figure.subplots()
    ends = [min(said.min(), held.min()), max(said.max(), held.max())]
    axes.plot(ends, ends, color="0.6", linewidth=1)  # right predictions
    axes.scatter(held, said, s=16, color=_COLOURS[0], alpha=0.6, linewidths=0)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=_FONT - 2)
    axes.set_xlabel("target", fontsize=_FONT)
    axes.set_ylabel("prediction", fontsize=_FONT)
    return {"predictions": figure}


def confusion_counts(said: Tensor, held: Tensor, classes: int) -> np.ndarray:
    """Return (C, C) how many items of each true class (rows) are given each class (columns), of (E,) classes."""
    return torch.bincount(held * classes + said, minlength=classes**2).view(classes, classes).numpy()


def label_counts(said: Tensor, held: Tensor) -> np.ndarray:
    """Return (C, 4) hits, misses, false alarms and rightly left out labels, of (E, C) bool."""
    kinds = (said & held, ~said & held, said & ~held, ~said & ~held)
    return torch.stack([kind.sum(0) for kind in kinds], 1).numpy()


def _matrix(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str], names: tuple[str, str]) -> Any:
    """Draw counts (R, K), their rows and columns named, and what the rows and the columns are."""
    from matplotlib.figure import Figure

    height, width = counts.shape
    margin = 0.12 * max(len(_short(name)) for name in rows)  # inches
    figure = Figure(figsize=(margin + min(12, 4 + 0.62 * width), min(12, 3 + 0.62 * height)), layout="constrained")
    axes = figure.subplots()
    share = counts / counts.sum(1, keepdims=True).clip(1)
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("fraction of the row", fontsize=_FONT)
    bar.ax.tick_params(labelsize=_FONT - 2)
    for axis, ticks in ((axes.xaxis, columns), (axes.yaxis, rows)):
        every = -(-len(ticks) // 40)  # more names than that would overlap
        axis.set_ticks(range(0, len(ticks), every), [_short(name) for name in ticks[::every]], fontsize=_FONT - 2)
    if max(map(len, columns)) > 3:
        axes.tick_params(axis="x", rotation=40)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    if max(counts.shape) <= 20:
        for (i, j), count in np.ndenumerate(counts):
            colour = "black" if share[i, j] > 0.5 else "white"
            axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=_FONT - 2)
    axes.set_ylabel(names[0], fontsize=_FONT)
    axes.set_xlabel(names[1], fontsize=_FONT)
    return figure


def roc(curves: dict[str, tuple[np.ndarray, np.ndarray]]) -> Any:
    """Draw the ROC curve of each class, of scores (E,) and whether the class holds, (E,) bool.

    A class that no item, or every item, has is left out. Those with the least area are named, the least first; where
    there are more, the others are grey.
    """
    from matplotlib.figure import Figure
    from sklearn.metrics import auc, roc_curve

    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    areas = []
    for name, (score, held) in curves.items():
        if held.any() and not held.all():
            false, true, _ = roc_curve(held, score)
            areas.append((float(auc(false, true)), name, false, true))
    areas.sort(key=lambda curve: curve[0])
    for _, _, false, true in areas[_NAMED:]:
        axes.plot(false, true, color="0.8", linewidth=1)
    for i, (area, name, false, true) in enumerate(areas[:_NAMED]):
        colour, style = _COLOURS[i % len(_COLOURS)], _STYLES[i // len(_COLOURS)]
        axes.plot(false, true, style, color=colour, label=f"{_short(name)} (area {area:.3f})", linewidth=2)
    if areas:
        title = f"the lowest {_NAMED} of {len(areas)}" if len(areas) > _NAMED else None
        axes.legend(loc="lower right", fontsize=_FONT - 2, title=title, title_fontsize=_FONT - 2)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.tick_params(labelsize=_FONT - 2)
    axes.set_xlabel("false positive rate", fontsize=_FONT)
    axes.set_ylabel("true positive rate", fontsize=_FONT)
    axes.set_title("ROC" if len(curves) == 1 else "ROC, each class against the rest", fontsize=_FONT)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"
