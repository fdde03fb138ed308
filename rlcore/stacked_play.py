"""Evaluation episodes of K agents trained together, played at once.

The first agent to evaluate at a moment has all K play: in one environment K times as wide, by one batched act. The
others find their episodes played, and take them if their tensors still are the very ones that played. So it goes at the
end, too, where agents loaded from checkpoints play: whose tensors are an agent's plays as that one. An agent's
episodes are those that it plays alone but for rounding, which may turn an action where two are as good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlcore.actor import is_empty
from rlcore.agent import Agent
from rlcore.batched import traced, vmapped
from rlcore.evaluation import Episodes, play, wave
from rlcore.stacked import Stack, slots_of
from rlcore.tree import cut, leaves, tmap
from rlcore.types import Act
from rlcore.vector import VectorEnv


class Evaluations:
    """Plays for the agents of a stack what `rlcore.evaluation.play` would play for each.

    Args:
        build: returns an environment, for evaluation, of so many.
    """

    def __init__(self, build: Callable[[int], VectorEnv]) -> None:
        self.build = build
        self.stack: Stack | None = None  # of the agents that are still trained
        self.env: VectorEnv | None = None
        self._graphs: tuple[Stack, dict[Any, Any]] | None = None  # acts by the inputs' shapes; None: cannot be stacked
        # By what was asked: the episodes of each agent, and the weights and buffers that played, (K, ...) each.
        self._played: dict[tuple[int, ...], tuple[list[Episodes], list[Tensor]]] = {}

    def play(self, agent: Agent, env: VectorEnv, *how: Any) -> Episodes:
        """Return an agent's greedy episodes; ``how`` and the rest as for `rlcore.evaluation.play`."""
        episodes, seed, max_steps, explore, record = how
        alike = env.batched and env.task is None and env.episodes is None  # whatever the split
        suits = alike and episodes == env.num_envs and is_empty(agent.initial_state(1))
        if self.stack is None or not suits or explore or record:
            return play(agent, env, *how)
        own, asked = [slots[name] for slots, name in slots_of(agent)], (episodes, seed, max_steps)
        there = self._kept(own, asked)
        if there is None and _row(own, self.stack.tensors) is not None and self._agree(agent) and self._play(asked):
            there = self._kept(own, asked)
        return play(agent, env, *how) if there is None else there

    def _agree(self, agent: Agent) -> bool:
        """Whether all agents are where they will evaluate; one that is none of them has ended."""
        assert self.stack is not None
        trainers = self.stack.trainers
        trained = any(trainer.agent is agent for trainer in trainers) or all(t.clock.done for t in trainers)
        return trained and len({(t.clock.frames, t.clock.updates) for t in trainers}) == 1

    def _kept(self, own: list[Tensor], asked: tuple[int, ...]) -> Episodes | None:
        """Return the episodes asked for if they were played by these tensors."""
        episodes, tensors = self._played.get(asked, ([], []))
        k = _row(own, tensors)
        return None if k is None else episodes[k]

    @torch.no_grad()
    def _play(self, asked: tuple[int, ...]) -> bool:
        """Play the episodes of all agents; return whether that is possible."""
        assert self.stack is not None
        episodes, seed, max_steps = asked
        size = self.stack.size
        if self.env is None or self.env.num_envs != size * episodes:
            self.close()
            self.env = self.build(size * episodes)
        if self._graphs is None or self._graphs[0] is not self.stack:
            self._graphs = self.stack, {}
        try:
            whole = wave(_Greedy(*self._graphs), self.env, [*range(seed, seed + episodes)] * size, max_steps)
        except RuntimeError:  # something of the agent cannot be vectorised, or its acts read more than its tensors
            self._graphs = self.stack, {None: None}
            return False
        parts = cut((whole.returns, whole.lengths, whole.outcomes), size)
        self._played[asked] = [Episodes(*part) for part in parts], [x.clone() for x in self.stack.tensors]
        return True

    def close(self) -> None:
        """Close the environment."""
        if self.env is not None:
            self.env.close()
            self.env = None


def _row(own: list[Tensor], tensors: list[Tensor]) -> int | None:
    """Return at which row of tensors (K, ...) an agent's own (...) are."""
    rows = range(len(tensors[0]) if tensors else 0)
    return next((k for k in rows if all(torch.equal(x, y[k]) for x, y in zip(own, tensors, strict=True))), None)


class _Greedy:
    """The agents of a stack as one that acts greedily: the first of K equal parts of the rows is the first agent's."""

    def __init__(self, stack: Stack, graphs: dict[Any, Any]) -> None:
        self.stack, self.graphs = stack, graphs

    def initial_state(self, n: int) -> Any:
        return ()

    def act(
        self, obs: Any, state: Any, knobs: Any, noise: Any, mask: Tensor | None = None, explore: bool = False
    ) -> Act:
        size = self.stack.size
        given = tmap(lambda x: x.unflatten(0, (size, -1)), (obs, mask))
        inputs = [*self.stack.tensors, *leaves(given)]
        key = tuple(x.shape for x in inputs)
        if None in self.graphs:
            raise RuntimeError("it was tried")
        if key not in self.graphs:
            self.graphs[key] = self._traced(given, inputs)
            self._prove(given, *self.graphs[key](inputs))
        (action,) = self.graphs[key](inputs)
        return Act(action.flatten(0, 1))

    def _prove(self, given: Any, actions: Tensor) -> None:
        """Compare a graph's first actions (K, B, ...) with those that the agents choose themselves."""
        for k, agent in enumerate(trainer.agent for trainer in self.stack.trainers):
            obs, mask = tmap(lambda x, k=k: x[k], given)
            was_training = agent.training
            own = agent.eval().act(obs, (), {}, {}, mask, explore=False).action
            agent.train(was_training)
            if not torch.allclose(own, actions[k], rtol=1e-3, atol=1e-3):
                raise RuntimeError("what an agent does depends on more than its tensors")

    def _traced(self, given: Any, inputs: list[Tensor]) -> Callable[[list[Tensor]], list[Tensor]]:
        stack = self.stack

        def act(tensors: list[Tensor]) -> list[Tensor]:
            own = iter(tensors)
            stack.place(own)
            obs, mask = tmap(lambda _: next(own), given)
            return [stack.model.act(obs, (), {}, {}, mask, explore=False).action]

        was_training = stack.model.training
        stack.model.eval()
        try:
            return traced(lambda tensors: vmapped(act, tensors), inputs)
        finally:
            stack.place(iter(stack.tensors))
            stack.model.train(was_training)
