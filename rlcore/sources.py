"""Where batches come from: Replay (act, store, sample), Rollout (act for a horizon), Dataset (draw examples)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlcore.actor import Acted, Actor, random_actions
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.config import DatasetConfig, ReplayConfig, RolloutConfig
from rlcore.errors import UserError
from rlcore.logger import Meter
from rlcore.replay import ReplayBuffer
from rlcore.seeding import generator
from rlcore.tree import leaves, tmap
from rlcore.types import Batch, Loss
from rlcore.types import Rollout as RolloutData
from rlcore.vector import VectorEnv


class Source(ABC):
    """Yields the batches of one iteration at a time and owns all that they depend on."""

    def __init__(self, env: VectorEnv, seed: int) -> None:
        self.env = env
        self.rng = generator(seed, "source", env.device)
        self.knobs: dict[str, Tensor] = {}
        self.meter = Meter()  # watches observations and rewards for NaN and infinity, by frame

    @abstractmethod
    def collect(self, agent: Agent, clock: Clock) -> Iterator[Batch]:
        """Advance the clock's frames by one iteration's and yield its batches."""

    def feedback(self, batch: Batch, out: Loss) -> None:  # noqa: B027 - most sources need none
        """Take note of a batch's loss: priorities, early stop."""

    def statistics(self) -> dict[str, float]:
        """Return what happened since the last call, for the log (train/NAME)."""
        self.meter.flush()
        return {}

    def why_inexact(self) -> str | None:
        """Return why a resume from this source's checkpoints is not exact, in a clause; None: it is."""
        return self.env.why_not_capturable

    def nbytes(self) -> int:
        """Return the bytes that a checkpoint of this source will grow by while it fills."""
        return 0

    def annealed(self, agent: Agent, clock: Clock) -> dict[str, Tensor]:
        """Write the agent's schedules at this moment into 0-dim tensors and return them."""
        for name, schedule in agent.schedules().items():
            value = schedule(clock.progress)
            if name in self.knobs:
                self.knobs[name].fill_(value)
            else:
                self.knobs[name] = torch.tensor(value, dtype=torch.float32, device=self.env.device)
        return self.knobs

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next batches depend on."""
        return {"rng": self.rng.get_state(), "meter": self.meter.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was called."""
        self.rng.set_state(state["rng"].cpu())
        self.meter.load_state_dict(state["meter"])


