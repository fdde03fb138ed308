"""Networks by name: modules from a space's observations (B, ...) to features (B, out_features)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlcore import registry
from rlcore.config import NetworkConfig
from rlcore.errors import UserError, nearest

if TYPE_CHECKING:
    import gymnasium as gym

    from agents.networks.encode import Network


def build_network(config: NetworkConfig, space: gym.Space[Any], per_token: bool = False) -> Network:
    """Build the registered network for a space; the module has ``out_features``.

    Args:
        config: its name and keywords.
        space: of the observations.
        per_token: whether features of each token are wanted, (B, T, F), or of an observation as a whole, (B, F).

    Raises:
        UserError: the name or a keyword is unknown, or the network cannot read the space or gives the other features.
    """
    cls = registry.find("networks", config.name)
    known = list(inspect.signature(cls).parameters)[1:]
    for name in config.kwargs:
        if name not in known:
            raise UserError(f"network.kwargs.{name} is not an option of network '{config.name}'{nearest(name, known)}")
    try:
        network = cls(space, **config.kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"network '{config.name}' cannot be built with {config.kwargs}: {error}") from None
    if network.per_token != per_token:
        given, wanted = ("each token", "a whole observation")[:: 1 if network.per_token else -1]
        some = "decoder, encoder_decoder or text_gru" if per_token else "encoder or mlp"
        raise UserError(f"network '{config.name}' gives features of {given}, expected of {wanted}, as {some} does")
    return network


def build_inner(part: Any, space: gym.Space[Any], option: str) -> Network:
    """Build a network inside another, from the value {name: NAME, kwargs: {...}} of its keyword ``option``.

    Raises:
        UserError: the value is no such mapping, or the network cannot be built or has a memory of its own.
    """
    where = f"network.kwargs.{option}"
    if not isinstance(part, Mapping) or "name" not in part:
        raise UserError(f"{where}: got {part!r}, expected a mapping such as {{name: mlp, kwargs: {{...}}}}")
    for key in part:
        if key not in ("name", "kwargs"):
            raise UserError(f"{where}.{key} is not an option of a network{nearest(str(key), ['name', 'kwargs'])}")
    network = build_network(NetworkConfig(name=part["name"], kwargs=dict(part.get("kwargs", {}))), space)
    if network.recurrent:
        raise UserError(f"{where}.name: '{part['name']}' has a memory; expected a network without one, such as mlp")
    return network
