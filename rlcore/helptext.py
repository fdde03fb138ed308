"""What ``train.py --help`` says of the settings. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from rlcore import config as configs
from rlcore import registry
from rlcore.fields import fields, models_in
from rlcore.schedules import Schedule


def settings() -> str:
    """Return every setting with its meaning, unit and default, the agents' own included, and all known names."""
    lines = ["settings: change any with --NAME=VALUE or --NAME VALUE (VALUE is YAML); defaults are in brackets"]
    lines += _lines("", configs.Config, only_plain=True)
    for name, info in configs.Config.model_fields.items():
        if name == "agent":
            for agent in _agents():
                lines += _section("agent", configs.agent_config(agent), f"agent.name={agent}")
            continue
        kinds = models_in(info.annotation)
        for kind in kinds:
            lines += _section(name, kind, f"{name}.name={kind.model_fields['name'].default}" if len(kinds) > 1 else "")
    shipped = ", ".join(sorted(path.stem for path in configs.recipes().glob("*.yaml")))
    lines += ["", f"recipes: {shipped}", f"agents: {', '.join(registry.names('agents'))}"]
    lines += [f"networks: {', '.join(registry.names('networks'))}"]
    return "\n".join([*lines, f"environments: any id of gymnasium, {', '.join(registry.names('envs'))}"])


def _agents() -> Iterator[str]:
    """Yield the agents whose options can be had without importing torch, or that a plugin has imported already."""
    for name in registry.names("agents"):
        if name in registry.names("configs") or registry.imported("agents", name):
            yield name


def _section(name: str, model: type[BaseModel], choice: str) -> list[str]:
    about = (model.__doc__ or "").strip().splitlines() or [""]
    return ["", f"{name}{f' (with --{choice})' if choice else ''}: {about[0]}", *_lines(f"{name}.", model)]


def _lines(prefix: str, model: type[BaseModel], only_plain: bool = False) -> list[str]:
    lines = []
    for name, default, text in fields(model, prefix):
        if not (only_plain and "." in name) and text:
            value = _shown(default)
            lines.append(f"  --{name:<27} {text}{f' [{value}]' if value else ''}")
    return lines


def _shown(default: Any) -> str:
    if isinstance(default, Schedule):
        changes = default.kind != "constant"
        return f"{default.kind} {default.start:g} to {default.end:g}" if changes else f"{default.start:g}"
    if isinstance(default, BaseModel):
        return str(getattr(default, "name", ""))
    return "" if default in (None, "", {}, []) else json.dumps(default).strip('"')
