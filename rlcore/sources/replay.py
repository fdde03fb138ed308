"""Act, store, sample."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlcore import distributed
from rlcore.actor import Acted, is_empty, random_actions
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.config import ReplayConfig
from rlcore.errors import UserError
from rlcore.frames import FrameBuffer
from rlcore.hindsight import Hindsight
from rlcore.prioritized import Prioritized
from rlcore.replay import ReplayBuffer, split
from rlcore.seeding import Uniforms
from rlcore.sources.base import Acting
from rlcore.tree import tmap
from rlcore.types import Batch, Loss
from rlcore.vector import VectorEnv

CHUNK = 4096  # items gathered at once: what is gathered, and what it takes, should stay in a cache


class Replay(Acting):
    """Act, store, sample. The ratio of updates to frames is the configured one for any number of environments.

    Normalised rewards are stored as they are and divided by the present deviation when they are drawn, n-step sums as
    a whole: a stored scale would be that of a policy, and of an estimate, long gone.

    Args:
        env: is stepped.
        config: what is stored and how it is sampled.
        seed: of the draws and of acting.
        save_buffer: whether checkpoints hold what is stored.
        agent: whose sequences are drawn and whose memory is stored with them; None: one that learns from transitions.

    Raises:
        UserError: the settings do not fit one another, the agent or the environment.
    """

    stores = True

    def __init__(
        self, env: VectorEnv, config: ReplayConfig, seed: int, save_buffer: bool = True, agent: Agent | None = None
    ) -> None:
        super().__init__(env, seed, config.reward)
        self.config = config
        self.save_buffer = save_buffer
        self.sequence = agent.sequence if agent else 0
        memory = agent.initial_state(env.num_envs) if agent and agent.sequence else ()
        capacity = config.capacity * env.num_envs // self.num_envs
        sizes = (capacity, env.num_envs, self._layout(memory), env.device)
        self.buffer = FrameBuffer(*sizes, config.frame_stack) if config.frame_stack else ReplayBuffer(*sizes)
        if capacity // env.num_envs < self.sequence:
            raise UserError(
                f"source.capacity: got {config.capacity}, expected at least {self.sequence * self.num_envs}: "
                f"{self.num_envs} environments with {self.sequence} steps each, a sequence"
            )
        self.prioritized = self.hindsight = None
        if config.prioritized:
            self.prioritized = Prioritized(self.buffer, config.alpha, max(1, self.sequence))
        if config.hindsight:
            self.hindsight = Hindsight(self.buffer, env, config.hindsight)
            if self.sequence or config.reward != "raw":
                wrong = "sequences" if self.sequence else f"source.reward: {config.reward}"
                raise UserError(f"source.hindsight: got {config.hindsight:g}, expected 0 with {wrong}")
        if agent:
            self._check(agent)
        self.numbers = Uniforms(self.rng)  # to choose by
        self.beta = 0.0  # of the batches being drawn
        self.batch_size = distributed.shared(config.batch_size, "source.batch_size")
        self.steps = max(1, config.frames_per_iteration // self.num_envs)
        self.starts = config.learning_starts  # frames at which learning starts, or starts again
        self.updates = 0  # batches yielded since then
        self._lost = False  # resumed without a buffer

    def collect(self, agent: Agent, clock: Clock) -> Iterator[Batch]:
        """Act for an iteration's frames, then yield the updates that have come due."""
        self._begin(agent, clock)
        acted = self.act(agent, clock, self.steps, random_until=self.config.learning_starts)
        self._keep(agent, acted)
        yield from self._due(agent, clock)

    def _begin(self, agent: Agent, clock: Clock) -> None:
        self._check(agent)  # it may be another than the source was built with
        self.annealed(agent, clock)
        if self._lost:  # fill the new buffer before learning from it
            self.starts, self.updates, self._lost = clock.frames + self.config.learning_starts, 0, False

    def _keep(self, agent: Agent, acted: Acted) -> None:
        """Store steps (T, N, ...) and let the agent's normalisers learn from them."""
        self._store(acted)
        valid = None if self.env.always_valid else acted.step.valid.flatten()
        agent.observe(tmap(lambda x: x.flatten(0, 1), acted.obs), valid)

    def _due(self, agent: Agent, clock: Clock) -> Iterator[Batch]:
        """Yield the updates that have come due."""
        config = self.config
        self.beta = config.beta(clock.progress)
        due = int(config.updates_per_frame * max(0, clock.frames - self.starts)) - self.updates
        while due > 0:
            # Neither contents nor, where it is uniform, the choice change before the next step, so several batches
            # come from one gather. Sequences are large enough alone, and so are a few thousand items.
            chunk = 1 if self.prioritized or self.sequence else min(due, max(1, CHUNK // self.batch_size))
            for data, index in self._sample(agent, chunk):
                self.updates += 1
                yield Batch(data, self.knobs, agent.noise("loss", self.batch_size, self.rng), index)
            due -= chunk

    def _check(self, agent: Agent) -> None:
        if agent.sequence != self.sequence:
            raise ValueError(f"the agent wants sequences of {agent.sequence} steps; build the source with this agent")
        if self.hindsight and agent.n_step != 1:
            raise UserError(f"agent.n_step: got {agent.n_step}, expected 1 with source.hindsight")

    def _sample(self, agent: Agent, batches: int) -> list[tuple[Any, Tensor]]:
        """Choose, assemble and relabel that many batches: pairs of data and slots."""
        self.buffer.check_stored()
        numbers, weight = self.numbers.take(self.batch_size * batches), None
        if self.prioritized:
            index, weight = self.graphs(
                "choose", self.prioritized.choose, numbers, self.beta, changed=self.prioritized.sums
            )
        else:
            index = self.buffer.choose(numbers, max(1, self.sequence))
        data = self.graphs("gather", partial(self._gather, agent), index, of=agent, places=self.buffer.places)
        data = self._scaled(data._replace(weight=weight))
        if self.sequence:
            return [(data, index)]
        if self.hindsight:
            data = self.hindsight.relabel(data, index, agent.gamma, self.rng)
        return split(data, index, batches)

    def _gather(self, agent: Agent, index: Tensor) -> Any:
        if self.sequence:
            return self.buffer.sequences(index, self.sequence)
        return self.buffer.gather(index, agent.gamma, agent.n_step)

    def _scaled(self, data: Any) -> Any:
        return data._replace(reward=self.scale(data.reward)) if self.reward == "normalize" else data

    def feedback(self, batch: Batch, out: Loss) -> None:
        """Set the priorities of the batch's items.

        Raises:
            UserError: the agent's loss gives none.
        """
        if not self.prioritized:
            return
        if out.priority is None:
            raise UserError("source.prioritized: got true, expected false: the agent's loss gives no priorities")
        self.graphs("update", self.prioritized.update, batch.index, out.priority, changed=self.prioritized.sums)

    def _store(self, acted: Acted) -> None:
        fields = self._fields(acted)
        if not self.env.always_valid:
            self._put(fields, acted.step.valid)
        elif self.config.frame_stack or self.hindsight:  # which now and then look at what is stored, and wait for it
            self._put(fields)
        else:
            self.graphs("put", self._put, fields, changed=self.buffer.heads)

    def _put(self, fields: dict[str, Any], valid: Tensor | None = None) -> None:
        if valid is None and not self.prioritized and not self.hindsight:
            return self.buffer.extend(fields)
        for t in range(len(fields["reward"])):
            row = tmap(lambda x, t=t: x[t], fields)
            slot = self.buffer.add(row, None if valid is None else valid[t])
            if self.prioritized:
                self.prioritized.add(slot)
            if self.hindsight:
                self.hindsight.add(slot, row["terminated"] | row["truncated"])

    def _fields(self, acted: Acted) -> dict[str, Any]:
        """Return what is stored of steps."""
        step = acted.step
        fields = {
            "obs": acted.obs,
            "action": acted.act.action,
            "reward": step.reward,
            "terminated": step.terminated,
            "truncated": step.truncated,
            "next_obs": step.next_obs,
        }
        if "action_mask" in acted.extras:
            fields["action_mask"] = acted.extras["action_mask"]
            fields["next_action_mask"] = step.extras["next_action_mask"]
        if self.sequence and not is_empty(acted.state):
            fields["state"] = acted.state
        return fields

    def _layout(self, memory: Any) -> dict[str, Any]:
        """Return one step's fields, for their shapes and types; ``memory``: a recurrent state, or ()."""
        n, device, actor = self.env.num_envs, self.env.device, self.actor
        flags = torch.zeros(n, dtype=torch.bool, device=device)
        action = random_actions(self.env.spec.action_space, n, torch.Generator(device))
        fields = {"obs": actor.obs, "action": action, "reward": torch.zeros(n, device=device)}
        fields |= {"terminated": flags, "truncated": flags, "next_obs": actor.obs}
        if "action_mask" in actor.extras:
            fields |= dict.fromkeys(("action_mask", "next_action_mask"), actor.extras["action_mask"])
        return fields if is_empty(memory) else fields | {"state": memory}

    def _stores(self) -> dict[str, Any]:
        """Return what checkpoints may leave out, by name."""
        parts = {"buffer": self.buffer, "prioritized": self.prioritized, "hindsight": self.hindsight}
        return {name: part for name, part in parts.items() if part is not None}

    def statistics(self) -> dict[str, float]:
        """Return what happened since the last call; with prioritised replay mean |TD error|, mean weight and beta."""
        drawn = self.prioritized.statistics() if self.prioritized else {}
        return super().statistics() | (drawn | {"beta": self.beta} if drawn else {})

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next batches depend on; without the buffer a resume is not exact."""
        saved = {name: part.state_dict() if self.save_buffer else None for name, part in self._stores().items()}
        own = {"starts": self.starts, "updates": self.updates, "numbers": self.numbers.state_dict()}
        return super().state_dict() | own | saved

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was called."""
        super().load_state_dict(state)
        self.starts, self.updates = state["starts"], state["updates"]
        self.numbers.load_state_dict(state.get("numbers", torch.empty(0, dtype=torch.float64)))  # older ones hold none
        if state["buffer"] is None:
            self._lost = True
            return
        for name, part in self._stores().items():
            part.load_state_dict(state[name])
        if state["actor"]["env"] is None:  # the environments started new episodes
            self.buffer.cut()
            if self.hindsight:
                self.hindsight.cut()

    def why_inexact(self) -> str | None:
        """Return why a resume is not exact: the environment's reason, or a buffer left out."""
        return super().why_inexact() or (None if self.save_buffer else "checkpoint.buffer is false")

    def nbytes(self) -> int:
        """Return the size of all that is stored when the buffer is full."""
        return sum(part.nbytes for part in self._stores().values()) if self.save_buffer else 0
