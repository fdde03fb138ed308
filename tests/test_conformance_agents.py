"""Every agent in the conformance suite; and the suite catches agents that break the contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from agents.configs.value import DQNConfig
from agents.dqn import DQN
from envs.cartpole import CartPole
from envs.pendulum import Pendulum
from rlcore import build, registry
from rlcore import config as configs
from rlcore.testing import check_agent
from rlcore.testing.agents import check_determinism, check_resume, first_difference, iterate
from rlcore.types import Act, Batch, Loss

SMALL = {"batch_size": 16, "learning_starts": 32, "updates_per_frame": 0.5}
AGENTS: dict[str, dict[str, Any]] = {
    "dqn": {"agent": {"name": "dqn"}, "source": SMALL},
    "dqn-double-dueling-3-step": {
        "agent": {"name": "dqn", "double": True, "dueling": True, "n_step": 3, "target": "polyak"},
        "source": SMALL,
    },
    "dqn-one-env": {"env": {"num_envs": 1}, "agent": {"name": "dqn"}, "source": SMALL},
    "dqn-sync": {"env": {"backend": "sync", "num_envs": 3}, "agent": {"name": "dqn"}, "source": SMALL},
    "dqn-discrete-obs": {"env": {"id": "FrozenLake-v1"}, "agent": {"name": "dqn"}, "source": SMALL},
    "dqn-masks": {"env": {"id": "Taxi-v4"}, "agent": {"name": "dqn"}, "source": SMALL},
    "dqn-tuple-obs": {"env": {"id": "Blackjack-v1"}, "agent": {"name": "dqn"}, "source": SMALL},
    "online-q": {"agent": {"name": "dqn", "target": "none"}, "source": {"name": "rollout", "horizon": 1}},
    "supervised-line": {"env": {"id": "line"}, "agent": {"name": "supervised"}},
    "supervised-classes": {
        "env": {
            "id": "tabular",
            "kwargs": {"target": "price", "features": ["sqft", "beds"], "kind": "classification", "bins": 3},
        },
        "agent": {"name": "supervised"},
        "optim": {"lr": 0.01},
    },
}


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_agent_keeps_the_contract(name: str) -> None:
    check_agent(AGENTS[name])


REPLAY = {"batch_size": 8, "learning_starts": 16, "updates_per_frame": 0.2, "frames_per_iteration": 12}
ROLLOUT = {"horizon": 12}
TINY = {"network": {"name": "mlp", "kwargs": {"hidden": [8]}}}
MEMORY = {"network": {"name": "gru", "kwargs": {"features": 4}}}
# Every agent that acts: its options, its source's, and whether its actions are numbers of a Box.
ACTING: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "dqn": ({**TINY, "n_step": 3, "double": True}, REPLAY, False),
    "c51": (TINY, REPLAY, False),
    "qr_dqn": (TINY, REPLAY, False),
    "iqn": (TINY, REPLAY, False),
    "rainbow": (TINY, {**REPLAY, "prioritized": True}, False),
    "r2d2": ({**MEMORY, "burn_in": 2, "length": 4, "n_step": 2}, {**REPLAY, "prioritized": True}, False),
    "pqn": (TINY, ROLLOUT, False),
    "ppo": ({**MEMORY, "sequence_length": 4}, {**ROLLOUT, "epochs": 2, "minibatches": 2}, False),
    "a2c": ({**TINY, "normalize_obs": True}, {**ROLLOUT, "reward": "normalize"}, False),
    "reinforce": (TINY, ROLLOUT, False),
    "sac": ({"hidden": [8]}, REPLAY, True),
    "td3": ({"hidden": [8]}, {**REPLAY, "prioritized": True}, True),
    "ddpg": ({"hidden": [8], "normalize_obs": True}, {**REPLAY, "reward": "normalize"}, True),
}
LEARN_FROM_DATA = {"bc", "cql", "iql", "supervised", "seq2seq"}
WRITE = {"grpo"}  # episodes of one step, whatever the mode


def moded(name: str, mode: str, num_envs: int) -> Any:
    """Return the settings of a run in an environment of short episodes that resets itself as ``mode`` says."""
    agent, source, continuous = ACTING[name]
    raw = {
        "env": {"id": "ModedBox" if continuous else "Moded", "num_envs": num_envs, "kwargs": {"mode": mode}},
        "agent": {"name": name, **agent},
        "source": source,
    }
    return configs.validate(raw)


@pytest.fixture
def _moded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_own", dict(registry._own))
    for name, cls in (("Moded", CartPole), ("ModedBox", Pendulum)):

        def __init__(
            self: Any, num_envs: int, device: str = "cpu", split: Any = "train", autoreset: Any = "", mode: Any = "",
            cls: Any = cls,
        ) -> None:  # fmt: skip
            cls.__init__(self, num_envs, device, split, mode, max_episode_steps=10)

        registry.register("envs", name, type(name, (cls,), {"__init__": __init__}))


def test_every_agent_is_held_to_every_autoreset_mode() -> None:
    ours = {name for name in registry.names("agents") if ("agents", name) not in registry._own}
    assert {*ACTING, *LEARN_FROM_DATA, *WRITE} == ours


@pytest.mark.usefixtures("_moded")
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("name", ACTING)
def test_an_environment_reset_by_the_engine_teaches_what_one_that_resets_itself_does(name: str, num_envs: int) -> None:
    ended = []
    trainers = [build.trainer(moded(name, mode, num_envs)) for mode in ("same_step", "disabled")]
    for trainer in trainers:
        iterate(trainer, 4)
        ended.append(trainer.source.statistics()["episode_length"])
    one, other = (trainer.agent.state_dict() for trainer in trainers)
    assert first_difference(one, other) is None
    assert ended[0] == ended[1] <= 10, "episodes have ended"


@pytest.mark.usefixtures("_moded")
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("name", ACTING)
def test_fake_steps_harm_neither_determinism_nor_resume(name: str, num_envs: int) -> None:
    config = moded(name, "next_step", num_envs)
    check_determinism(config)
    check_resume(config)


class Synchronising(DQN):
    def loss(self, batch: Batch) -> Loss:
        out = super().loss(batch)
        return out._replace(count=len(batch.data.reward) + int(out.total.item() < 0))


class GlobalNoise(DQN):
    def act(self, *args: Any, **kwargs: Any) -> Act:
        act = super().act(*args, **kwargs)
        return act._replace(action=torch.where(torch.rand(len(act.action)) < 0.5, act.action, act.action))


class Sampling(DQN):
    def act(self, obs: Any, *args: Any, **kwargs: Any) -> Act:
        return super().act(obs, *args, **kwargs)._replace(action=torch.randint(2, (len(obs),)))


class Masking(DQN):
    def loss(self, batch: Batch) -> Loss:
        t = batch.data
        keep = t.reward > -1e9
        return super().loss(batch._replace(data=t._replace(reward=t.reward[keep])))


class Graphed(DQN):
    def loss(self, batch: Batch) -> Loss:
        out = super().loss(batch)
        return out._replace(metrics={"penalty": out.total / 2})


class Averaged(DQN):
    def loss(self, batch: Batch) -> Loss:
        out = super().loss(batch)
        return out._replace(total=out.total.expand(2))


class Mean(DQN):
    def loss(self, batch: Batch) -> Loss:
        out = super().loss(batch)
        return out._replace(total=out.total / len(batch.data.reward))


class Forgetful(DQN):
    """Keeps a number that training depends on outside of its state."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen = 0

    def loss(self, batch: Batch) -> Loss:
        self.seen += 1
        out = super().loss(batch)
        return out._replace(total=out.total * (1 + self.seen // 8))


class Deaf(DQN):
    def loss(self, batch: Batch) -> Loss:
        out = super().loss(batch)
        return out._replace(total=out.total * 1e-30 + sum(p.sum() for p in self.online.parameters()) * 1e-30)


class OutOfSpace(DQN):
    def act(self, *args: Any, **kwargs: Any) -> Act:
        act = super().act(*args, **kwargs)
        return act._replace(action=act.action + 2)


PLANTED: dict[type[DQN], str] = {
    Synchronising: "loss reads a value or indexes by a mask",
    GlobalNoise: "act drew from torch's global generator",
    Sampling: "act gave two answers to the same arguments",
    Masking: "loss reads a value or indexes by a mask",
    Graphed: "carries a gradient",
    Averaged: "loss total has shape",
    Mean: "it must add up over items",
    Forgetful: "a resumed run ended with",
    Deaf: "the mean return is",
    OutOfSpace: "which is not in Discrete",
}


@pytest.mark.parametrize("agent", list(PLANTED), ids=lambda a: a.__name__)
def test_the_suite_catches(agent: type[DQN], monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(registry._own)
    monkeypatch.setattr(registry, "_own", known)
    known["agents", "planted"] = agent

    class PlantedConfig(DQNConfig):
        name: Any = "planted"

    known["configs", "planted"] = PlantedConfig
    with pytest.raises(AssertionError, match=PLANTED[agent]):
        check_agent({"agent": {"name": "planted"}, "source": SMALL})


def test_an_agent_of_ones_own_needs_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's agent in one file: a tabular learner with other arithmetic than DQN's."""
    monkeypatch.setattr(registry, "_own", dict(registry._own))
    from rlcore.agent import Agent
    from rlcore.config import AgentConfig

    class CriticConfig(AgentConfig):
        name: Any = "mine"

    class Mine(Agent):
        Config = CriticConfig

        def __init__(self, config: CriticConfig, spec: Any) -> None:
            super().__init__(config, spec)
            assert isinstance(spec.action_space, spaces.Discrete)
            self.actions = int(spec.action_space.n)
            self.q = torch.nn.Linear(spec.obs_space.shape[0], self.actions)
            self.gamma = 0.9

        def noise(self, what: str, n: int, generator: torch.Generator) -> dict[str, Tensor]:
            return {"uniform": torch.rand(n, self.actions, generator=generator)} if what == "act" else {}

        def act(self, obs: Any, state: Any, knobs: Any, noise: Any, mask: Any = None, explore: bool = True) -> Act:
            q = self.q(obs)
            return Act((q + noise["uniform"] if explore else q).argmax(-1), state)

        def loss(self, batch: Batch) -> Loss:
            t = batch.data
            with torch.no_grad():
                target = t.reward + t.discount * self.q(t.next_obs).amax(-1)
            error = target - self.q(t.obs).gather(1, t.action[:, None]).squeeze(1)
            return Loss(error.square().sum(), len(error))

    registry.register("agents", "mine", Mine)
    check_agent({"agent": {"name": "mine"}, "source": SMALL, "optim": {"lr": 0.01}})
