"""A trained run in use: act, evaluate, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlcore import build, checkpoint, runs
from rlcore import config as configs
from rlcore.actor import is_empty
from rlcore.agent import Agent
from rlcore.config import Config
from rlcore.errors import UserError
from rlcore.evaluation import evaluate as evaluate_agent
from rlcore.gym_vector import to_tensor
from rlcore.tree import leaves, tmap
from rlcore.types import Spec


class Run:
    """A run's agent, with what it takes to use it. Made by `train` and `load`."""

    def __init__(self, path: Path, config: Config[Any], agent: Agent, spec: Spec, result: dict[str, Any]) -> None:
        self.path, self.config, self.agent, self.spec = path, config, agent, spec
        self.result = result  # what result.json holds
        self.agent.eval()
        self.state: Any = None

    def reset(self) -> None:
        """Forget the recurrent state: the next observation begins an episode."""
        self.state = None

    @torch.no_grad()
    def act(self, obs: Any, mask: Any = None) -> np.ndarray[Any, Any]:
        """Return the greedy action for one observation of the environment's space, or actions for a batch.

        Recurrent agents remember what they saw; call `reset` where an episode begins.
        """
        tensors = to_tensor(self.spec.obs_space, obs)
        first = next(leaves(tensors))
        shape = next(leaves(to_tensor(self.spec.obs_space, self.spec.obs_space.sample()))).shape
        single = first.dim() == len(shape)
        if first.shape[-len(shape) or first.dim() :] != shape or first.dim() - len(shape) not in (0, 1):
            raise UserError(f"obs: got shape {tuple(first.shape)}, expected {tuple(shape)} or a batch of these")
        device = torch.device(self.config.device)
        batch = tmap(lambda x: (x.unsqueeze(0) if single else x).to(device), tensors)
        if mask is not None:
            mask = torch.as_tensor(mask, device=device).bool().view(1 if single else len(first), -1)
        if self.state is None:
            self.state = self.agent.initial_state(1 if single else len(first))
        act = self.agent.act(batch, self.state, {}, {}, mask, explore=False)
        self.state = None if is_empty(act.state) else act.state
        action = act.action[0] if single else act.action
        return action.cpu().numpy()

    def evaluate(self, episodes: int | None = None, seed: int | None = None) -> dict[str, Any]:
        """Play seeded greedy episodes (for tasks: the whole held-out split) and return their statistics."""
        settings = self.config.eval
        episodes = episodes or settings.final_episodes
        env = build.evaluation_env(self.config, "test", episodes)
        try:
            seed = settings.final_seed if seed is None else seed
            return evaluate_agent(self.agent, env, env.episodes or episodes, seed, settings.max_steps)
        finally:
            env.close()


def find_checkpoint(run: Path, which: str = "last") -> Path:
    """Return the checkpoint folder named ``last``, ``best`` or by its frame.

    Raises:
        UserError: there is none; says which there are.
    """
    folder = run / "checkpoints"
    if which == "last":
        found = checkpoint.latest(folder)
    elif which == "best" or which.isdigit():
        found = folder / (which if which == "best" else f"{int(which):012d}")
    else:
        raise UserError(f"--checkpoint: got '{which}', expected last, best or a frame")
    if found is None or not found.is_dir():
        known = [p.name.lstrip("0") or "0" for p in sorted(folder.glob("[0-9b]*")) if p.is_dir()]
        raise UserError(f"{run} has no checkpoint '{which}'; it has {', '.join(known) or 'none yet'}")
    return found


def load_weights(agent: Agent, weights: dict[str, torch.Tensor], origin: str) -> None:
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


def load(run: str | Path, which: str = "last") -> Run:
    """Load a run's agent from its ``last`` or ``best`` checkpoint, or the one at a frame.

    Raises:
        UserError: there is no such run or checkpoint, or it is damaged.
    """
    folder = runs.resolve(run)[0]
    config = configs.validate(configs.read(folder), str(folder / "config.yaml"))
    env = build.env(config.env, config.device, num_envs=1)
    agent = build.agent(config, env.spec)
    env.close()
    load_weights(agent, checkpoint.load(find_checkpoint(folder, which)).agent, str(folder))
    return Run(folder, config, agent, env.spec, runs.read_json(folder / "result.json") or {})
