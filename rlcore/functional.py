"""An agent's loss as a function of flat tensors: what compiling, many seeds at once and graphs are made of.

`Agent.loss` reads its parameters and buffers from the module. Here they come in as arguments, so that a gradient is one
flat vector, and so that `torch.vmap` can add a dimension of seeds to everything the loss depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlcore.agent import Agent
from rlcore.types import Batch, Loss


class _Call(nn.Module):
    """A method of a module, as a module: `torch.func.functional_call` reaches the method through ``forward``."""

    def __init__(self, agent: Agent, function: Callable[[Batch], Loss]) -> None:
        super().__init__()
        self.agent, self.function = agent, function

    def forward(self, batch: Batch) -> Loss:
        return self.function(batch)


class FunctionalLoss:
    """One phase of an agent as a closed function ``(flat, rest, batch) -> Loss``.

    Args:
        agent: lends its structure; its own tensors are not read where ``flat`` and ``rest`` name them.
        function: of the phase, a method of the agent.
        parameters: those of the phase's group by name, in the order in which they lie in ``flat`` (P,).
    """

    def __init__(self, agent: Agent, function: Callable[[Batch], Loss], parameters: Mapping[str, nn.Parameter]) -> None:
        self.call = _Call(agent, function)
        self.shapes = {f"agent.{name}": p.shape for name, p in parameters.items()}

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the parameters by name as views of ``flat`` (P,)."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def __call__(self, flat: Tensor, rest: Mapping[str, Tensor], batch: Batch) -> Loss:
        """Return the loss.

        Args:
            flat: (P,), differentiable.
            rest: other parameters and buffers of the agent by name; what is missing is read from the agent itself.
            batch: as the phase wants it.
        """
        named: dict[str, Tensor] = {f"agent.{name}": tensor for name, tensor in rest.items()}
        result: Any = torch.func.functional_call(self.call, {**named, **self.unflatten(flat)}, (batch,))
        return result
