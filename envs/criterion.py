"""Losses of torch by name, as rewards."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from rlcore.errors import UserError, nearest


def criterion(name: str, kind: str) -> nn.Module:
    """Return torch's loss by name ("HuberLoss", "nn.MSELoss") with values per item.

    Raises:
        UserError: torch has no such loss, or it does not give every item a value of its own that
            depends on the prediction (B, 1) of a number, or on the logits (B, C) of a class.
    """
    known = [n for n in dir(nn) if n.endswith("Loss")]
    short = name.rpartition("nn.")[2]
    if short not in known:
        raise UserError(f"loss '{name}' is unknown{nearest(short, known)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = getattr(nn, short)(reduction="none")
            slopes = _slopes(module, kind)
        except Exception:  # whatever a loss made for other inputs raises means the same
            module, slopes = None, torch.zeros(2, 2)
    if module is None or not torch.equal(slopes != 0, torch.eye(2, dtype=torch.bool)):
        raise UserError(f"loss '{name}' does not fit {kind}, expected a loss of one prediction and one target an item")
    return module


def _slopes(module: nn.Module, kind: str) -> Tensor:
    """Return (2, 2) how much the loss of item i changes with the prediction for item j."""
    if kind == "regression":
        prediction, target = torch.tensor([[-0.7], [1.3]]), torch.tensor([[0.4], [-0.2]])
    else:
        prediction, target = torch.tensor([[0.3, -0.7, 0.1], [0.2, 0.4, -0.5]]), torch.tensor([0, 2])
    jacobian = torch.autograd.functional.jacobian(lambda p: module(p, target).view(2, -1).sum(1), prediction)
    return torch.as_tensor(jacobian).abs().sum(-1)


class Criterion:
    """A loss of torch as the reward of single items, and as the loss that is its exact gradient.

    Raises:
        UserError: as `criterion`.
    """

    def __init__(self, name: str, kind: str) -> None:
        self.each = criterion(name, kind)
        self.summed = type(self.each)(reduction="sum")

    def reward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return minus the loss of each item (B,)."""
        return -self.each(prediction, target).view(len(target))

    def loss(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, int]:
        """Return minus the sum of the rewards, (), in one operation, and the number of items."""
        return self.summed(prediction, target), len(prediction)
