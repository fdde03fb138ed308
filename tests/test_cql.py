"""Conservative Q-learning: its losses against slow, obvious references, and what they do."""

from __future__ import annotations

import torch
from test_offline import BOX, DISCRETE, TINY, batch
from torch.distributions import Normal

from agents.configs.offline import CQLConfig
from agents.cql import ContinuousCQL, DiscreteCQL


def test_discrete_conservative_loss_is_that_of_a_loop() -> None:
    agent = DiscreteCQL(CQLConfig(**TINY, alpha=0.7), DISCRETE)
    torch.nn.init.normal_(agent.target.layers.biases[-1])
    b = batch(DISCRETE, masks=True)
    t, total = b.data, torch.tensor(0.0)
    for i in range(16):
        q, after, target = (
            f(o[i : i + 1])[0, 0]
            for f, o in ((agent.online, t.obs), (agent.online, t.next_obs), (agent.target, t.next_obs))
        )
        allowed = [a for a in range(4) if t.extras["action_mask"][i, a]]
        then = [a for a in range(4) if t.extras["next_action_mask"][i, a]]
        best = max(then, key=lambda a, after=after: after[a].item())
        y = (t.reward[i] + t.discount[i] * target[best]).detach()
        chosen = q[t.action[i]]
        total = total + 0.5 * (y - chosen) ** 2 + 0.7 * (sum(q[a].exp() for a in allowed).log() - chosen)
    assert torch.allclose(agent.loss(b).total, total, rtol=1e-5)


def test_conservatism_lowers_the_values_of_actions_absent_from_the_data() -> None:
    gaps = {}
    for alpha in (0.0, 5.0):
        torch.manual_seed(0)
        agent = DiscreteCQL(CQLConfig(**TINY, alpha=alpha), DISCRETE)
        b = batch(DISCRETE, 64)
        b = b._replace(data=b.data._replace(action=torch.zeros(64, dtype=torch.int64), discount=torch.zeros(64)))
        optimizer = torch.optim.Adam(agent.online.parameters(), 0.01)
        for _ in range(200):
            optimizer.zero_grad()
            (agent.loss(b).total / 64).backward()
            optimizer.step()
        q = agent.online(b.data.obs)[0].mean(0)
        gaps[alpha] = (q[0] - q[1:].max()).item()
    assert gaps[5.0] > gaps[0.0] + 1


def test_continuous_conservative_loss_is_that_of_a_loop() -> None:
    agent = ContinuousCQL(CQLConfig(**TINY, alpha=0.7, samples=3), BOX)
    b = batch(BOX, 8, agent)
    plain = super(ContinuousCQL, agent).loss(b).total
    low, high = torch.tensor(BOX.action_space.low), torch.tensor(BOX.action_space.high)  # pyright: ignore
    expected = torch.tensor(0.0)
    for i in range(8):
        obs = b.data.obs[i : i + 1]
        scaled = 2 * (b.data.action[i] - low) / (high - low) - 1
        mean, log_std = agent.actor(obs)[0].chunk(2)
        policy = Normal(mean, log_std.clamp(-20, 2).exp())
        for k in range(2):
            terms = []
            for j in range(3):
                q = agent.critic(obs, b.noise["uniform"][i, j][None])[k, 0]
                terms.append(q.exp() * 2**2)  # divided by the uniform density of two actions in [-1, 1]
                u = policy.mean + policy.stddev * b.noise["normal"][i, j]
                density = policy.log_prob(u).sum() - (1 - u.tanh() ** 2).log().sum()
                terms.append(agent.critic(obs, u.tanh()[None])[k, 0].exp() / density.exp().detach())
            expected = expected + (sum(terms) / 6).log() - agent.critic(obs, scaled[None])[k, 0]
    assert torch.allclose(agent.loss(b).total, plain + 0.7 * expected, rtol=1e-4)


def test_the_sampled_integral_over_scaled_actions_is_their_volume_where_values_are_zero() -> None:
    agent = ContinuousCQL(CQLConfig(**TINY, samples=4000), BOX)
    for p in agent.critic.parameters():
        torch.nn.init.zeros_(p)
    b = batch(BOX, 4, agent)
    volume = agent._sampled(b.data.obs, b.noise["uniform"], b.noise["normal"]).logsumexp(-1).exp()
    assert torch.allclose(volume, torch.full((2, 4), 4.0), rtol=0.2)
