"""Noisy layers: the weights they stand for, whose noise is whose, and silence when nothing is to be explored."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.networks.encode import Flatten
from agents.networks.heads import QNetwork
from agents.networks.noisy import NoisyLinear, factorised
from rlcore import build, config, registry
from rlcore.agent import Agent
from rlcore.testing.agents import first_batch
from rlcore.types import Spec

SPEC = Spec(spaces.Box(-1, 1, (2,)), spaces.Discrete(3))
NOISY = [{"name": "dqn"}, {"name": "c51"}, {"name": "qr_dqn", "quantiles": 5}, {"name": "iqn"}, {"name": "rainbow"}]


def make(**options: Any) -> Agent:
    torch.manual_seed(0)
    chosen = config.agent_config(options["name"])(**{"noisy": True, "double": True, **options})
    return registry.find("agents", options["name"])(chosen, SPEC)


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_every_row_goes_through_the_weights_of_its_own_noise() -> None:
    torch.manual_seed(0)
    layer = NoisyLinear(3, 2)
    x, noise = torch.randn(4, 3), torch.randn(4, 5)
    for row in range(4):
        eps_in, eps_out = noise[row, :3], noise[row, 3:]
        weight = layer.weight + layer.sigma.weight * torch.outer(eps_out, eps_in)
        bias = layer.bias + layer.sigma.bias * eps_out
        torch.testing.assert_close(layer(x, noise)[row], weight @ x[row] + bias)


def test_layers_start_as_published() -> None:
    layer = NoisyLinear(16, 500)
    assert (layer.sigma.weight == 0.5 / 4).all() and (layer.sigma.bias == 0.5 / 4).all()
    assert layer.weight.abs().max() <= 1 / 4 and layer.bias.abs().max() <= 1 / 4
    assert layer.weight.std().item() == pytest.approx(1 / 4 / math.sqrt(3), rel=0.05), "uniform"


def test_factorised_noise_is_the_signed_root_of_a_normal() -> None:
    noise = factorised(4000, 5, rng())
    x = noise * noise.abs()  # normal again
    assert x.mean().abs() < 0.03 and (x.var() - 1).abs() < 0.05
    covariance = torch.corrcoef(noise.T)
    assert (covariance - torch.eye(5)).abs().max() < 0.06, "each number is drawn by itself"


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("hidden", [0, 4])
def test_each_layer_of_the_heads_gets_its_part_of_the_noise(dueling: bool, hidden: int) -> None:
    torch.manual_seed(0)
    net = QNetwork(Flatten(SPEC.obs_space), 3, outputs=2, dueling=dueling, hidden=hidden, noisy=True)
    layers = [m for m in net.modules() if isinstance(m, NoisyLinear)]
    assert net.noise_size == sum(m.in_features + m.out_features for m in layers)
    obs, noise = torch.randn(5, 2), torch.randn(5, net.noise_size)
    columns = noise.split([m.in_features + m.out_features for m in layers], dim=1)

    def stream(*pairs: tuple[NoisyLinear, Tensor]) -> Tensor:
        x = obs
        for i, (layer, part) in enumerate(pairs):
            x = layer(x, part) if i == len(pairs) - 1 else layer(x, part).relu()
        return x

    pairs, depth = list(zip(layers, columns, strict=True)), 2 if hidden else 1
    advantage = stream(*pairs[:depth]).view(5, 3, 2)
    expected = advantage
    if dueling:
        expected = stream(*pairs[depth:]).view(5, 1, 2) + advantage - advantage.mean(1, keepdim=True)
    torch.testing.assert_close(net(obs, noise), expected)


@pytest.mark.parametrize("options", NOISY, ids=lambda o: o["name"])
def test_each_environment_explores_by_its_own_noise_and_evaluation_is_silent(options: dict[str, Any]) -> None:
    agent = make(**options)
    obs = torch.ones(2000, 2)
    noise = agent.noise("act", 2000, rng())
    knobs = {"epsilon": torch.tensor(agent.schedules()["epsilon"](0.0))}
    assert knobs["epsilon"] == 0, "noise explores alone unless epsilon is set"
    action = agent.act(obs, (), knobs, noise).action
    assert len(action.unique()) > 1, "equal observations, different actions: different noise"
    one_noise = {name: x[:1].expand_as(x) for name, x in noise.items()}
    assert len(agent.act(obs, (), knobs, one_noise).action.unique()) == 1
    greedy = agent.act(obs, (), {}, {}, explore=False)
    assert torch.equal(greedy.action, agent.act(obs, (), {}, noise, explore=False).action)
    for layer in agent.modules():
        if isinstance(layer, NoisyLinear):
            nn.init.constant_(layer.sigma.weight, 99.0)
    assert torch.equal(greedy.extras["q"], agent.act(obs, (), {}, noise, explore=False).extras["q"])


@pytest.mark.parametrize("options", NOISY, ids=lambda o: o["name"])
def test_online_target_and_selector_are_resampled_separately_for_every_item(options: dict[str, Any]) -> None:
    agent = make(**options)
    noise = agent.noise("loss", 50, rng())
    drawn = torch.cat([noise[name] for name in ("online", "target", "selector")])  # (150, K)
    assert len(drawn.unique(dim=0)) == 150
    raw = {"agent": {"name": options["name"], "noisy": True, "double": True}, "source": {"learning_starts": 64}}
    trainer = build.trainer(config.validate(raw))
    batch, agent = first_batch(trainer), trainer.agent
    loss = float(agent.loss(batch).total.detach())
    for name in ("online", "target", "selector"):
        louder = batch._replace(noise={**batch.noise, name: 3 * batch.noise[name]})
        assert float(agent.loss(louder).total.detach()) != loss, f"the noise of {name} is not used"
    agent.loss(batch).total.backward()
    noisy = [m for m in agent.online.modules() if isinstance(m, NoisyLinear)]
    assert noisy and all(m.sigma.weight.grad is not None and m.sigma.weight.grad.any() for m in noisy)
