"""Optim against plain torch: every optimiser, clipping, accumulation, phases that must not leak."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlcore.agent import Agent, Phase
from rlcore.clock import Clock
from rlcore.config import AgentConfig, OptimConfig
from rlcore.errors import UserError
from rlcore.optim import Optim
from rlcore.schedules import Schedule
from rlcore.types import Act, Batch, Example, Loss, Spec

SPEC = Spec(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (1,)))


class Regressor(Agent):
    """Two layers, squared error."""

    def __init__(self) -> None:
        super().__init__(AgentConfig(), SPEC)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))

    def act(self, obs: Any, state: Any, knobs: Any, noise: Any, mask: Any = None, explore: bool = True) -> Act:
        return Act(self.net(obs))

    def loss(self, batch: Batch) -> Loss:
        example: Example = batch.data
        return Loss((self.net(example.obs) - example.target).square().sum(), len(example.target))


class TwoGroups(Regressor):
    """A critic that learns at every update and an actor at every second; the actor's loss passes through the critic."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Linear(3, 3)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        return {"critic": list(self.net.parameters()), "actor": list(self.actor.parameters())}

    def phases(self, updates: int) -> list[Phase]:
        return [("critic", self.loss), ("actor", self.actor_loss)][: 2 if updates % 2 else 1]

    def actor_loss(self, batch: Batch) -> Loss:
        value = self.net(self.actor(batch.data.obs))
        return Loss(-value.sum(), len(value), {"value": value.mean().detach()})


def make(cls: type[Regressor] = Regressor) -> Regressor:
    torch.manual_seed(3)
    return cls()


def batch(n: int, seed: int) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    return Batch(Example(torch.randn(n, 3, generator=rng), torch.randn(n, 1, generator=rng)))


def double(batch: Batch) -> Batch:
    return Batch(Example(*(x.double() for x in batch.data)))


def weights(agent: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in agent.parameters()])


TORCH = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.05, weight_decay=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, weight_decay=0.01),
}


@pytest.mark.parametrize("clip", [0.0, 0.3])
@pytest.mark.parametrize("name", sorted(TORCH))
def test_flat_optimiser_equals_torch_layer_by_layer(name: Any, clip: float) -> None:
    # Double precision: RMSprop divides by gradients near 0, which blows rounding up.
    ours, plain = make().double(), make().double()
    momentum = 0.9 if name in ("sgd", "rmsprop") else 0.0
    optim = Optim(ours, OptimConfig(name=name, lr=0.05, momentum=momentum, weight_decay=0.01, decay="all", clip=clip))
    reference = TORCH[name](plain.parameters())
    for i in range(30):
        out, _ = optim.update(ours, double(batch(7, i)), Clock(1, 1))
        reference.zero_grad()
        loss = plain.loss(double(batch(7, i)))
        (loss.total / loss.count).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), clip or 1e9)
        reference.step()
        torch.testing.assert_close(out.metrics["grad_norm"], norm, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-5, atol=1e-6)


def test_accumulated_uneven_batches_equal_one_batch() -> None:
    whole = batch(10, 0).data
    ours, plain = make(), make()
    optim = Optim(ours, OptimConfig(name="sgd", lr=0.1, accumulate=3))
    before = weights(ours).clone()
    for part, (a, b) in enumerate([(0, 5), (5, 9), (9, 10)]):
        assert torch.equal(weights(ours), before), f"moved before the last of the parts, at {part}"
        _, stepped = optim.update(ours, Batch(Example(whole.obs[a:b], whole.target[a:b])), Clock(1, 1))
        assert stepped == (part == 2)
    Optim(plain, OptimConfig(name="sgd", lr=0.1)).update(plain, Batch(whole), Clock(1, 1))
    torch.testing.assert_close(weights(ours), weights(plain))


def test_a_phase_moves_its_own_group_only_and_an_idle_optimiser_not_at_all() -> None:
    agent = make(TwoGroups)
    assert isinstance(agent, TwoGroups)
    optim = Optim(agent, OptimConfig(lr=0.1))
    actor, critic = weights(agent.actor).clone(), weights(agent.net).clone()
    optim.update(agent, batch(4, 0), Clock(1, 1, updates=0))  # critic only
    assert torch.equal(weights(agent.actor), actor)
    assert not torch.equal(weights(agent.net), critic)

    alone = make(TwoGroups)  # the critic's path must be the same without the actor's phase
    other = Optim(alone, OptimConfig(lr=0.1))
    for i in range(4):
        optim_clock, other_clock = Clock(1, 1, updates=1), Clock(1, 1, updates=0)
        if i == 0:
            other.update(alone, batch(4, 0), other_clock)
        optim.update(agent, batch(4, i + 1), optim_clock)
        other.update(alone, batch(4, i + 1), other_clock)
    assert torch.equal(weights(agent.net), weights(alone.net))
    assert not torch.equal(weights(agent.actor), actor)


def test_adam_of_a_delayed_phase_does_not_drift_between_its_turns() -> None:
    agent = make(TwoGroups)
    assert isinstance(agent, TwoGroups)
    optim = Optim(agent, OptimConfig(lr=0.1))
    optim.update(agent, batch(4, 0), Clock(1, 1, updates=1))
    after = weights(agent.actor).clone()
    optim.update(agent, batch(4, 1), Clock(1, 1, updates=2))
    assert torch.equal(weights(agent.actor), after)


def test_groups_have_their_own_settings_and_unknown_ones_are_told() -> None:
    agent = make(TwoGroups)
    optim = Optim(agent, OptimConfig(lr=0.1, groups={"actor": {"lr": 0.01, "clip": 0.5}}))
    assert optim.lr("actor", Clock(1, 1)) == 0.01
    assert optim.lr("critic", Clock(1, 1)) == 0.1
    with pytest.raises(UserError, match=r"optim\.groups\.actr is not a parameter group .* did you mean 'actor'"):
        Optim(make(TwoGroups), OptimConfig(groups={"actr": {"lr": 1}}))
    with pytest.raises(UserError, match=r"optim\.groups\.actor\.lr: got -1, expected"):
        Optim(make(TwoGroups), OptimConfig(groups={"actor": {"lr": -1}}))


def test_learning_rate_follows_the_schedule() -> None:
    agent = make()
    optim = Optim(agent, OptimConfig(name="sgd", lr=0.1, schedule=Schedule(kind="linear", start=1.0, end=0.0)))
    before = weights(agent).clone()
    optim.update(agent, batch(4, 0), Clock(100, 100, frames=110, iterated=100))
    assert torch.equal(weights(agent), before), "a learning rate of 0 moves nothing"
    assert optim.lr("main", Clock(100, 100, frames=60, iterated=50)) == pytest.approx(0.05)
    assert optim.lr("main", Clock(100, 100, frames=100, iterated=90)) > 0, "the last iteration learns"


@pytest.mark.parametrize("name", sorted(TORCH))
def test_state_round_trip_continues_bit_for_bit_even_within_an_accumulation(name: Any) -> None:
    config = OptimConfig(name=name, lr=0.05, accumulate=2)
    one, two = make(), make()
    first, second = Optim(one, config), Optim(two, config)
    for i in range(5):  # stops in the middle of an accumulation
        first.update(one, batch(4, i), Clock(1, 1))
    two.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for i in range(5, 12):
        first.update(one, batch(4, i), Clock(1, 1))
        second.update(two, batch(4, i), Clock(1, 1))
    assert torch.equal(weights(one), weights(two))
