"""Target networks: hard and Polyak updates. Both networks must be built alike."""

# pyright: reportPrivateImportUsage=false
# The _foreach operations have no public name; they are what makes an update one call however many layers there are.

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


@torch.no_grad()
def hard_update(target: nn.Module, online: nn.Module) -> None:
    """Copy every parameter and buffer of ``online`` into ``target``, in place (Mnih et al. 2015)."""
    for into, source in zip(_tensors(target), _tensors(online), strict=True):
        _copy(into, source)


@torch.no_grad()
def polyak_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """Move ``target`` a fraction ``tau`` towards ``online``, in place (Lillicrap et al. 2016)::

        target <- (1 - tau) target + tau online        for parameters

    Buffers are copied: running statistics are averages already, and counters cannot be averaged.
    """
    (target_parameters, target_buffers), (parameters, buffers) = _tensors(target), _tensors(online)
    torch._foreach_lerp_(target_parameters, parameters, tau)
    _copy(target_buffers, buffers)


_known: WeakKeyDictionary[nn.Module, tuple[list[Tensor], list[Tensor]]] = WeakKeyDictionary()


def _tensors(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return a network's parameters and buffers, looked for once: walking its modules costs more than the update."""
    if network not in _known:
        _known[network] = list(network.parameters()), list(network.buffers())
    return _known[network]


def _copy(into: list[Tensor], source: list[Tensor]) -> None:
    if into:
        torch._foreach_copy_(into, source)
