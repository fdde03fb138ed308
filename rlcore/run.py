"""A trained run in use: act, evaluate, predict."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from rlcore import build, checkpoint, registry, runs
from rlcore import config as configs
from rlcore.actor import is_empty
from rlcore.agent import Agent, load_weights
from rlcore.config import Config
from rlcore.errors import UserError, note
from rlcore.evaluation import Episodes, play
from rlcore.evaluation import evaluate as evaluate_agent
from rlcore.gym_vector import as_tensors
from rlcore.tree import leaves, tmap
from rlcore.types import Spec
from rlcore.vector import Predictor, VectorEnv

Look = Callable[[VectorEnv, dict[str, torch.Tensor]], None]


class Run:
    """A run's agent, with what it takes to use it. Made by `train` and `load`.

    Attributes:
        path: the run's folder.
        config: its settings.
        agent: in evaluation mode.
        spec: the spaces it acts in.
        result: what result.json holds; empty while the run is unfinished.
    """

    def __init__(
        self, path: Path, config: Config[Any], agent: Agent, spec: Spec, predictor: Predictor | None = None
    ) -> None:
        self.path, self.config, self.agent, self.spec = path, config, agent.eval(), spec
        self.predictor = predictor
        self.result: dict[str, Any] = runs.read_json(path / "result.json")
        self.state: Any = None

    def reset(self) -> None:
        """Forget the recurrent state: the next observation begins an episode."""
        self.state = None

    def act(self, obs: Any, mask: Any = None) -> np.ndarray[Any, Any]:
        """Return the greedy action for one observation of the environment's space, or actions for a batch.

        Recurrent agents remember what they saw; call `reset` where an episode begins.

        Raises:
            UserError: the observation does not fit the space.
        """
        tensors = as_tensors(self.spec.obs_space, obs)
        shapes = [leaf.shape for leaf in leaves(as_tensors(self.spec.obs_space, self.spec.obs_space.sample()))]
        given = [leaf.shape for leaf in leaves(tensors)]
        single = given == shapes
        if not single and ([s[1:] for s in given] != shapes or len({s[:1] for s in given}) != 1):
            got, expected = (", ".join(str(tuple(s)) for s in many) for many in (given, shapes))
            raise UserError(f"obs: got shape {got}, expected {expected} or a batch of these")
        if not _within(self.spec.obs_space, tensors):
            raise UserError(f"obs: got {obs!r}, expected finite numbers of {self.spec.obs_space}")
        batch = tmap(lambda x: x.unsqueeze(0) if single else x, tensors)
        if mask is not None:
            mask = torch.as_tensor(mask).bool()
            expected = (*(() if single else given[0][:1]), int(getattr(self.spec.action_space, "n", 0)))
            if mask.shape != expected:
                raise UserError(f"mask: got shape {tuple(mask.shape)}, expected {tuple(expected)}")
            mask = mask.view(-1, expected[-1])
        action = self.choose(batch, mask).cpu().numpy() + self.spec.action_start
        if isinstance(self.spec.action_space, spaces.Box):
            action = np.clip(action, self.spec.action_space.low, self.spec.action_space.high)
        return action[0] if single else action

    @torch.no_grad()
    def choose(self, obs: Any, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return greedy actions (N, ...) for a tree (N, ...) of observation tensors; see `act`."""
        device = torch.device(self.config.device)
        obs = tmap(lambda x: x.to(device), obs)
        n = len(next(leaves(obs)))
        if self.state is None:
            self.state = self.agent.initial_state(n)
        elif (before := len(next(leaves(self.state)))) != n:
            raise UserError(f"obs: got {n} at once after {before}; call reset() where the number of episodes changes")
        act = self.agent.act(obs, self.state, {}, {}, None if mask is None else mask.to(device), explore=False)
        self.state = None if is_empty(act.state) else act.state
        return act.action

    def evaluate(
        self,
        episodes: int | None = None,
        seed: int | None = None,
        look: Look | None = None,
        player: Callable[..., Episodes] = play,
    ) -> dict[str, Any]:
        """Play seeded greedy episodes (for tasks: the whole held-out split) and return their statistics.

        ``look`` is given the environment and the episodes' outcomes, such as `VectorEnv.figures` is made from;
        ``player`` plays them, as `rlcore.evaluation.play` does.
        """
        settings = self.config.eval
        episodes = episodes or settings.final_episodes
        env = build.evaluation_env(self.config, "test", episodes)
        try:
            seed = settings.final_seed if seed is None else seed
            seen = None if look is None else functools.partial(look, env)
            how = (env.episodes or episodes, seed, settings.max_steps)
            return evaluate_agent(self.agent, env, *how, look=seen, player=player)
        finally:
            env.close()

    def predict(self, inputs: Any) -> tuple[list[Any], list[str]]:
        """Return predictions for new inputs as users read them, and remarks on the inputs.

        For tables: a CSV file's path, or rows as mappings; predictions in the target's units or class
        labels. Elsewhere: a sequence of observations; predictions are greedy actions.

        Raises:
            UserError: the inputs do not fit the run.
        """
        if self.predictor is None:
            return [self.act(obs).tolist() for obs in inputs], []
        obs, remarks = self.predictor.encode(inputs)
        size, most = len(next(leaves(obs))), build.at_once(self.config, self.spec, obs)
        actions = []
        for at in range(0, max(size, 1), most):
            self.reset()  # each input is an episode of its own
            actions.append(self.choose(tmap(lambda x, at=at: x[at : at + most], obs)).cpu())
        return self.predictor.decode(torch.cat(actions)), remarks


