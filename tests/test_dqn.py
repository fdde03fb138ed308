"""DQN: its target by hand, exploration, targets by frames, masks, and the value that truncation must not cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.configs.value import DQNConfig
from agents.dqn import DQN
from rlcore import build, registry
from rlcore import config as configs
from rlcore.clock import Clock
from rlcore.config import NetworkConfig
from rlcore.errors import UserError
from rlcore.native import BatchedEnv
from rlcore.schedules import Schedule
from rlcore.types import Batch, Rollout, Spec, Transition

SPEC = Spec(spaces.Box(-1, 1, (2,)), spaces.Discrete(3))
LINEAR = NetworkConfig(name="mlp", kwargs={"hidden": []})


def make(**options: Any) -> DQN:
    torch.manual_seed(0)
    return DQN(DQNConfig(network=LINEAR, **options), SPEC)


def set_q(network: nn.Module | None, rows: list[list[float]]) -> None:
    """Make Q(s) = rows[k] for s the k-th unit vector."""
    assert network is not None
    with torch.no_grad():
        network.advantage.weight.copy_(torch.tensor(rows).T)  # type: ignore[union-attr]
        network.advantage.bias.zero_()  # type: ignore[union-attr]


def batch(**extras: Tensor) -> Batch:
    eye = torch.eye(2)
    return Batch(
        Transition(
            obs=eye[[0, 0, 1]],
            action=torch.tensor([0, 2, 1]),
            reward=torch.tensor([1.0, -1.0, 0.5]),
            discount=torch.tensor([0.9, 0.0, 0.81]),
            next_obs=eye[[1, 1, 0]],
            extras=extras,
        )
    )


# Q(s0) = 1 2 3, Q(s1) = 4 5 6; target network: Q'(s0) = 10 20 30, Q'(s1) = 60 50 40
ONLINE, TARGET = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], [[10.0, 20.0, 30.0], [60.0, 50.0, 40.0]]


@pytest.mark.parametrize(
    ("options", "targets"),
    [
        ({}, [1 + 0.9 * 60, -1.0, 0.5 + 0.81 * 30]),
        ({"double": True}, [1 + 0.9 * 40, -1.0, 0.5 + 0.81 * 30]),
        ({"target": "none"}, [1 + 0.9 * 6, -1.0, 0.5 + 0.81 * 3]),
    ],
)
def test_loss_by_hand(options: dict[str, Any], targets: list[float]) -> None:
    agent = make(loss="mse", **options)
    set_q(agent.online, ONLINE)
    if agent.target is not None:
        set_q(agent.target, TARGET)
    q = [1.0, 3.0, 5.0]
    out = agent.loss(batch())
    errors = [t - v for t, v in zip(targets, q, strict=True)]
    assert out.total.item() == pytest.approx(sum(0.5 * e * e for e in errors), rel=1e-6)
    assert out.count == 3
    assert out.priority is not None
    assert out.priority.tolist() == pytest.approx([abs(e) for e in errors])
    assert out.metrics["q_value"].item() == pytest.approx(3.0)
    assert out.metrics["target_q"].item() == pytest.approx(sum(targets) / 3)


def test_huber_is_linear_far_away_and_weights_multiply() -> None:
    agent = make(loss="huber")
    set_q(agent.online, ONLINE)
    set_q(agent.target, TARGET)
    errors = torch.tensor([1 + 0.9 * 60 - 1, -1 - 3.0, 0.5 + 0.81 * 30 - 5])
    weighted = batch()
    weight = torch.tensor([1.0, 0.5, 0.0])
    weighted = weighted._replace(data=weighted.data._replace(weight=weight))
    assert agent.loss(weighted).total.item() == pytest.approx(((errors.abs() - 0.5) * weight).sum().item(), rel=1e-6)


def test_no_gradient_reaches_the_target() -> None:
    agent = make()
    agent.loss(batch()).total.backward()
    assert agent.target is not None
    assert all(p.grad is None for p in agent.target.parameters())
    plain = make(target="none", loss="mse")
    set_q(plain.online, ONLINE)
    plain.loss(batch()).total.backward()
    grad = plain.online.advantage.bias.grad
    assert grad is not None
    errors = [1 + 0.9 * 6 - 1, -1 - 3.0, 0.5 + 0.81 * 3 - 5]
    assert grad.tolist() == pytest.approx([-errors[0], -errors[2], -errors[1]]), "semi-gradient: the target is constant"


def test_a_mask_limits_the_next_states_maximum_for_plain_and_double() -> None:
    mask = torch.tensor([[False, True, False], [True, True, True], [True, False, False]])
    for double in (False, True):
        agent = make(loss="mse", double=double)
        set_q(agent.online, ONLINE)
        set_q(agent.target, TARGET)
        out = agent.loss(batch(next_action_mask=mask))
        targets = [1 + 0.9 * 50, -1.0, 0.5 + 0.81 * 10]
        assert out.metrics["target_q"].item() == pytest.approx(sum(targets) / 3)


def test_dueling_is_value_plus_centred_advantage() -> None:
    agent = make(dueling=True)
    obs = torch.randn(5, 2)
    net = agent.online
    assert net.value is not None
    advantage, value = net.advantage(obs), net.value(obs)
    expected = value + advantage - advantage.mean(1, keepdim=True)
    torch.testing.assert_close(net(obs), expected)
    torch.testing.assert_close(net(obs).mean(1, keepdim=True), value)


def test_epsilon_flips_a_coin_for_each_environment_and_evaluation_none() -> None:
    agent = make()
    set_q(agent.online, [[0.0, 0.0, 9.0], [0.0, 9.0, 0.0]])
    n = 4000
    obs = torch.eye(2)[torch.arange(n) % 2]
    best = torch.where(torch.arange(n) % 2 == 0, 2, 1)
    noise = agent.noise("act", n, torch.Generator().manual_seed(0))
    action = agent.act(obs, (), {"epsilon": torch.tensor(0.3)}, noise).action
    assert abs((action != best).float().mean().item() - 0.2) < 0.02  # a third of the random ones are the best
    assert torch.equal(agent.act(obs, (), {}, {}, explore=False).action, best)
    mask = torch.tensor([True, False, False]).expand(n, 3)
    assert (agent.act(obs, (), {"epsilon": torch.tensor(0.5)}, noise, mask).action == 0).all()
    assert (agent.act(obs, (), {}, {}, mask, explore=False).action == 0).all()


@pytest.mark.parametrize("num_envs", [1, 7, 32])
def test_hard_target_copies_when_frames_cross_the_period(num_envs: int) -> None:
    agent = make(target_every=100)
    assert agent.target is not None
    clock, copies = Clock(1000, 1000), []
    while clock.frames < 1000:
        clock.frames += num_envs
        with torch.no_grad():
            agent.online.advantage.bias.fill_(clock.frames)
        agent.after_update(clock)
        clock.updated = clock.frames
        if agent.target.advantage.bias[0] == clock.frames:
            copies.append(clock.frames)
    expected = [-(-k // num_envs) * num_envs for k in range(100, 1001, 100)]
    assert copies == sorted({f for f in expected if f <= clock.frames})


def test_polyak_target_moves_a_fraction_every_update() -> None:
    agent = make(target="polyak", tau=0.25)
    assert agent.target is not None
    with torch.no_grad():
        agent.online.advantage.bias.fill_(8.0)
        agent.target.advantage.bias.fill_(0.0)
    agent.after_update(Clock(10, 10))
    agent.after_update(Clock(10, 10))
    torch.testing.assert_close(agent.target.advantage.bias.detach(), torch.full((3,), 8 * (1 - 0.75**2)))


def test_a_rollout_becomes_one_step_transitions() -> None:
    agent = make(gamma=0.5)
    shape = (2, 3)
    terminated = torch.tensor([[True, False, False], [False, False, True]])
    data = agent.prepare(
        Rollout(
            obs=torch.arange(12.0).view(2, 3, 2),
            action=torch.arange(6).view(shape),
            reward=torch.arange(6.0).view(shape),
            terminated=terminated,
            truncated=~terminated,
            next_obs=torch.arange(12.0).view(2, 3, 2) + 100,
            valid=torch.ones(shape, dtype=torch.bool),
            act={},
            extras={"action_mask": torch.ones(2, 3, 3), "next_action_mask": torch.arange(18).view(2, 3, 3)},
        )
    )
    assert data.obs.tolist() == torch.arange(12.0).view(6, 2).tolist()
    assert data.discount.tolist() == [0.0, 0.5, 0.5, 0.5, 0.5, 0.0], "truncation does not cut the bootstrap"
    assert data.extras["next_action_mask"].tolist() == torch.arange(18).view(6, 3).tolist()


def test_a_space_it_cannot_serve_gets_one_sentence_naming_both() -> None:
    with pytest.raises(UserError, match=r"agent 'dqn' cannot serve action space Box.*; expected Discrete"):
        DQN(DQNConfig(), SPEC._replace(action_space=spaces.Box(-1, 1, (2,))))


class OneEachStep(BatchedEnv):
    """One state, reward 1 at every step, a time limit of 10 steps and no terminal state."""

    num_uniforms = 1

    def __init__(self, num_envs: int, device: str = "cpu", split: Any = "train", autoreset: Any = "same_step") -> None:
        box = spaces.Box(0, 1, (1,))
        super().__init__(
            num_envs, device, split, autoreset, obs_space=box, action_space=spaces.Discrete(2), max_episode_steps=10
        )

    def initial(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = len(state)
        return state, torch.ones(n), torch.zeros(n, dtype=torch.bool)

    def observe(self, state: Tensor) -> Tensor:
        return state.float()


@pytest.mark.parametrize(("source", "n_step"), [("replay", 3), ("rollout", 1)])
def test_the_value_of_reward_one_under_a_time_limit_is_that_without_it(source: str, n_step: int) -> None:
    if "OneEachStep" not in registry.names("envs"):
        registry.register("envs", "OneEachStep", OneEachStep)
    raw: dict[str, Any] = {
        "env": {"id": "OneEachStep", "num_envs": 4},
        "agent": {"name": "dqn", "gamma": 0.9, "n_step": n_step, "target": "none", "loss": "mse"},
        "source": {"name": source},
        "optim": {"name": "sgd", "lr": 0.1},
        "budget": {"frames": 3000},
    }
    raw["agent"]["network"] = {"name": "mlp", "kwargs": {"hidden": []}}
    if source == "replay":
        raw["source"] |= {"learning_starts": 100, "batch_size": 32, "updates_per_frame": 0.25}
    else:
        raw["source"] |= {"horizon": 1}
    trainer = build.trainer(configs.validate(raw))
    trainer.fit()
    q = trainer.agent.act(torch.ones(1, 1), (), {}, {}, explore=False).extras["q"]
    assert q.max().item() == pytest.approx(10, abs=0.2), "5.3 or 6.5 would show truncation treated as termination"


def test_schedule_of_epsilon_counts_frames_whatever_the_number_of_environments() -> None:
    for num_envs in (1, 16):
        raw = {"env": {"num_envs": num_envs}, "budget": {"frames": 1000}, "source": {"learning_starts": 10**6}}
        trainer = build.trainer(configs.validate(raw))
        trainer.agent.config = trainer.agent.config.model_copy(
            update={"epsilon": Schedule(kind="linear", start=1.0, end=0.0, fraction=0.5)}
        )
        while trainer.clock.frames < 256:
            list(trainer.source.collect(trainer.agent, trainer.clock))
        knob = trainer.source.annealed(trainer.agent, trainer.clock)["epsilon"]
        assert knob.item() == pytest.approx(1 - 256 / 500)
