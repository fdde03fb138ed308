"""Losses of torch by name, as rewards."""

from __future__ import annotations

import warnings
from collections.abc import Callable

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


def negative(loss: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the reward (prediction (B, ...), target (B, ...)) -> (B,), minus the loss of each item."""

    def reward(prediction: Tensor, target: Tensor) -> Tensor:
        values = loss(prediction, target)
        return -(values.flatten(1).mean(1) if values.dim() > 1 else values)

    return reward
