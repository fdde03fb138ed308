"""Networks by name: modules from a space's observations (B, ...) to features (B, out_features)."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from rlcore import registry
from rlcore.errors import UserError, nearest

if TYPE_CHECKING:
    import gymnasium as gym

    from agents.networks.encode import Network
    from rlcore.config import NetworkConfig


def build_network(config: NetworkConfig, space: gym.Space[Any]) -> Network:
    """Build the registered network for a space; the module has ``out_features``.

    Raises:
        UserError: the name or a keyword is unknown, or the network cannot read the space.
    """
    cls = registry.find("networks", config.name)
    known = list(inspect.signature(cls).parameters)[1:]
    for name in config.kwargs:
        if name not in known:
            raise UserError(f"network.kwargs.{name} is not an option of network '{config.name}'{nearest(name, known)}")
    try:
        return cls(space, **config.kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"network '{config.name}' cannot be built with {config.kwargs}: {error}") from None
