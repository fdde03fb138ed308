"""What the agents for continuous control share: the scale of actions, log-densities, phases, and that they learn."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from agents import squashed_gaussian
from agents.continuous import ActionScale, ContinuousAgent, StackedMLP
from rlcore import build, registry
from rlcore import config as configs
from rlcore.clock import Clock
from rlcore.config import OptimConfig
from rlcore.errors import UserError
from rlcore.native import BatchedEnv
from rlcore.optim import Optim
from rlcore.testing import check_agent
from rlcore.testing.agents import first_difference
from rlcore.types import Batch, Spec, Transition

AGENTS = ("sac", "td3", "ddpg")
BOX = spaces.Box(np.array([-1.0, 2.0], np.float32), np.array([3.0, 2.5], np.float32))  # neither symmetric nor alike
OBS = spaces.Box(-1, 1, (3,))


def make(name: str, action_space: Any = BOX, obs_space: Any = OBS, **options: Any) -> ContinuousAgent:
    torch.manual_seed(0)
    config = configs.agent_config(name)(**{"hidden": (16, 8), **options})
    return registry.find("agents", name)(config, Spec(obs_space, action_space))


def random_batch(agent: ContinuousAgent, n: int = 6, seed: int = 0, **extra: Any) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    scale = agent.scale
    data = Transition(
        obs=torch.randn(n, 3, generator=rng),
        action=scale.low + (scale.high - scale.low) * torch.rand(n, *scale.low.shape, generator=rng),
        reward=torch.randn(n, generator=rng),
        discount=0.9 * (torch.rand(n, generator=rng) < 0.7).float(),
        next_obs=torch.randn(n, 3, generator=rng),
        **extra,
    )
    return Batch(data, noise=agent.noise("loss", n, rng))


def one_network(stack: StackedMLP, k: int, x: Tensor) -> Tensor:
    """Network k of a stack, written out."""
    last = len(stack.weights) - 1
    for i, (weight, bias) in enumerate(zip(stack.weights, stack.biases, strict=True)):
        x = x @ weight[k] + bias[k, 0]
        x = x.clamp(min=0) if i < last else x
    return x


# --- actions


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_minus_one_and_one_are_the_bounds_of_any_box(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(-5, 5, shape).astype(np.float32)
    space = spaces.Box(low, low + rng.uniform(0.1, 9, shape).astype(np.float32))
    scale = ActionScale("sac", space)
    size = int(np.prod(shape))
    ends = scale.to_env(torch.stack((-torch.ones(size), torch.ones(size), torch.zeros(size))))
    torch.testing.assert_close(ends[0], torch.as_tensor(space.low))
    torch.testing.assert_close(ends[1], torch.as_tensor(space.high))
    torch.testing.assert_close(ends[2], torch.as_tensor((space.low + space.high) / 2))
    a = torch.rand(50, size) * 2 - 1
    torch.testing.assert_close(scale.from_env(scale.to_env(a)), a, atol=1e-5, rtol=1e-4)


@settings(max_examples=100, deadline=None)
@given(low=st.floats(-1e4, 1e4, width=32), width=st.floats(0.125, 1e4, width=32), a=st.floats(-1, 1, width=32))
def test_no_rounding_leaves_the_box(low: float, width: float, a: float) -> None:
    space = spaces.Box(np.float32(low), np.float32(low) + np.float32(width), (1,))
    action = ActionScale("sac", space).to_env(torch.tensor([[a], [-1.0], [1.0]]))
    assert all(space.contains(x) for x in action.numpy())


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (2,)),
        spaces.Box(np.array([0, -np.inf], np.float32), 1),
        spaces.Box(0, 5, (2,), np.int32),
        spaces.Box(np.array([0, 1], np.float32), np.array([1, 1], np.float32)),
        spaces.Discrete(3),
    ],
    ids=str,
)
def test_a_space_it_cannot_serve_gets_one_sentence_naming_both(name: str, space: Any) -> None:
    with pytest.raises(UserError) as error:
        make(name, space)
    assert str(error.value) == f"agent '{name}' cannot serve action space {space}; expected a bounded Box of floats"


@pytest.mark.parametrize("name", AGENTS)
def test_exploration_is_the_noise_and_evaluation_has_none(name: str) -> None:
    agent = make(name)
    obs, knobs = torch.randn(2000, 3), {"noise": torch.tensor(0.1)}
    one = agent.act(obs, (), knobs, agent.noise("act", 2000, torch.Generator().manual_seed(1))).action
    other = agent.act(obs, (), knobs, agent.noise("act", 2000, torch.Generator().manual_seed(2))).action
    mean = agent.act(obs, (), {}, {}, explore=False).action
    zeros = {"explore": torch.zeros(2000, 2)}
    torch.testing.assert_close(agent.act(obs, (), knobs, zeros).action, mean)
    assert (one != other).float().mean() > 0.9
    assert torch.equal(mean, agent.act(obs, (), {}, {}, explore=False).action)
    assert all(BOX.contains(x) for x in one.detach().numpy())
    if name != "sac":  # deviation 0.1 of a half-width: 0.2 and 0.025, but where the Box's edge cuts it off
        torch.testing.assert_close((one - mean).std(0), torch.tensor([0.2, 0.025]), rtol=0.05, atol=0)


# --- the squashed Gaussian


def test_log_density_is_that_of_a_transformed_distribution() -> None:
    rng = torch.Generator().manual_seed(0)
    mean, log_std, normal = torch.randn(3, 200, 2, generator=rng, dtype=torch.float64)
    a, log_prob = squashed_gaussian.sample(mean, log_std, normal)
    reference = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform(cache_size=1)])
    near = (mean + log_std.exp() * normal).abs().amax(-1) < 6  # further out atanh itself is inexact
    assert near.sum() > 150
    torch.testing.assert_close(reference.log_prob(a).sum(-1)[near], log_prob[near])


@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.5), (-1.5, 1.0)])
def test_the_density_integrates_to_one(mean: float, std: float) -> None:
    a = torch.linspace(-1, 1, 400_003, dtype=torch.float64)[1:-1, None]
    normal = (a.atanh() - mean) / std
    ones = torch.ones_like(a)
    again, log_prob = squashed_gaussian.sample(mean * ones, math.log(std) * ones, normal)
    torch.testing.assert_close(again, a)
    assert torch.trapezoid(log_prob.exp(), a[:, 0]).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("u", [-80.0, -12.0, 12.0, 80.0])
def test_far_out_the_log_density_is_finite_and_exact_in_single_precision(u: float) -> None:
    mean = torch.full((1, 1), u, requires_grad=True)
    _, log_prob = squashed_gaussian.sample(mean, torch.zeros(1, 1), torch.zeros(1, 1))
    # 1 - tanh(u)^2 = 4 exp(-2 |u|) but for a factor 1 + O(exp(-2 |u|))
    assert log_prob.item() == pytest.approx(-0.5 * math.log(2 * math.pi) - math.log(4) + 2 * abs(u), rel=1e-6)
    log_prob.backward()
    assert mean.grad is not None
    assert mean.grad.item() == pytest.approx(math.copysign(2, u), rel=1e-5)


# --- networks


def test_stacked_networks_are_separate_networks() -> None:
    torch.manual_seed(0)
    stack, x = StackedMLP(2, (5, 7, 4, 3)), torch.randn(6, 5)
    for k in range(2):
        torch.testing.assert_close(stack(x)[k], one_network(stack, k, x))
    torch.testing.assert_close(stack(x, 1), stack(x)[:1])
    assert stack(x).shape == (2, 6, 3)
    assert not torch.equal(stack(x)[0], stack(x)[1]), "each has its own start"


def test_they_start_like_torchs_linear_layers() -> None:
    torch.manual_seed(0)
    stack, linear = StackedMLP(2, (100, 400)), nn.Linear(100, 400)
    for ours, theirs in ((stack.weights[0], linear.weight), (stack.biases[0], linear.bias)):
        assert ours.abs().max() <= 0.1
        assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.1)


@pytest.mark.parametrize("name", AGENTS)
def test_any_space_a_network_reads_is_served(name: str) -> None:
    obs_space = spaces.Dict({"goal": spaces.Discrete(3), "at": spaces.Box(-1, 1, (2,))})
    obs = {"goal": torch.tensor([0, 2]), "at": torch.zeros(2, 2)}
    agent = make(name, obs_space=obs_space, normalize_obs=True)
    assert agent.act(obs, (), {}, {}, explore=False).action.shape == (2, 2)
    image = spaces.Box(0, 255, (40, 40, 3), np.uint8)
    pixels = make(name, obs_space=image, network={"name": "nature_cnn"})
    action = pixels.act(torch.zeros(2, 40, 40, 3, dtype=torch.uint8), (), {}, {}, explore=False).action
    assert action.shape == (2, 2)


# --- phases and groups


def actor_only(agent: ContinuousAgent) -> Callable[[int], Any]:
    return lambda updates: [("actor", agent.actor_loss)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", AGENTS)
def test_the_actors_gradient_never_reaches_the_critics(name: str) -> None:
    agent = make(name)
    optim, clock = Optim(agent, OptimConfig()), Clock(100, 100)
    optim.update(agent, random_batch(agent), clock)  # every optimiser has moments now
    before = {n: x.clone() for n, x in agent.state_dict().items()}
    moments = {g: {k: v.clone() for k, v in optim.groups[g].state_dict()["optimizer"].items()} for g in optim.groups}
    agent.phases = actor_only(agent)  # type: ignore[method-assign]
    optim.update(agent, random_batch(agent), clock)
    for n, x in agent.state_dict().items():
        assert torch.equal(x, before[n]) != n.startswith("actor."), n
    for group, then in moments.items():
        if group != "actor":
            state = optim.groups[group].state_dict()
            assert first_difference(state["optimizer"], then) is None
            assert not state["grad"].any(), f"the actor's phase left a gradient with {group}"


@pytest.mark.parametrize("name", AGENTS)
def test_each_phase_moves_its_own_group_and_no_other(name: str) -> None:
    agent = make(name)
    for group, function in agent.phases(1):
        for parameters in agent.groups().values():
            for p in parameters:
                p.grad = None
        function(random_batch(agent)).total.backward(inputs=agent.groups()[group])
        assert all(p.grad is not None and p.grad.any() for p in agent.groups()[group][-2:])
        others = [p for name, ps in agent.groups().items() if name != group for p in ps]
        assert all(p.grad is None for p in others)
    owned = {id(p) for ps in agent.groups().values() for p in ps}
    assert owned == {id(p) for p in agent.parameters() if p.requires_grad}, "targets belong to no group"


@pytest.mark.parametrize("name", AGENTS)
def test_importance_weights_multiply_the_critics_loss_and_priorities_reach_the_source(name: str) -> None:
    agent = make(name)
    plain = random_batch(agent)
    weight = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 0.25])
    out = agent.loss(plain._replace(data=plain.data._replace(weight=weight)))
    items = [agent.loss(one_item(plain, i)) for i in range(6)]
    expected = sum(w * item.total.item() for w, item in zip(weight.tolist(), items, strict=True))
    assert out.total.item() == pytest.approx(expected, rel=1e-5)
    assert out.priority is not None
    torch.testing.assert_close(out.priority, torch.cat([i.priority for i in items if i.priority is not None]))
    updated, _ = Optim(agent, OptimConfig()).update(agent, plain, Clock(100, 100))
    assert updated.priority is not None, "the last phase has none, the critics' must not be lost"
    torch.testing.assert_close(updated.priority, out.priority)


def one_item(batch: Batch, i: int) -> Batch:
    data = Transition(*(x[i : i + 1] if isinstance(x, Tensor) else x for x in batch.data))
    return Batch(data, noise={k: v[i : i + 1] for k, v in batch.noise.items()})


@pytest.mark.parametrize("name", AGENTS)
def test_the_log_names_every_group_at_every_update(name: str) -> None:
    agent = make(name)
    optim = Optim(agent, OptimConfig())
    clock, names = Clock(100, 100), set()
    for clock.updates in range(4):
        out, _ = optim.update(agent, random_batch(agent), clock)
        assert {"loss/critic", "grad_norm/critic", "q_value", "target_q"} <= set(out.metrics)
        names |= set(out.metrics)
    more = {"loss/temperature", "grad_norm/temperature", "temperature", "entropy"} if name == "sac" else set()
    wanted = {"loss/critic", "loss/actor", "grad_norm/critic", "grad_norm/actor", "q_value", "target_q"}
    assert names == wanted | more


@pytest.mark.parametrize("name", AGENTS)
def test_observations_are_normalised_wherever_they_are_read(name: str) -> None:
    plain, normalised = make(name), make(name, normalize_obs=True)
    rng = torch.Generator().manual_seed(3)
    seen = 5 + 3 * torch.randn(1000, 3, generator=rng)
    normalised.observe(seen)
    plain.observe(seen)
    mean, deviation = seen.mean(0), seen.std(0, correction=0)
    batch = random_batch(plain)
    scaled = batch.data._replace(obs=mean + deviation * batch.data.obs, next_obs=mean + deviation * batch.data.next_obs)
    for (_, ours), (_, theirs) in zip(plain.phases(1), normalised.phases(1), strict=True):
        torch.testing.assert_close(theirs(batch._replace(data=scaled)).total, ours(batch).total, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        normalised.act(scaled.obs, (), {}, {}, explore=False).action,
        plain.act(batch.data.obs, (), {}, {}, explore=False).action,
        rtol=1e-4,
        atol=1e-4,
    )


# --- learning


class OneEachStep(BatchedEnv):
    """One state, a Box of actions, reward 1 at every step, a time limit of 10 steps and no terminal state."""

    num_uniforms = 1

    def __init__(self, num_envs: int, device: str = "cpu", split: Any = "train", autoreset: Any = "same_step") -> None:
        obs, action = spaces.Box(0, 1, (1,)), spaces.Box(-3, 1, (1,))
        super().__init__(num_envs, device, split, autoreset, obs_space=obs, action_space=action, max_episode_steps=10)

    def initial(self, u: Tensor) -> Tensor:
        return torch.ones_like(u)

    def dynamics(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = len(state)
        return state, torch.ones(n), torch.zeros(n, dtype=torch.bool)

    def observe(self, state: Tensor) -> Tensor:
        return state.float()


@pytest.mark.parametrize(("name", "n_step"), [("sac", 1), ("td3", 1), ("td3", 3), ("ddpg", 1)])
def test_the_value_of_reward_one_under_a_time_limit_is_that_without_it(name: str, n_step: int) -> None:
    if "OneEachStepBox" not in registry.names("envs"):
        registry.register("envs", "OneEachStepBox", OneEachStep)
    raw: dict[str, Any] = {
        "env": {"id": "OneEachStepBox", "num_envs": 4},
        "agent": {"name": name, "gamma": 0.9, "n_step": n_step, "tau": 0.2, "hidden": [16]},
        "source": {"learning_starts": 100, "batch_size": 32, "updates_per_frame": 0.25},
        "optim": {"lr": 0.003},
        "budget": {"frames": 4000},
    }
    if name == "sac":  # without the entropy's share of the value
        raw["agent"]["temperature"] = 1e-6
        raw["optim"]["groups"] = {"temperature": {"lr": 1e-9}}
    trainer = build.trainer(configs.validate(raw))
    trainer.fit()
    critic: Any = trainer.agent.critic
    q = critic(torch.ones(3, 1), torch.tensor([[-1.0], [0.0], [1.0]]))
    assert q.tolist() == [pytest.approx([10] * 3, abs=0.3)] * len(q), "5.3 or 6.5: truncation treated as termination"


QUICK = {
    "env.num_envs": 2,
    "source.learning_starts": 32,
    "source.batch_size": 32,
    "source.capacity": 1000,
    "agent.hidden": [32, 32],
}


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("pendulum_sac", {}),
        ("pendulum_sac", {"agent.normalize_obs": True, "agent.n_step": 3}),
        ("pendulum_td3", {}),
        ("pendulum_ddpg", {"agent.normalize_obs": True}),
    ],
)
def test_the_suite_of_agents(recipe: str, options: dict[str, Any]) -> None:
    raw = configs.override(configs.read(recipe), {**QUICK, **options})
    check_agent(raw, learns={"optim.lr": 3e-3, "source.batch_size": 64})
