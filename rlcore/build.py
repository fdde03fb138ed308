"""From settings to parts: environments, agent, source, optimiser, clock. Everything here can be built by hand too."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import torch

from rlcore import distributed, recorded, registry
from rlcore.agent import Agent
from rlcore.clock import Clock
from rlcore.config import Config, DatasetConfig, EnvConfig, ReplayConfig, RolloutConfig
from rlcore.errors import UserError
from rlcore.make import make_env
from rlcore.optim import Optim
from rlcore.seeding import derive
from rlcore.sources import Acting, Dataset, OverlappedReplay, OverlappedRollout, Replay, Rollout, Source
from rlcore.trainer import Trainer
from rlcore.tree import leaves
from rlcore.types import Spec
from rlcore.vector import Split, VectorEnv
from rlcore.worker_env import WorkerEnv

# Numbers in one forward pass of an evaluation. A Transformer holds thousands of numbers for each that it observes, and
# is quickest where these stay in a processor's caches.
ACTIONS, OBSERVATIONS = 2**25, 2**13


def device(name: str) -> torch.device:
    """Return the torch device.

    Raises:
        UserError: this machine or this build of torch does not have it, or not for every rank.
    """
    found = torch.device(name)
    if (found.type == "cuda" and not torch.cuda.is_available()) or (
        found.type == "mps" and not torch.mps.is_available()
    ):
        raise UserError(f"device: got '{name}', expected cpu: torch sees no such device here")
    if found.type == "cuda" and distributed.size() > 1 and (found.index is not None or not distributed.gpus()):
        raise UserError(f"device: got '{name}', expected cpu, or cuda with a GPU for each rank of a machine")
    return found


def env(
    config: EnvConfig, on: str = "cpu", split: Split = "train", num_envs: int | None = None, **more: Any
) -> VectorEnv:
    """Build a vector environment; ``num_envs`` overrides the configured number."""
    return make_env(
        config.id,
        num_envs or config.num_envs,
        backend=config.backend,
        kwargs=config.kwargs,
        wrappers=config.wrappers,
        device=on,
        split=split,
        **more,
    )


def evaluation_env(config: Config[Any], split: Split, episodes: int, **more: Any) -> VectorEnv:
    """Build an environment of one's own for evaluation, wide enough to be quick."""
    probe = env(config.env, config.device, split, 1, **more)
    # What is stepped one by one plays a few at a time, what is stepped as one batch all episodes at once; held-out
    # items, whose episodes are single steps, come in equal parts.
    wanted = min(episodes, at_once(config, probe.spec) if probe.batched else 8)
    if probe.batched and probe.episodes:
        parts = math.ceil(probe.episodes / at_once(config, probe.spec, probe.reset()[0]))
        wanted = math.ceil(probe.episodes / parts)
    if wanted == 1:
        return probe
    probe.close()
    return env(config.env, config.device, split, wanted, **more)


def at_once(config: Config[Any], spec: Spec, obs: Any = None) -> int:
    """Return how many rows an agent acts on in one forward pass, where that is up to us.

    Args:
        config: of the run; as many as training acts on, or learns from, at once are never too many.
        spec: wide actions, such as the logits of a text's tokens, bound how many.
        obs: observations (N, ...) of single items, whose size bounds how many, too; None: those of whole episodes, of
            which as many as possible are played side by side.
    """
    most = max(1, min(1024, ACTIONS // max(1, gym.spaces.flatdim(spec.action_space))))
    if obs is None:
        return most
    trained = max(config.env.num_envs, getattr(config.source, "batch_size", 0))
    return min(most, max(trained, OBSERVATIONS // max(1, sum(x[:1].numel() for x in leaves(obs)))))


def agent(config: Config[Any], spec: Spec) -> Agent:
    """Build the agent on its device, its weights drawn from the run's own stream."""
    cls = registry.find("agents", config.agent.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "weights"))
        built: Agent = cls(config.agent, spec)
    return built.to(device(config.device))


def source(config: Config[Any], train_env: VectorEnv, learner: Agent) -> Source:
    """Build the source of batches for an agent, whose discount and n-step recorded data are assembled with."""
    kind = config.source
    if isinstance(kind, ReplayConfig):
        if kind.overlap:
            return OverlappedReplay(_stepped_elsewhere(train_env), kind, config.seed, config.checkpoint.buffer, learner)
        _in_order(train_env)
        return Replay(train_env, kind, config.seed, config.checkpoint.buffer, learner)
    if isinstance(kind, RolloutConfig):
        if learner.n_step != 1:
            raise UserError(f"agent.n_step: got {learner.n_step}, expected 1 with source.name=rollout")
        _in_order(train_env)
        if kind.overlap:
            return OverlappedRollout(_stepped_elsewhere(train_env), kind, config.seed)
        return Rollout(train_env, kind, config.seed)
    assert isinstance(kind, DatasetConfig)
    name = config.agent.name
    if config.agent.recorded and not kind.data:
        raise UserError(f"source.data: agent '{name}' learns from recorded data; expected FILE.npz or minari:ID")
    if not kind.data:
        return Dataset(train_env, kind, config.seed)
    if not config.agent.recorded:
        raise UserError(
            f"source.data: got '{kind.data}', expected nothing: agent '{name}' learns from labelled examples"
        )
    data = recorded.load(kind.data, train_env.spec, learner.gamma, learner.n_step, train_env.device)
    return Dataset(train_env, kind, config.seed, data)


def _stepped_elsewhere(train_env: VectorEnv) -> WorkerEnv:
    if not isinstance(train_env, WorkerEnv):
        raise UserError("source.overlap: got true, expected false where env.workers is 0: nobody would step meanwhile")
    return train_env


def _in_order(train_env: VectorEnv) -> None:
    if isinstance(train_env, WorkerEnv) and train_env.order != "fixed":
        raise UserError(f"env.order: got {train_env.order}, expected fixed but with source.name=replay and its overlap")


def trainer(config: Config[Any], alone: bool = True) -> Trainer:
    """Build everything but the callbacks; what does not run ``alone``, see `rlcore.together`, compiles nothing."""
    torch.set_num_threads(config.threads)
    device(config.device)
    wanted = config.env.num_envs
    if not isinstance(
        config.source, DatasetConfig
    ):  # labelled data are shared by batches, and no environment is stepped
        wanted = distributed.shared(wanted, "env.num_envs")
    chosen = config.env
    train_env = env(chosen, config.device, num_envs=wanted, workers=chosen.workers, order=chosen.order)
    built = agent(config, train_env.spec)
    acting = source(config, train_env, built)
    compiled = alone and config.compile == "on"
    if compiled and isinstance(acting, Acting) and not isinstance(acting, OverlappedRollout):  # whose thread must not
        acting.compile()
    budget = config.budget
    return Trainer(
        built,
        acting,
        Optim(built, config.optim, compiled=compiled),
        Clock(budget.frames, budget.horizon or budget.frames),
        seed=derive(config.seed, distributed.stream("torch")),
    )
