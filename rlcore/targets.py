"""Target networks: hard and Polyak updates. Both networks must be built alike."""

# pyright: reportPrivateImportUsage=false
# The _foreach operations have no public name; they are what makes an update one call however many layers there are.

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rlcore.clock import Clock


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


def follow(target: nn.Module, online: nn.Module, clock: Clock, how: str, every: int, tau: float) -> None:
    """Move ``target`` after an update, ``how`` its settings say: "polyak", by ``tau``; "hard", ``every`` frames."""
    if how == "polyak":
        polyak_update(target, online, tau)
    elif clock.crossed(every):
        hard_update(target, online)


_known: WeakKeyDictionary[nn.Module, tuple[list[Tensor], bool]] = WeakKeyDictionary()


def _tensors(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return a network's parameters and buffers.

    Parameters are looked for once, because walking modules costs more than the update. Buffers, if there are any,
    are looked for each time, because a module that changes device or type replaces them.
    """
    if network not in _known:
        _known[network] = list(network.parameters()), any(True for _ in network.buffers())
    parameters, has_buffers = _known[network]
    return parameters, list(network.buffers()) if has_buffers else []


def _copy(into: list[Tensor], source: list[Tensor]) -> None:
    if into:
        torch._foreach_copy_(into, source)
