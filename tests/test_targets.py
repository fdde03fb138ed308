from __future__ import annotations

import pytest
import torch
from torch import nn

from rlcore import build
from rlcore import config as configs
from rlcore.targets import hard_update, polyak_update


def network(norm, seed):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4) if norm else nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        for x in (*net.parameters(), *net.buffers()):
            x.copy_(torch.randn(x.shape, generator=generator) * 10)
    return net


@pytest.mark.parametrize("norm", [True, False], ids=["with buffers", "without"])
@pytest.mark.parametrize("tau", [0.0, 0.005, 0.5, 1.0, None], ids=str)
def test_updates_equal_the_slow_reference(norm, tau):
    target, online = network(norm, 0), network(norm, 1)
    parameters = {name for name, _ in online.named_parameters()}
    expected = {}
    for name, theta in online.state_dict().items():
        share = tau if tau is not None and name in parameters else 1.0  # buffers are copied
        expected[name] = (1 - share) * target.state_dict()[name] + share * theta
    before = {name: x.clone() for name, x in online.state_dict().items()}
    own = list(target.parameters())
    if tau is None:
        hard_update(target, online)
    else:
        polyak_update(target, online, tau)
    for name, x in target.state_dict().items():
        torch.testing.assert_close(x, expected[name].to(x.dtype), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(x, before[name]) for name, x in online.state_dict().items())
    assert all(x is y and x.grad_fn is None for x, y in zip(own, target.parameters(), strict=True))  # in place
    assert not {x.data_ptr() for x in target.state_dict().values()} & {x.data_ptr() for x in online.parameters()}


def test_a_hard_update_and_tau_one_are_exact():
    for update in (hard_update, lambda target, online: polyak_update(target, online, 1.0)):
        target, online = network(True, 0), network(True, 1)
        update(target, online)
        assert all(torch.equal(x, online.state_dict()[name]) for name, x in target.state_dict().items())


@pytest.mark.parametrize("update", [hard_update, lambda target, online: polyak_update(target, online, 0.5)])
def test_buffers_that_a_change_of_type_replaced_are_followed(update):
    target, online = network(True, 0), network(True, 1)
    update(target, online)
    target.double()
    online.double()
    with torch.no_grad():
        for x in (*online.parameters(), *online.buffers()):
            x.mul_(3)
    before = [x.clone() for x in target.parameters()]
    update(target, online)
    assert all(torch.equal(x, y) for x, y in zip(target.buffers(), online.buffers(), strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(target.parameters(), before, strict=True))
    assert target[1].running_mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("env_id", "agent", "pairs"),
    [
        ("CartPole-v1", {"name": "dqn", "target": "polyak", "tau": 1.0}, [("target", "online")]),
        ("CartPole-v1", {"name": "dqn", "target": "hard", "target_every": 1}, [("target", "online")]),
        ("CartPole-v1", {"name": "r2d2", "target": "polyak", "tau": 1.0}, [("target", "online")]),
        ("Pendulum-v1", {"name": "sac", "tau": 1.0}, [("target_critic", "critic")]),
        ("Pendulum-v1", {"name": "td3", "tau": 1.0}, [("target_critic", "critic"), ("target_actor", "actor")]),
    ],
)
def test_targets_follow_what_the_update_just_done_has_made(env_id, agent, pairs):
    source = {"learning_starts": 400, "batch_size": 8, "frames_per_iteration": 8, "updates_per_frame": 0.125}
    trainer = build.trainer(configs.validate({"env": {"id": env_id}, "agent": agent, "source": source}))
    before = {name: x.clone() for name, x in trainer.agent.state_dict().items()}
    while trainer.clock.updates < 2:  # TD3's actor waits for the second
        trainer.iterate()
    for target, online in pairs:
        own = getattr(trainer.agent, online).state_dict()
        assert all(torch.equal(x, own[name]) for name, x in getattr(trainer.agent, target).state_dict().items())
        assert any(not torch.equal(x, before[f"{online}.{name}"]) for name, x in own.items()), "something was learnt"