class Acting(Source):
    """A source that acts in its environment."""

    def __init__(self, env: VectorEnv, seed: int) -> None:
        super().__init__(env, seed)
        self.actor = Actor(env, seed)

    def act(self, agent: Agent, clock: Clock, random: bool = False) -> Acted:
        """Act once in every environment and count the frames."""
        acted = self.actor.step(agent, self.knobs, random)
        valid = acted.step.valid
        clock.frames += self.env.num_envs if self.env.always_valid else int(valid.sum())
        for leaf in leaves(acted.step.next_obs):
            if leaf.is_floating_point():
                self.meter.watch(clock.frames, "observation", leaf.sum())
        self.meter.watch(clock.frames, "reward", acted.step.reward.sum())
        return acted

    def statistics(self) -> dict[str, float]:
        """Return the mean return and length of the episodes finished since the last call."""
        return super().statistics() | self.actor.episodes.flush()

    def state_dict(self) -> dict[str, Any]:
        """Return everything the next batches depend on."""
        return super().state_dict() | {"actor": self.actor.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was called."""
        super().load_state_dict(state)
        self.actor.load_state_dict(state["actor"])


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
            self._store(self.act(agent, clock, random=clock.frames < config.learning_starts))
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


class Rollout(Acting):
    """Act for a horizon, let the agent attach targets, learn for a few epochs, forget."""

    def __init__(self, env: VectorEnv, config: RolloutConfig, seed: int) -> None:
        super().__init__(env, seed)
        self.config = config
        self.stopped: Tensor | bool = False
        items = config.horizon * env.num_envs
        if config.minibatches > items:
            raise UserError(
                f"source.minibatches: got {config.minibatches}, expected at most the {items} steps of a rollout"
            )

    def collect(self, agent: Agent, clock: Clock) -> Iterator[Batch]:
        """Act for the horizon, then yield every epoch's minibatches."""
        knobs = self.annealed(agent, clock)
        acted = [self.act(agent, clock) for _ in range(self.config.horizon)]
        with torch.no_grad():
            data = agent.prepare(_stack(acted))
        valid = torch.stack([a.step.valid for a in acted]).flatten()
        for _ in range(self.config.epochs):
            order = torch.randperm(valid.numel(), generator=self.rng, device=valid.device)
            if not self.env.always_valid:
                order = order[valid[order]]
            for index in order.tensor_split(self.config.minibatches):
                if not len(index):
                    continue
                items = tmap(lambda x, i=index: x.index_select(0, i), data)
                yield Batch(items, knobs, agent.noise("loss", len(index), self.rng))
                if self.stopped is not False and bool(self.stopped):
                    return

    def feedback(self, batch: Batch, out: Loss) -> None:
        """Remember the wish to stop this iteration."""
        self.stopped = out.stop


class Dataset(Source):
    """Draw labelled examples of a one-step task, an epoch after the other; one batch an iteration."""

    def __init__(self, env: VectorEnv, config: DatasetConfig, seed: int) -> None:
        super().__init__(env, seed)
        if env.task is None:
            raise UserError("source.name: 'dataset' needs a task with labelled examples; this environment has none")
        self.task = env.task
        self.config = config
        self.batch_size = min(config.batch_size or self.task.size, self.task.size)
        self.order = torch.empty(0, dtype=torch.int64, device=env.device)  # of this epoch
        self.cursor = 0  # batches of this epoch already yielded
        self._drawn: list[Any] = []

    def collect(self, agent: Agent, clock: Clock) -> Iterator[Batch]:
        """Yield the next batch; an epoch's last one may be short and is used all the same."""
        if not self._drawn:
            self._draw()
        data = self._drawn.pop()
        self.cursor += 1
        n = len(next(leaves(data.target)))
        clock.frames += n
        yield Batch(data, self.annealed(agent, clock), agent.noise("loss", n, self.rng))

    def _draw(self) -> None:
        """Draw the examples of some batches at once: one gather serves them all."""
        if self.cursor * self.batch_size >= len(self.order):
            n, self.cursor = self.task.size, 0
            rng = self.rng
            device = self.env.device
            self.order = (
                torch.randperm(n, generator=rng, device=device)
                if self.config.shuffle
                else torch.arange(n, device=device)
            )
        start = self.cursor * self.batch_size
        examples = self.task.draw(self.order[start : start + 32 * self.batch_size])
        for at in reversed(range(0, len(next(leaves(examples))), self.batch_size)):
            self._drawn.append(tmap(lambda x, at=at: x[at : at + self.batch_size], examples))

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the epoch."""
        return super().state_dict() | {"order": self.order, "cursor": self.cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue in the middle of the epoch."""
        super().load_state_dict(state)
        self.order, self.cursor = state["order"].to(self.env.device), state["cursor"]
        self._drawn = []


def _stack(acted: list[Acted]) -> RolloutData:
    """Put a horizon's steps after one another: every field (T, N, ...)."""

    def stack(values: list[Any]) -> Any:
        return tmap(lambda *x: torch.stack(x), *values)

    steps = [a.step for a in acted]
    # Step.extras has the masks of the observation to come; that of the one acted on replaces it.
    masks = [{k: v for k, v in a.extras.items() if k == "action_mask"} for a in acted]
    extras = [{**s.extras, **mask} for s, mask in zip(steps, masks, strict=True)]
    return RolloutData(
        obs=stack([a.obs for a in acted]),
        action=stack([a.act.action for a in acted]),
        reward=stack([s.reward for s in steps]),
        terminated=stack([s.terminated for s in steps]),
        truncated=stack([s.truncated for s in steps]),
        next_obs=stack([s.next_obs for s in steps]),
        valid=stack([s.valid for s in steps]),
        act=stack([a.act.extras for a in acted]),
        extras=stack(extras),
        state=stack([a.state for a in acted]),
    )
