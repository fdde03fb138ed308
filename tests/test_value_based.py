"""The value-based family against slow references: targets, masks, Double, weights, Munchausen, observations, values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gymnasium import spaces
from test_dqn import OneEachStep
from torch import Tensor

from rlcore import build, plain_yaml, registry
from rlcore import config as configs
from rlcore.agent import Agent
from rlcore.errors import UserError
from rlcore.losses import kl_divergence, midpoints, scaled_log_policy, soft_value
from rlcore.testing import check_agent
from rlcore.types import Batch, Spec, Transition

SPEC = Spec(spaces.Box(-5, 5, (3,)), spaces.Discrete(4))
B = 6
FAMILY: dict[str, dict[str, Any]] = {
    "dqn": {"name": "dqn"},
    "munchausen": {"name": "dqn", "munchausen": True, "munchausen_temperature": 0.001},
    "c51": {"name": "c51", "v_min": 0, "v_max": 20},
    "qr_dqn": {"name": "qr_dqn", "quantiles": 5},
    "iqn": {"name": "iqn", "samples": 3, "target_samples": 4, "policy_samples": 5},
    "rainbow": {"name": "rainbow", "v_min": 0, "v_max": 20},
}
MAXIMISING = [name for name in FAMILY if name != "munchausen"]


def make(options: dict[str, Any], spec: Spec = SPEC, seed: int = 0) -> Agent:
    raw = {"network": {"name": "mlp", "kwargs": {"hidden": [8]}}, **options}
    torch.manual_seed(seed)
    agent = registry.find("agents", raw["name"])(configs.agent_config(raw["name"])(**raw), spec)
    for p in agent.parameters():
        p.data = torch.randn_like(p)  # online and target apart, values large
    return agent


def make_batch(agent: Agent, seed: int = 1, mask: bool = True, weight: bool = True) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    masks = torch.rand(2, B, 4, generator=rng) < 0.5
    masks[:, torch.arange(B), torch.randint(4, (B,), generator=rng)] = True  # one at least is allowed
    masks[1, 0] = False  # but in a terminal state
    discount = torch.full((B,), 0.9)
    discount[0] = 0.0
    data = Transition(
        obs=torch.randn(B, 3, generator=rng),
        action=masks[0].float().argmax(1),
        reward=torch.randn(B, generator=rng),
        discount=discount,
        next_obs=torch.randn(B, 3, generator=rng),
        extras={"action_mask": masks[0], "next_action_mask": masks[1]} if mask else {},
        weight=torch.rand(B, generator=rng) if weight else None,
    )
    return Batch(data, {}, agent.noise("loss", B, rng))


# Slow references: one item at a time, in the words of the papers


def best(values: list[float], mask: Tensor | None) -> int:
    allowed = [a for a in range(len(values)) if mask is None or bool(mask[a])]
    return max(allowed, key=lambda a: values[a]) if allowed else 0


def rows(network: Any, agent: Any, obs: Tensor, noise: dict[str, Tensor], who: str, taus: Tensor | None = None) -> Any:
    """Return the outputs of one item: values (A,), probabilities or quantiles (A, Z), by fractions ``taus`` for IQN."""
    eps = noise.get(who)
    if agent.config.name == "iqn":
        return network(obs, agent.tau if taus is None else taus, eps)[0].T
    out = network(obs, eps)[0]
    return out.softmax(-1) if hasattr(agent, "support") else out


def mean(agent: Any, out: Tensor) -> list[float]:
    if hasattr(agent, "support"):
        return [sum(float(p * z) for p, z in zip(row, agent.support, strict=True)) for row in out]
    return out.tolist() if out.dim() == 1 else [float(sum(row)) / len(row) for row in out]


def slow_item(agent: Any, t: Transition, noise: dict[str, Tensor]) -> tuple[float, float]:
    """Return (loss, priority) of a batch of one, for the agents that maximise over next actions."""
    mask = t.extras["next_action_mask"][0] if t.extras else None
    chooser, who = (agent.online, "selector") if agent.config.double else (agent.target, "target")
    choice = best(mean(agent, rows(chooser, agent, t.next_obs, noise, who)), mask)
    ahead = rows(agent.target, agent, t.next_obs, noise, "target", noise.get("target_tau"))[choice]
    own = rows(agent.online, agent, t.obs, noise, "online", noise.get("tau"))[int(t.action)]
    r, d = float(t.reward), float(t.discount)
    if agent.config.name == "dqn":
        error = r + d * float(ahead) - float(own)
        return (0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5), abs(error)
    if hasattr(agent, "support"):
        z = agent.support.tolist()
        spacing, target = z[1] - z[0], [0.0] * len(z)
        for p, atom in zip(ahead.tolist(), z, strict=True):
            b = (min(max(r + d * atom, z[0]), z[-1]) - z[0]) / spacing
            low = min(int(b), len(z) - 2)
            target[low] += p * (low + 1 - b)
            target[low + 1] += p * (b - low)
        loss = sum(m * math.log(m / float(p)) for m, p in zip(target, own, strict=True) if m > 0)
        return loss, loss
    tau = noise["tau"][0] if "tau" in noise else agent.tau
    ys, loss = [r + d * float(y) for y in ahead], 0.0
    for theta, fraction in zip(own.tolist(), tau.tolist(), strict=True):
        for y in ys:
            u = y - theta
            weight = abs(fraction - (1.0 if u < 0 else 0.0))
            loss += weight * (0.5 * u * u if abs(u) <= 1 else abs(u) - 0.5) / len(ys)
    return loss, abs(sum(ys) / len(ys) - float(own.mean()))


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("name", MAXIMISING)
def test_loss_and_priority_are_the_slow_reference(name: str, noisy: bool, double: bool, mask: bool) -> None:
    agent = make({**FAMILY[name], "double": double, "noisy": noisy, "dueling": noisy})
    batch = make_batch(agent, mask=mask)
    t: Transition = batch.data
    out, expected, total = agent.loss(batch), [], 0.0
    for i in range(B):
        extras = {k: v[i : i + 1] for k, v in t.extras.items()}
        one = Transition(*(x[i : i + 1] for x in t[:5]), extras=extras)  # type: ignore[arg-type, misc]
        with torch.no_grad():
            loss, priority = slow_item(agent, one, {k: v[i : i + 1] for k, v in batch.noise.items()})
        total += float(t.weight[i]) * loss
        expected.append(priority)
    assert float(out.total.detach()) == pytest.approx(total, rel=1e-3, abs=1e-4)
    assert out.priority is not None and out.priority.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_munchausen_by_the_slow_reference() -> None:
    agent = make({"name": "dqn", "munchausen": True, "loss": "mse"})
    alpha, temperature, clip = 0.9, 0.03, -1.0
    for seed in range(3):
        batch = make_batch(agent, seed)
        t: Transition = batch.data
        with torch.no_grad():
            q, now, ahead = agent.online(t.obs), agent.target(t.obs).double(), agent.target(t.next_obs).double()
        total = 0.0
        for i in range(B):

            def policy(values: Tensor, mask: Tensor) -> dict[int, float]:
                allowed = [a for a in range(4) if mask[a]]
                top = max((float(values[a]) for a in allowed), default=0.0)
                weights = {a: math.exp((float(values[a]) - top) / temperature) for a in allowed}
                return {a: w / sum(weights.values()) for a, w in weights.items()}

            a = int(t.action[i])
            chance = policy(now[i], t.extras["action_mask"][i])[a]
            bonus = max(clip, temperature * math.log(chance)) if chance > 0 else clip
            soft = 0.0
            for b, p in policy(ahead[i], t.extras["next_action_mask"][i]).items():
                soft += p * (float(ahead[i, b]) - temperature * math.log(p)) if p > 0 else 0.0
            y = float(t.reward[i]) + alpha * bonus + float(t.discount[i]) * soft
            total += 0.5 * float(t.weight[i]) * (y - float(q[i, a])) ** 2
        assert float(agent.loss(batch).total.detach()) == pytest.approx(total, rel=1e-4)


def test_soft_value_and_log_policy_by_hand() -> None:
    q = torch.tensor([[0.0, 2 * math.log(3.0), 50.0], [7.0, 7.0, 7.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    soft = soft_value(q, 2.0, mask)
    assert soft[0].item() == pytest.approx(2 * math.log(4))
    assert torch.isfinite(soft).all(), "a terminal state's discount of 0 must make 0 of it"
    log_policy = scaled_log_policy(q[:1], 2.0, mask[:1])[0]
    assert log_policy[:2].tolist() == pytest.approx([2 * math.log(1 / 4), 2 * math.log(3 / 4)])
    assert soft_value(q, 1e-3)[0].item() == pytest.approx(50), "the maximum, as the temperature tends to 0"


def test_kl_divergence_and_midpoints_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], requires_grad=True)
    target = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    out = kl_divergence(logits, target)
    assert out.tolist() == pytest.approx([0.0, math.log(2.0)], abs=1e-6)
    (gradient,) = torch.autograd.grad(out.sum(), logits)
    torch.testing.assert_close(gradient, logits.softmax(1) - target, msg="that of the cross-entropy")
    assert midpoints(4).tolist() == [0.125, 0.375, 0.625, 0.875]


@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize("name", FAMILY)
def test_only_allowed_actions_are_chosen(name: str, explore: bool) -> None:
    agent = make({**FAMILY[name], "epsilon": 0.5})
    obs, mask = torch.randn(300, 3), make_batch(agent).data.extras["action_mask"][torch.arange(300) % B]
    noise = agent.noise("act", 300, torch.Generator().manual_seed(0))
    knobs = {"epsilon": torch.tensor(0.5)}
    free = agent.act(obs, (), knobs, noise, None, explore).action
    assert not mask[torch.arange(300), free].all(), "the mask makes a difference"
    action = agent.act(obs, (), knobs, noise, mask, explore).action
    assert mask[torch.arange(300), action].all()


@pytest.mark.parametrize("name", FAMILY)
def test_observations_are_scaled_alike_wherever_a_network_reads_them(name: str) -> None:
    plain, agent = (make({**FAMILY[name], "normalize_obs": scaled}) for scaled in (False, True))
    agent.observe(torch.randn(500, 3) * torch.tensor([1.0, 10.0, 0.1]) + 5)
    agent.online.load_state_dict(plain.online.state_dict())
    agent.target.load_state_dict(plain.target.state_dict())
    batch = make_batch(agent)
    t: Transition = batch.data
    scaled = batch._replace(data=t._replace(obs=agent.normalizer(t.obs), next_obs=agent.normalizer(t.next_obs)))
    assert not torch.allclose(scaled.data.obs, t.obs)
    torch.testing.assert_close(agent.loss(batch).total, plain.loss(scaled).total)
    q = agent.act(t.obs, (), {}, {}, explore=False).extras["q"]
    torch.testing.assert_close(q, plain.act(scaled.data.obs, (), {}, {}, explore=False).extras["q"])


def test_rainbow_has_all_its_parts_and_each_can_be_switched_off() -> None:
    config = configs.agent_config("rainbow")()
    assert (config.double, config.dueling, config.noisy, config.n_step) == (True, True, True, 3)
    without = configs.agent_config("rainbow")(noisy=False, n_step=1, double=False, dueling=False)
    assert (without.double, without.dueling, without.noisy, without.n_step) == (False, False, False, 1)


@pytest.mark.parametrize("double", [False, True])
def test_the_target_network_of_iqn_sees_the_fractions_that_choose_only_where_it_chooses(double: bool) -> None:
    agent, seen = make({**FAMILY["iqn"], "double": double}), []
    agent.target.register_forward_pre_hook(lambda _, args: seen.append(args[1].shape[-1]))
    agent.loss(make_batch(agent))
    assert seen == [4 if double else 4 + 5]


def test_the_embedding_of_quantile_fractions_by_the_published_equation() -> None:
    """Dabney et al. 2018b, equation 4: phi_j(tau) = relu(sum_{i=0}^{n-1} cos(pi i tau) w_ij + b_j)."""
    network: Any = make({**FAMILY["iqn"], "cosines": 5}).online
    obs, tau = torch.randn(1, 3), torch.tensor([[0.0, 0.3, 0.9]])
    weight, bias = network.embedding.weight.tolist(), network.embedding.bias.tolist()
    out, psi = network(obs, tau)[0], network.features(obs)[0]
    for k, fraction in enumerate(tau[0].tolist()):
        cosines = [math.cos(math.pi * i * fraction) for i in range(5)]
        sums = [sum(c * w for c, w in zip(cosines, row, strict=True)) for row in weight]
        phi = torch.tensor([max(0.0, x + b) for x, b in zip(sums, bias, strict=True)])
        torch.testing.assert_close(out[k], network.advantage(psi * phi))


def epsilons(raw: dict[str, Any]) -> tuple[float, Any]:
    """Return the chance of a random action at the start and at the end of a run."""
    agent = build.agent(configs.validate(raw), SPEC)
    schedule = agent.schedules()["epsilon"]
    return schedule(0.0), pytest.approx(schedule(1.0))


def test_coins_explore_where_noise_does_not_unless_they_are_set() -> None:
    for name in ("rainbow", "dqn"):
        # A run folder's settings, complete as they are, taken up with noise switched.
        kept = plain_yaml.parse(configs.dump(configs.validate({"agent": {"name": name}})), "config.yaml")
        on, off = (configs.override(kept, {"agent.noisy": value}) for value in (True, False))
        assert epsilons(on) == (0.0, 0.0)
        assert epsilons(off) == (1.0, 0.05)
        assert epsilons(configs.override(on, {"agent.epsilon.end": 0.1})) == (1.0, 0.1)
        assert epsilons(configs.override(on, {"agent.epsilon": 0.1})) == (0.1, 0.1)
        assert epsilons(configs.override(on, {"agent.epsilon": {"kind": "constant", "start": 0.3}})) == (0.3, 0.3)
        again = plain_yaml.parse(configs.dump(configs.validate(configs.override(on, {"agent.epsilon": 0.1}))), "x")
        assert epsilons(again) == (0.1, 0.1)
        assert epsilons(configs.override(again, {"agent.epsilon": None})) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["dqn", "c51", "qr_dqn", "iqn", "rainbow"])
def test_what_it_cannot_serve_gets_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match=rf"agent '{name}' cannot serve action space Box.*; expected Discrete"):
        make({"name": name}, SPEC._replace(action_space=spaces.Box(-1, 1, (2,))))
    with pytest.raises(UserError, match=rf"agent '{name}' cannot use network 'gru', .*; expected .* agent.name: r2d2"):
        make({"name": name, "network": {"name": "gru"}})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "c51", "v_min": 1.0, "v_max": 1.0}, "expected v_min below v_max"),
        ({"name": "dqn", "munchausen": True, "n_step": 3}, "expected n_step 1 with munchausen"),
        ({"name": "dqn", "munchausen": True, "double": True}, "expected double false with munchausen"),
    ],
)
def test_settings_that_contradict_each_other(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        configs.validate({"agent": options})


@pytest.mark.parametrize("name", FAMILY)
def test_the_value_of_reward_one_under_a_time_limit_is_that_without_it(name: str) -> None:
    if "OneEachStep" not in registry.names("envs"):
        registry.register("envs", "OneEachStep", OneEachStep)
    raw: dict[str, Any] = {
        "env": {"id": "OneEachStep", "num_envs": 4},
        "agent": {"gamma": 0.9, "target": "none", **FAMILY[name]},
        "source": {"learning_starts": 100, "batch_size": 16, "updates_per_frame": 0.25, "frames_per_iteration": 16},
        "optim": {"lr": 0.03, "schedule": {"kind": "linear", "start": 1.0, "end": 0.0}},
        "budget": {"frames": 4000},
    }
    # A product with the one constant feature may die before it learns; several are safe.
    raw["agent"]["network"] = {"name": "mlp", "kwargs": {"hidden": [16] if name == "iqn" else []}}
    trainer = build.trainer(configs.validate(raw))
    trainer.fit()
    q = trainer.agent.act(torch.ones(1, 1), (), {}, {}, explore=False).extras["q"]
    assert q.max().item() == pytest.approx(10, abs=0.2), "5.3 or 6.5 would show truncation treated as termination"


SMALL = {"batch_size": 16, "learning_starts": 32, "updates_per_frame": 0.5}
RANGE = {"v_min": 0, "v_max": 2, "atoms": 11}
CONFORMING: dict[str, dict[str, Any]] = {
    "noisy-dueling-double": {"name": "dqn", "noisy": True, "dueling": True, "double": True, "head_hidden": 8},
    "munchausen": {"name": "dqn", "munchausen": True},
    "normalized": {"name": "dqn", "normalize_obs": True},
    "c51": {"name": "c51", **RANGE},
    "qr_dqn": {"name": "qr_dqn", "quantiles": 7},
    "iqn": {"name": "iqn", "samples": 4, "target_samples": 4, "policy_samples": 8, "cosines": 8},
    "rainbow": {"name": "rainbow", **RANGE},
}


@pytest.mark.parametrize("name", CONFORMING)
def test_agent_keeps_the_contract(name: str) -> None:
    check_agent({"agent": CONFORMING[name], "source": SMALL})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["c51", "qr_dqn", "iqn", "rainbow"])
@pytest.mark.parametrize("env", ["Taxi-v4", "Blackjack-v1"])
def test_agent_keeps_the_contract_under_masks_and_other_spaces(name: str, env: str) -> None:
    check_agent({"env": {"id": env}, "agent": CONFORMING[name], "source": SMALL})