def _within(space: Any, x: Any) -> bool:
    """Whether numbers are finite and, in the discrete spaces, known; a Box's bounds are often crossed in play."""
    if isinstance(space, spaces.Dict):
        return all(_within(part, x[name]) for name, part in space.items())
    if isinstance(space, spaces.Tuple):
        return all(_within(part, x[i]) for i, part in enumerate(space))
    if isinstance(space, spaces.Box):
        return bool(torch.isfinite(x).all())
    size = {spaces.Discrete: "n", spaces.MultiDiscrete: "nvec"}.get(type(space))
    low = torch.as_tensor(getattr(space, "start", 0))
    return bool(((x >= low) & (x < low + torch.as_tensor(getattr(space, size) if size else 2))).all())


def find_checkpoint(run: Path, which: str = "last") -> Path:
    """Return the checkpoint folder named ``last``, ``best`` or by its frame.

    Raises:
        UserError: there is none; says which there are.
    """
    folder = run / "checkpoints"
    if which == "last":
        found = checkpoint.latest(folder, note)
    elif which == "best" or which.isdecimal():
        found = checkpoint.named(folder, which if which == "best" else f"{int(which):012d}")
    else:
        raise UserError(f"--checkpoint: got '{which}', expected last, best or a frame")
    if found is None:
        known = [p.name.lstrip("0") or "0" for p in sorted(folder.glob("[0-9b]*")) if p.is_dir()]
        raise UserError(f"{run} has no checkpoint '{which}'; it has {', '.join(known) or 'none yet'}")
    return found


def load(run: str | Path, which: str | None = None, beam: int | None = None) -> Run:
    """Load a run's agent from its ``last`` or ``best`` checkpoint or the one at a frame (None: as its eval.use says).

    torch is set to the run's number of threads, so that it computes what it computed in training. ``beam`` goes before
    the run's agent.beam.

    Raises:
        UserError: there is no such run or checkpoint, or it is damaged; or it has a ``beam`` and writes nothing.
    """
    folder = runs.resolve_one(run)
    config = configs.validate(configs.read(folder), str(folder / "config.yaml"))
    if beam is not None:
        if "beam" not in type(config.agent).model_fields:
            raise UserError(f"beam: {folder} has agent '{config.agent.name}', expected one that answers prompts")
        config = config.model_copy(update={"agent": config.agent.model_copy(update={"beam": beam})})
    torch.set_num_threads(config.threads)
    build.device(config.device)
    agent, spec, predictor = blank(config, runs.read_json(folder / "fitted.json"))
    load_weights(agent, checkpoint.load(find_checkpoint(folder, which or config.eval.use)).agent, str(folder))
    return Run(folder, config, agent, spec, predictor)


def blank(config: Config[Any], fitted: dict[str, Any]) -> tuple[Agent, Spec, Predictor | None]:
    """Return a run's agent before its weights are loaded, its spaces and its predictor; see `VectorEnv.fitted`."""
    predictor = None
    if fitted:  # predicts without the data it was trained on
        predictor = registry.find("envs", config.env.id).predictor({**config.env.kwargs, **fitted})
        spec = predictor.spec
    else:
        env = build.env(config.env, config.device, num_envs=1)
        spec = env.spec
        env.close()
    return build.agent(config, spec), spec, predictor
