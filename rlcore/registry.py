"""Agents, environments and networks by name.

Installed packages offer theirs as entry points in the groups ``rlcore.agents``, ``rlcore.envs``,
``rlcore.networks``, ``rlcore.wrappers`` and ``rlcore.configs`` (an agent's options, importable without torch);
``--plugin package`` imports one that calls `register`. A configuration never imports anything by path.
"""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import entry_points
from typing import Any, Literal

from rlcore.errors import UserError, nearest

Kind = Literal["agents", "envs", "networks", "configs", "wrappers"]
_own: dict[tuple[str, str], Any] = {}


def register(kind: Kind, name: str, target: Any) -> None:
    """Make ``target`` (a class or function, or "module:attribute") known as ``name``.

    Raises:
        UserError: the name is taken by something else.
    """
    known = _own.get((kind, name)) or _installed(kind).get(name)
    if known is not None and known != target:
        raise UserError(f"{kind}: '{name}' is already registered as {known}; expected a new name")
    _own[kind, name] = target


@functools.cache
def _installed(kind: str) -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group=f"rlcore.{kind}")}


def names(kind: Kind) -> list[str]:
    """Return every known name of a kind."""
    return sorted({*_installed(kind), *(name for k, name in _own if k == kind)})


def imported(kind: Kind, name: str) -> bool:
    """Whether ``name`` was registered as an object, so that finding it imports nothing."""
    return not isinstance(_own.get((kind, name), ""), str)


def find(kind: Kind, name: str) -> Any:
    """Return what is registered as ``name``.

    Raises:
        UserError: the name is unknown (says the nearest known one), or its package cannot be imported.
    """
    target = _own.get((kind, name)) or _installed(kind).get(name)
    if target is None:
        raise UserError(f"{kind.rstrip('s')} '{name}' is unknown{nearest(name, names(kind))}")
    if isinstance(target, str):
        module, _, attribute = target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"{kind.rstrip('s')} '{name}' cannot be imported from {target}: {error}") from error
    return target
