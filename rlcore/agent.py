"""The agent contract: an `nn.Module` that says how to act and what its loss is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rlcore.clock import Clock
from rlcore.config import AgentConfig
from rlcore.errors import UserError
from rlcore.normalize import Normalizer
from rlcore.types import Act, Batch, Loss, Rollout, Spec

Phase = tuple[str, Callable[[Batch], Loss]]


class Agent(nn.Module, ABC):
    """Networks, targets and normalisers are the module's state; nothing else is remembered.

    ``act`` and ``loss`` are closed functions of tensors: randomness and annealed numbers come in as
    tensors, nothing outside is read, nothing is synchronised. An agent never touches an environment,
    a logger, a file or a process group.

    Subclasses name their options in ``Config``, validated before construction, which also says what
    kind of source they learn from.
    """

    Config: ClassVar[type[AgentConfig]]
    gamma: float = 0.99  # discount per step, for the source that assembles n-step returns
    n_step: int = 1
    sequence: int = 0  # above 0: replay draws sequences of that many steps, as a `Rollout` (L, B, ...), not transitions

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__()
        self.config = config
        self.spec = spec

    def initial_state(self, n: int) -> Any:
        """Return the recurrent state at the start of an episode: a tree of (n, ...) tensors, or ()."""
        return ()

    def schedules(self) -> dict[str, Any]:
        """Return the annealed numbers by name, as `rlcore.schedules` specs; they arrive as ``knobs``."""
        return {}

    def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw ALL randomness of one ``act`` (what="act", n rows) or one ``loss`` (what="loss", n items)."""
        return {}

    @abstractmethod
    def act(
        self,
        obs: Any,
        state: Any,
        knobs: dict[str, Tensor],
        noise: dict[str, Tensor],
        mask: Tensor | None = None,
        explore: bool = True,
    ) -> Act:
        """Choose actions for N observations.

        Args:
            obs: tree (N, ...).
            state: recurrent state (N, ...), zeroed by the caller where an episode began, or ().
            knobs: 0-dim tensors, by the names of ``schedules``; unused when ``explore`` is False.
            noise: what ``noise("act", N)`` returned; unused when ``explore`` is False.
            mask: (N, actions) bool, True where an action is allowed; None: all are.
            explore: False in evaluation: act greedily and deterministically.
        """

    def insight(self, obs: Any, state: Any, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Return what the agent makes of N observations, for people to see: closed, differentiable, greedy.

        Args:
            obs: as `act` takes it.
            state: as `act` takes it.
            mask: as `act` takes it.

        Returns:
            Those that the agent has of: ``q``, the values (N, A) of Discrete actions, or (N,) of the action that `act`
            chooses; ``probabilities`` (N, *parts, A) of its policy; ``value`` (N,) of the state. By default what
            greedy `act` answers in its extras.
        """
        return self.act(obs, state, {}, {}, mask, explore=False).extras

    def took(self, state: Any, action: Tensor) -> Any:
        """Return the memory ``state`` (N, ...) after an act whose action the source replaced by ``action`` (N, ...)."""
        return state

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """Return the loss of a batch, summed over its items."""

    def frozen(self, obs: Any) -> Any:
        """Return what layers that never learn make of observations (B, ...), a tree (B, ...); None: there are none.

        A dataset computes it once for every example, in evaluation mode, and gives `loss` these `Features` in place of
        the observations, unless these are varied at random.
        """
        return None

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the named parameter groups; each has its own optimiser, schedule and clip in `Optim`."""
        return {"main": [p for p in self.parameters() if p.requires_grad]}

    def phases(self, updates: int) -> list[Phase]:
        """Return the (group, loss) pairs of update number ``updates``, in order.

        A phase differentiates its own group only; a group without a phase in this update does not move.
        """
        return [("main", self.loss)]

    def after_update(self, clock: Clock) -> None:
        """Move target networks. ``clock.crossed(period)`` tells whether a period in frames went by.

        What is done must be elementwise: with many seeds in one process it is done once for all, on tensors (K, ...)
        stacked of theirs, whenever their clocks agree.
        """

    def observe(self, obs: Any, valid: Tensor | None = None) -> None:
        """Let the agent's normalisers learn from new observations, tree (M, ...).

        Sources call it once they have acted, and nothing else does: evaluation leaves statistics frozen. Rows where
        ``valid`` (M,) bool is False do not count; None: all do.
        """
        for module in self.children():
            if isinstance(module, Normalizer):
                module.observe(obs, valid)

    def start_from(self, weights: dict[str, Tensor], origin: str) -> None:
        """Take over the weights of another run, its agent's ``state_dict``, before training begins.

        Args:
            weights: by name.
            origin: the run, for messages.

        Raises:
            UserError: names or shapes differ.
        """
        load_weights(self, weights, origin)

    def minibatch(self, items: Any) -> Any:
        """Return a minibatch's items (B, ...) with what is a statistic of all of them, such as scaled advantages.

        Called once before a batch may be split: `loss` must add up over its items.
        """
        return items

    def prepare(self, rollout: Rollout) -> Any:
        """Turn a rollout into items to draw minibatches from: attach advantages and targets.

        An item is a step, time-major (T*N, ...), or a sequence of steps (M, L, ...). Fake steps of NEXT_STEP
        environments are left out of the former; of the latter the loss leaves them out, by ``rollout.valid``.
        Like `act` and `loss` it waits for no value, reads its own tensors and the rollout, and changes nothing.
        """
        raise UserError(f"agent {type(self).__name__} does not learn from rollouts; expected source.name: replay")


def load_weights(agent: Agent, weights: dict[str, Tensor], origin: str) -> None:
    """Load an agent's state_dict.

    Raises:
        UserError: names or shapes differ; says which first.
    """
    own = agent.state_dict()
    for name in sorted({*own, *weights}):
        ours, theirs = (tuple(d[name].shape) if name in d else "absent" for d in (own, weights))
        if ours != theirs:
            raise UserError(f"{origin} does not fit this agent: {name} is {theirs}, expected {ours}")
    agent.load_state_dict(weights)
