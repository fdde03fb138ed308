"""The worst mistakes of a task as Markdown tables: what was wrong, the highest loss first.

Of classes the loss is the cross-entropy, -log p(true), or of several labels an item its mean over them; of chosen
classes, which have no probabilities, it is 1. Of numbers it is the absolute error. Confidence is the probability that
the model gave what it predicted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_WIDTH = 300  # characters shown of a cell


def worst(loss: Tensor, wrong: Tensor, n: int) -> list[int]:
    """Return at most n indices of what is ``wrong`` (E,) bool, in order of falling ``loss`` (E,)."""
    order = loss.argsort(descending=True, stable=True)
    return order[wrong[order]][:n].tolist()


def labels(prediction: Tensor, target: Tensor, classes: Sequence[str], items: Sequence[str], n: int) -> str:
    """Return the n worst among E items that are given a wrong class or wrong labels.

    Args:
        prediction: (E, C) logits, or (E,) classes.
        target: (E,) int64 classes, or (E, C) which labels hold, 0 or 1.
        classes: C names.
        items: what the E items are.
        n: at most.
    """
    loss, confidence, said = _judged(prediction.cpu(), target.cpu())
    held = target.cpu().long()
    wrong = (said != held).view(len(held), -1).any(1)
    rows = [
        [
            f"{loss[i]:.4f}",
            _names(held[i], classes),
            _names(said[i], classes),
            "" if confidence is None else f"{confidence[i]:.4f}",
            items[i],
        ]
        for i in worst(loss, wrong, n)
    ]
    return table(("loss", "true", "predicted", "confidence", "item"), rows, int(wrong.sum()), len(held))


def _judged(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return losses (E,), confidences (E,) or None, and what is predicted, shaped like the target."""
    if not prediction.is_floating_point():
        return (prediction != target).double(), None, prediction
    logits = prediction.double()
    if target.dim() == 1:
        return F.cross_entropy(logits, target, reduction="none"), logits.softmax(1).amax(1), logits.argmax(1)
    loss = F.binary_cross_entropy_with_logits(logits, target.double(), reduction="none").mean(1)
    return loss, logits.abs().sigmoid().prod(1), (logits > 0).long()


def _names(label: Tensor, classes: Sequence[str]) -> str:
    """Return the name of a class (), or of the labels that hold (C,)."""
    if not label.dim():
        return str(classes[int(label)])
    return ", ".join(name for name, held in zip(classes, label.tolist(), strict=True) if held) or "none"


def numbers(prediction: Tensor, target: Tensor, items: Sequence[str], n: int) -> str:
    """Return the n of E numbers (E, 1) that are furthest from the target (E, 1)."""
    said, held = prediction.double().flatten().cpu(), target.double().flatten().cpu()
    error = (said - held).abs()
    rows = [
        [f"{error[i]:.6g}", f"{held[i]:.6g}", f"{said[i]:.6g}", items[i]]
        for i in worst(error, torch.ones_like(error) > 0, n)
    ]
    return table(("error", "true", "predicted", "item"), rows, len(held), len(held))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], wrong: int, count: int) -> str:
    """Return a Markdown table of mistakes, and above it how many of how many there are."""
    if not rows:
        return f"No mistake among {count}."
    lines = [f"The worst {len(rows)} of {wrong} mistakes among {count}:", "", _row(head), _row(["---"] * len(head))]
    return "\n".join([*lines, *(_row([_cell(cell) for cell in row]) for row in rows)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3].rstrip("\\") + "..."
