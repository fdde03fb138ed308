"""Target networks: hard and Polyak updates. Both networks must be built alike."""

# pyright: reportPrivateImportUsage=false
# The _foreach operations have no public name; they are what makes an update one call however many layers there are.

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def hard_update(target: nn.Module, online: nn.Module) -> None:
    """Copy every parameter and buffer of ``online`` into ``target``, in place (Mnih et al. 2015)."""
    _copy([*target.parameters(), *target.buffers()], [*online.parameters(), *online.buffers()])


@torch.no_grad()
def polyak_update(target: nn.Module, online: nn.Module, tau: float) -> None:
    """Move ``target`` a fraction ``tau`` towards ``online``, in place (Lillicrap et al. 2016)::

        target <- (1 - tau) target + tau online        for parameters

    Buffers are copied: running statistics are averages already, and counters cannot be averaged.
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), tau)
    _copy(list(target.buffers()), list(online.buffers()))


def _copy(into: list[torch.Tensor], source: list[torch.Tensor]) -> None:
    if into:
        torch._foreach_copy_(into, source)
