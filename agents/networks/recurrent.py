"""Networks whose memory is a fixed number of units: GRU (Cho et al. 2014) and LSTM (Hochreiter and Schmidhuber 1997).

r, z = sigmoid(W x + b + U h + c);  n = tanh(W x + b + r (U h + c));  h' = (1 - z) n + z h           GRU
i, f, o = sigmoid(W x + b + U h + c);  g = tanh(...);  m' = f m + i g;  h' = o tanh(m')                LSTM
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agents.networks import build_inner
from agents.networks.encode import Memory
from rlcore.errors import UserError
from rlcore.tree import tmap

State = tuple[Tensor, ...]


class Recurrent(Memory):
    """An encoder, then a cell. The projection of all the inputs is one product: only the memory goes step by step.

    Args:
        space: observations of one environment.
        cell: torch's GRUCell or LSTMCell, which holds the weights.
        encoder: the network before it, as {name: mlp, kwargs: {...}}; it must have no memory.
    """

    memories: int  # tensors (n, features) that the memory consists of; the first is the output

    def __init__(self, space: gym.Space[Any], cell: type[nn.RNNCellBase], features: int, encoder: Any) -> None:
        super().__init__()
        if isinstance(features, bool) or not isinstance(features, int) or features < 1:
            raise UserError(f"network.kwargs.features: got {features!r}, expected a positive integer")
        self.encoder = build_inner(encoder, space, "encoder")
        self.cell = cell(self.encoder.out_features, features)  # pyright: ignore[reportCallIssue]
        self.out_features = features

    def initial_state(self, n: int) -> State:
        """Return zeros, each (n, features)."""
        return tuple(torch.zeros(n, self.out_features, device=self.cell.bias_hh.device) for _ in range(self.memories))

    def step(self, obs: Any, state: State) -> tuple[Tensor, State]:
        """Return features (B, features) and the memory after them."""
        state = self.advance(self._project(obs), *state)
        return state[0], state

    def unroll(self, obs: Any, state: State, first: Tensor) -> tuple[Tensor, State]:
        """Return features (L, B, features) and the memory after each step; see `Network.unroll`."""
        inputs = self._project(tmap(lambda x: x.flatten(0, 1), obs)).unflatten(0, first.shape)  # (L, B, gates)
        after: list[State] = []
        for x, reset in zip(inputs.unbind(), first.unsqueeze(-1).unbind(), strict=True):
            state = self.advance(x, *(s.masked_fill(reset, 0.0) for s in state))
            after.append(state)
        memory = tuple(torch.stack(part) for part in zip(*after, strict=True))
        return memory[0], memory

    def _project(self, obs: Any) -> Tensor:
        return F.linear(self.encoder(obs), self.cell.weight_ih, self.cell.bias_ih)

    @abstractmethod
    def advance(self, x: Tensor, *state: Tensor) -> State:
        """Return the memory after one step, from the projected input (B, gates) and the memory before."""


class GRU(Recurrent):
    """A gated recurrent unit.

    Args:
        space: observations of one environment.
        features: units of memory.
        encoder: the network before it, as {name: mlp, kwargs: {...}}; it must have no memory.
    """

    memories = 1

    def __init__(self, space: gym.Space[Any], features: int = 64, encoder: Mapping[str, Any] = {"name": "mlp"}) -> None:
        super().__init__(space, nn.GRUCell, features, encoder)

    def advance(self, x: Tensor, *state: Tensor) -> State:
        (h,) = state
        width = 2 * self.out_features
        u = F.linear(h, self.cell.weight_hh, self.cell.bias_hh)  # (B, 3 features)
        r, z = (x[:, :width] + u[:, :width]).sigmoid().chunk(2, 1)
        n = (x[:, width:] + r * u[:, width:]).tanh()
        return (torch.lerp(n.to(h.dtype), h, z.to(h.dtype)),)  # memory stays as precise as it was, under autocast too


class LSTM(Recurrent):
    """A long short-term memory.

    Args:
        space: observations of one environment.
        features: units of memory.
        encoder: the network before it, as {name: mlp, kwargs: {...}}; it must have no memory.
    """

    memories = 2

    def __init__(self, space: gym.Space[Any], features: int = 64, encoder: Mapping[str, Any] = {"name": "mlp"}) -> None:
        super().__init__(space, nn.LSTMCell, features, encoder)

    def advance(self, x: Tensor, *state: Tensor) -> State:
        h, m = state
        i, f, g, o = (x + F.linear(h, self.cell.weight_hh, self.cell.bias_hh)).chunk(4, 1)
        m = f.sigmoid() * m + i.sigmoid() * g.tanh()
        return o.sigmoid() * m.tanh(), m
