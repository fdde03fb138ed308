"""Which parameters learn, and how fast: patterns over their names, such as ``network.trunk.layers.[0-3].*``.

Patterns are those of `fnmatch`: ``*`` matches dots, too. A shared parameter goes by its first name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from rlcore.errors import UserError, nearest
from rlcore.training_config import OptimConfig

LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
Named = Mapping[str, nn.Parameter]


def learning(groups: Mapping[str, Named], configs: Mapping[str, OptimConfig]) -> dict[str, dict[str, nn.Parameter]]:
    """Return the parameters that learn, by group and name, after taking the gradient from all others.

    Raises:
        UserError: a pattern fits no parameter of the groups that it is given for, nothing is left of a group, or
            ``layer_decay`` finds no layers.
    """
    for option in ("freeze", "scale"):
        for pattern in {pattern: None for config in configs.values() for pattern in getattr(config, option)}:
            given = [name for name, config in configs.items() if pattern in getattr(config, option)]
            names = [n for group in given for n in groups[group]]
            if not any(fnmatchcase(name, pattern) for name in names):
                raise UserError(f"optim.{option}: '{pattern}' matches no parameter{nearest(pattern, names)}")
    layered = [any(map(LAYER.search, groups[name])) for name, config in configs.items() if config.layer_decay < 1]
    if layered and not any(layered):
        raise UserError("optim.layer_decay: expected parameters with '.layers.N.' in their names; the agent has none")
    result = {}
    for group, named in groups.items():
        frozen = {name for name in named if any(fnmatchcase(name, pattern) for pattern in configs[group].freeze)}
        if frozen == set(named):
            raise UserError(f"optim.freeze: {configs[group].freeze} leaves group '{group}' nothing to learn")
        for name in frozen:
            named[name].requires_grad_(False)
        result[group] = {name: p for name, p in named.items() if name not in frozen}
    return result


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix: two dimensions or more, and no bias (those of batched networks have two)."""
    return parameter.dim() >= 2 and not name.endswith("bias")


def factors(names: Sequence[str], scale: Mapping[str, float], layer_decay: float = 1.0) -> dict[str, float]:
    """Return each parameter's factor on the learning rate, by name.

    It is the product of ``scale`` over the patterns that fit the name, times layer_decay ** (L - l): l is the rank,
    from 0, of its ``layers.N.`` among the L of its stack; -1 for what was registered before the first layer
    (embeddings); L for what comes later (heads). (BEiT, arXiv:2106.08254.)
    """
    found = {name: match for name in names if (match := LAYER.search(name))}
    stacks: dict[str, set[int]] = {}
    for name, match in found.items():
        stacks.setdefault(name[: match.start()], set()).add(int(match[1]))
    result: dict[str, float] = {}
    below = max(map(len, stacks.values()), default=-1) + 1
    for name in names:
        if match := found.get(name):
            stack = sorted(stacks[name[: match.start()]])
            result[name] = layer_decay ** (len(stack) - stack.index(int(match[1])))
            below = 0  # what comes after the first layer and is in none
        else:
            result[name] = layer_decay**below
        for pattern, factor in scale.items():
            result[name] *= factor if fnmatchcase(name, pattern) else 1.0
    return result
