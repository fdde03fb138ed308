"""Conformance suites, usable on anybody's parts in one line.

rlcore.testing.check_agent({"agent": {"name": "mine"}})
rlcore.testing.check_env("MyEnv-v0")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlcore.testing.agents import check_agent
    from rlcore.testing.envs import check_env

__all__ = ["check_agent", "check_env"]


def __getattr__(name: str) -> Any:
    if name == "check_agent":
        from rlcore.testing.agents import check_agent

        return check_agent
    if name == "check_env":
        from rlcore.testing.envs import check_env

        return check_env
    raise AttributeError(f"module 'rlcore.testing' has no attribute '{name}'")
