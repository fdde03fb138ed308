"""Act, store, sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from rlcore.actor import Acted, random_actions
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.config import ReplayConfig
from rlcore.replay import ReplayBuffer
from rlcore.sources.base import Acting
from rlcore.types import Batch
from rlcore.vector import VectorEnv


class Replay(Acting):
    """Act, store, sample. The ratio of updates to frames is the configured one for any number of environments."""

    def __init__(self, env: VectorEnv, config: ReplayConfig, seed: int, save_buffer: bool = True) -> None:
        super().__init__(env, seed)
        self.config = config
        self.save_buffer = save_buffer
        self.buffer = ReplayBuffer(config.capacity, env.num_envs, self._layout(), env.device)
        self.steps = max(1, config.frames_per_iteration // env.num_envs)
        self.starts = config.learning_starts  # frames at which learning starts, or starts again
        self.updates = 0  # batches yielded since then
        self._lost = False  # resumed without a buffer

    def collect(self, agent: Agent, clock: Clock) -> Iterator[Batch]:
        """Act for an iteration's frames, then yield the updates that have come due."""
        config = self.config
        knobs = self.annealed(agent, clock)
        if self._lost:  # fill the new buffer before learning from it
            self.starts, self.updates, self._lost = clock.frames + config.learning_starts, 0, False
        for _ in range(self.steps):
            acted = self.act(agent, clock, random=clock.frames < config.learning_starts)
            self._store(acted)
            agent.observe(acted.obs)
        due = int(config.updates_per_frame * max(0, clock.frames - self.starts)) - self.updates
        while due > 0:
            # The buffer does not change before the next step, so several batches come from one gather.
            chunk = min(due, 64)
            for data, index in self.buffer.sample(config.batch_size, self.rng, agent.gamma, agent.n_step, chunk):
                self.updates += 1
                yield Batch(data, knobs, agent.noise("loss", config.batch_size, self.rng), index)
            due -= chunk

    def _store(self, acted: Acted) -> None:
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
        self.buffer.add(fields, None if self.env.always_valid else step.valid)

    def _layout(self) -> dict[str, Any]:
        """Return one step's fields, for their shapes and types."""
        n, device, actor = self.env.num_envs, self.env.device, self.actor
        flags = torch.zeros(n, dtype=torch.bool, device=device)
        action = random_actions(self.env.spec.action_space, n, torch.Generator(device))
        fields = {"obs": actor.obs, "action": action, "reward": torch.zeros(n, device=device)}
        fields |= {"terminated": flags, "truncated": flags, "next_obs": actor.obs}
        if "action_mask" in actor.extras:
            fields |= dict.fromkeys(("action_mask", "next_action_mask"), actor.extras["action_mask"])
        return fields

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next batches depend on; without the buffer a resume is not exact."""
        saved = self.buffer.state_dict() if self.save_buffer else None
        return super().state_dict() | {"starts": self.starts, "updates": self.updates, "buffer": saved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was called."""
        super().load_state_dict(state)
        self.starts, self.updates = state["starts"], state["updates"]
        if (saved := state["buffer"]) is None:
            self._lost = True
            return
        self.buffer.load_state_dict(saved)
        if state["actor"]["env"] is None:
            self.buffer.cut()  # the environments started new episodes

    def why_inexact(self) -> str | None:
        """Return why a resume is not exact: the environment's reason, or a buffer left out."""
        return super().why_inexact() or (None if self.save_buffer else "checkpoint.buffer is false")

    def nbytes(self) -> int:
        """Return the size of the full buffer."""
        return self.buffer.nbytes if self.save_buffer else 0
