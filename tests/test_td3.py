"""TD3 and DDPG: targets item by item, smoothing and clipping, and a delay that leaves the waiting bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_continuous import make, one_network, random_batch
from torch import Tensor

from agents.ddpg import DDPG
from agents.td3 import TD3
from rlcore.clock import Clock
from rlcore.config import OptimConfig
from rlcore.optim import Optim
from rlcore.testing.agents import first_difference


def deterministic(name: str, **options: Any) -> Any:
    agent = make(name, **options)
    assert isinstance(agent, (DDPG, TD3))
    with torch.no_grad():
        for network in (agent.target_actor, agent.target_critic):
            for p in network.parameters():
                p.add_(torch.randn_like(p) * 0.2)  # so that it matters which network is asked
    return agent


def values(critic: Any, obs: Tensor, a: Tensor) -> list[Tensor]:
    networks = len(critic.layers.weights[0])
    return [one_network(critic.layers, k, torch.cat((obs, a)))[0] for k in range(networks)]


@pytest.mark.parametrize("name", ["td3", "ddpg"])
@pytest.mark.parametrize("seed", range(3))
def test_both_losses_item_by_item(name: str, seed: int) -> None:
    options = {"smoothing": 0.6, "smoothing_clip": 0.4} if name == "td3" else {}
    agent = deterministic(name, **options)
    batch = random_batch(agent, n=8, seed=seed)
    t = batch.data
    critic = actor = 0.0
    clipped, lower = 0, set()
    with torch.no_grad():
        # Both critics are worth the same on the whole, so that each is the lower one somewhere.
        q = agent.target_critic(t.next_obs, agent.next_action(t.next_obs, batch.noise))  # (K, B)
        agent.target_critic.layers.biases[-1].sub_(q[:, t.discount > 0].mean(1)[:, None, None])
        for i in range(8):
            a = one_network(agent.target_actor.layers, 0, t.next_obs[i]).tanh().tolist()
            if name == "td3":
                noise = [0.6 * x for x in batch.noise["smoothing"][i].tolist()]
                clipped += sum(abs(x) > 0.4 for x in noise)
                a = [max(-1.0, min(1.0, x + max(-0.4, min(0.4, n)))) for x, n in zip(a, noise, strict=True)]
            q_next = values(agent.target_critic, t.next_obs[i], torch.tensor(a))
            y = t.reward[i] + t.discount[i] * min(q_next)
            lower |= {q_next.index(min(q_next))} if t.discount[i] else set()
            taken = (t.action[i] - agent.scale.middle) / agent.scale.radius
            critic += sum(0.5 * (y - q) ** 2 for q in values(agent.critic, t.obs[i], taken))
            chosen = one_network(agent.actor.layers, 0, t.obs[i]).tanh()
            actor -= values(agent.critic, t.obs[i], chosen)[0]
    assert lower == ({0, 1} if name == "td3" else {0})
    assert clipped or name == "ddpg"
    assert agent.loss(batch).total.item() == pytest.approx(float(critic), rel=1e-4)
    assert agent.actor_loss(batch).total.item() == pytest.approx(float(actor), rel=1e-4, abs=1e-5)


def test_a_smoothed_action_stays_in_the_box() -> None:
    agent = deterministic("td3", smoothing=3.0, smoothing_clip=1.5)
    noise = {"smoothing": torch.randn(500, 2, generator=torch.Generator().manual_seed(0))}
    a = agent.next_action(torch.randn(500, 3), noise)
    assert a.abs().max() == 1
    assert a.min() == -1


def moving(agent: Any, optim: Optim) -> dict[str, Any]:
    """Copies of everything that may move, by what it belongs to."""

    def copies(tree: Any) -> Any:
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in tree.items()}

    parts = {n: copies(getattr(agent, n).state_dict()) for n in ("actor", "critic", "target_actor", "target_critic")}
    states = {g: group.state_dict() for g, group in optim.groups.items()}
    adam = {f"adam of {g}": copies(s["optimizer"]) | {"grad": s["grad"].clone()} for g, s in states.items()}
    return parts | adam


@pytest.mark.parametrize(("name", "delay"), [("td3", 3), ("td3", 2), ("ddpg", 1)])
def test_a_waiting_actor_its_optimiser_and_the_targets_do_not_move_by_a_bit(name: str, delay: int) -> None:
    agent = deterministic(name, **({"policy_delay": delay} if name == "td3" else {}))
    optim, clock = Optim(agent, OptimConfig(lr=0.01, weight_decay=0.1)), Clock(100, 100)
    patient = {"actor", "target_actor", "target_critic", "adam of actor"}
    for update in range(1, 3 * delay + 1):
        before = moving(agent, optim)
        optim.update(agent, random_batch(agent, seed=update), clock)
        clock.updates += 1
        agent.after_update(clock)
        after = moving(agent, optim)
        moved = {part for part in after if first_difference(before[part], after[part]) is not None}
        turn = update % delay == 0
        assert moved == ({*patient, "critic", "adam of critic"} if turn else {"critic", "adam of critic"}), update


def test_targets_move_by_tau_towards_the_online_networks() -> None:
    agent = deterministic("ddpg", tau=0.25)
    pairs = [(agent.target_actor, agent.actor), (agent.target_critic, agent.critic)]
    was = [[p.clone() for p in target.parameters()] for target, _ in pairs]
    agent.after_update(Clock(10, 10))
    for (target, online), old in zip(pairs, was, strict=True):
        for p, q, o in zip(target.parameters(), online.parameters(), old, strict=True):
            torch.testing.assert_close(p, 0.75 * o + 0.25 * q)
