"""Options of Optim against slow references: segments, frozen parameters, penalties, factors, precision."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import test_resume
import torch
from test_optim import TORCH, Regressor, TwoGroups, batch, double, make, weights
from torch import Tensor, nn

from rlcore import build
from rlcore import config as configs
from rlcore.clock import Clock
from rlcore.config import OptimConfig
from rlcore.errors import UserError
from rlcore.optim import Optim
from rlcore.parameters import decays, factors
from rlcore.schedules import Schedule
from rlcore.testing.agents import iterate
from rlcore.types import Act, Batch, Example, Loss


class Stack(Regressor):
    """Embedding, three layers, a head; named as Transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            OrderedDict(embedding=nn.Linear(3, 4), layers=nn.ModuleList(nn.Linear(4, 4) for _ in range(3)))
        )
        self.net.head = nn.Linear(4, 1)

    def act(self, obs: Any, state: Any, knobs: Any, noise: Any, mask: Any = None, explore: bool = True) -> Act:
        return Act(self.predict(obs))

    def predict(self, x: Tensor) -> Tensor:
        net: Any = self.net
        x = net.embedding(x)
        for layer in net.layers:
            x = x + layer(x).tanh()
        return net.head(x)

    def loss(self, batch: Batch) -> Loss:
        error = self.predict(batch.data.obs) - batch.data.target
        return Loss(error.square().sum(), len(error))


# Factors on the learning rate with layer_decay 0.5 and scale {*.layers.0.*: 10, *.bias: 2}, by hand.
FACTORS = {
    "net.embedding.weight": 0.0625,
    "net.embedding.bias": 0.125,
    "net.layers.0.weight": 1.25,
    "net.layers.0.bias": 2.5,
    "net.layers.1.weight": 0.25,
    "net.layers.1.bias": 0.5,
    "net.layers.2.weight": 0.5,
    "net.layers.2.bias": 1.0,
    "net.head.weight": 1.0,
    "net.head.bias": 2.0,
}
SCALED: dict[str, Any] = {"scale": {"*.layers.0.*": 10.0, "*.bias": 2.0}, "layer_decay": 0.5}
PLAIN: dict[str, Any] = {  # torch's class, its keywords, ours
    "sgd": (torch.optim.SGD, {"momentum": 0.9}, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {"betas": (0.8, 0.95)}, {"betas": [0.8, 0.95]}),
    "adamw": (torch.optim.AdamW, {"betas": (0.8, 0.95), "eps": 1e-6}, {"betas": [0.8, 0.95], "eps": 1e-6}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.5}, {"momentum": 0.5}),
}


def test_factors_by_hand() -> None:
    names = [name for name, _ in make(Stack).named_parameters()]
    assert factors(names, SCALED["scale"], SCALED["layer_decay"]) == FACTORS
    assert set(factors(names, {}).values()) == {1.0}
    # Two stacks of different height, numbers with gaps, and one that is no layer's.
    names = ["embed", "encoder.layers.0.w", "encoder.layers.4.w", "encoder.norm", "decoder.layers.2.w", "players.1.w"]
    assert list(factors(names, {}, 0.5).values()) == [0.125, 0.25, 0.5, 1.0, 0.5, 1.0]


@pytest.mark.parametrize("clipping", [{}, {"clip": 0.3}, {"clip_value": 0.05}], ids=["free", "norm", "value"])
@pytest.mark.parametrize("decay", ["matrices", "all"])
@pytest.mark.parametrize("name", sorted(PLAIN))
def test_segments_equal_an_optimiser_with_every_parameter_by_itself(name: Any, decay: Any, clipping: Any) -> None:
    cls, theirs, own = PLAIN[name]
    ours, plain = make(Stack).double(), make(Stack).double()
    penalties: Any = {"weight_decay": 0.1, "l1": 0.003, "l2": 0.02, "decay": decay}
    schedule = Schedule(kind="linear", start=1.0, end=0.5)
    config = OptimConfig(name=name, lr=0.03, accumulate=2, schedule=schedule, **penalties, **SCALED, **clipping, **own)
    optim = Optim(ours, config)
    decayed = {n: decay == "all" or p.dim() == 2 for n, p in plain.named_parameters()}
    groups = [
        {"params": [p], "weight_decay": 0.1 if decayed[n] else 0.0, "lr": FACTORS[n]}
        for n, p in plain.named_parameters()
    ]
    reference = cls(groups, **theirs)
    for i in range(12):
        parts = [double(batch(7, 2 * i)), double(batch(4, 2 * i + 1))]
        clock = Clock(12, 12, iterated=i)
        moved = [optim.update(ours, part, clock) for part in parts]
        assert [stepped for _, stepped in moved] == [False, True]
        reference.zero_grad()
        acting = [p for n, p in plain.named_parameters() if decayed[n]]
        mean = (plain.loss(parts[0]).total + plain.loss(parts[1]).total) / 11
        penalty = 0.003 * sum(p.abs().sum() for p in acting) + 0.01 * sum(p.square().sum() for p in acting)
        (mean + penalty).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), clipping.get("clip", 1e9))
        nn.utils.clip_grad_value_(plain.parameters(), clipping.get("clip_value", 1e9))
        for group, factor in zip(reference.param_groups, FACTORS.values(), strict=True):
            group["lr"] = 0.03 * (1 - 0.5 * i / 12) * factor
        reference.step()
        torch.testing.assert_close(moved[1][0].metrics["grad_norm"], norm, rtol=1e-9, atol=1e-12)
    # Clipping by norm adds 1e-6 to the norm as torch does; the rest is rounding.
    for (n, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10, msg=n)


@pytest.mark.parametrize(
    ("options", "segments"),
    [
        ({}, 1),
        ({"decay": "all", "weight_decay": 0.1}, 1),
        ({"scale": {"*": 3.0}}, 1),
        ({"weight_decay": 0.1}, 2),
        ({"l2": 0.1, "scale": {"*.head.*": 3.0}}, 4),
        ({"layer_decay": 0.9}, 5),
    ],
)
def test_there_are_as_many_segments_as_differ(options: dict[str, Any], segments: int) -> None:
    agent = make(Stack)
    group = Optim(agent, OptimConfig(**options)).groups["main"]
    assert len(group.segments) == len(group.optimizer.param_groups) == segments
    assert {p.untyped_storage().data_ptr() for p in agent.parameters()} == {group.flat.untyped_storage().data_ptr()}


def test_biases_of_batched_networks_are_no_matrices() -> None:
    assert decays("critic.0.weight", nn.Parameter(torch.zeros(2, 3, 4)))
    assert not decays("critic.0.bias", nn.Parameter(torch.zeros(2, 1, 4)))
    assert not decays("norm.weight", nn.Parameter(torch.zeros(4)))


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_frozen_weights_and_their_moments_do_not_move_by_a_bit(name: Any) -> None:
    ours, plain = make(Stack).double(), make(Stack).double()
    freeze = ["net.embedding.*", "net.layers.[0-1].*", "*.head.bias"]
    own: Any = {**PLAIN[name][2], "weight_decay": 0.1, "decay": "all", "l1": 0.01}
    optim = Optim(ours, OptimConfig(name=name, lr=0.05, freeze=freeze, **own))
    learning = {"net.layers.2.weight", "net.layers.2.bias", "net.head.weight"}
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == learning
    before = {n: p.detach().clone() for n, p in ours.named_parameters()}
    alone = Optim(plain, OptimConfig(name=name, lr=0.05, scale=dict.fromkeys(freeze, 1e-300), **own))
    for i in range(5):
        optim.update(ours, double(batch(6, i)), Clock(1, 1))
        alone.update(plain, double(batch(6, i)), Clock(1, 1))
    for n, p in ours.named_parameters():
        assert torch.equal(p, before[n]) == (n not in learning), n
        assert p.grad is None or n in learning, f"{n} is frozen and was differentiated"
    state = optim.state_dict()["main"]
    sizes = {x.numel() for x in (*state["optimizer"].values(), state["grad"]) if isinstance(x, Tensor) and x.dim()}
    assert sizes == {4 * 4 + 4 + 4}, "moments of frozen weights"
    for (n, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=n)  # what learns is not disturbed by what does not


def test_a_group_may_freeze_and_scale_its_own() -> None:
    agent = make(TwoGroups)
    groups = {"actor": {"freeze": ["actor.bias"]}, "critic": {"scale": {"net.2.*": 0.1}}}
    optim = Optim(agent, OptimConfig(freeze=["*.0.bias"], groups=groups))
    assert [n for n, p in agent.named_parameters() if not p.requires_grad] == ["net.0.bias", "actor.bias"]
    assert [len(group.segments) for group in optim.groups.values()] == [2, 1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"freeze": ["net.embeding.*"]},
            r"optim\.freeze: 'net\.embeding\.\*' matches no parameter; did you mean 'net\.em",
        ),
        ({"scale": {"head": 2.0}}, r"optim\.scale: 'head' matches no parameter; "),
        ({"freeze": ["*"]}, r"optim\.freeze: \['\*'\] leaves group 'main' nothing to learn"),
        ({"groups": {"main": {"freeze": ["x"]}}}, r"optim\.freeze: 'x' matches no parameter"),
    ],
)
def test_patterns_without_a_parameter_are_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Optim(make(Stack), OptimConfig(**options))


def test_layer_decay_needs_layers() -> None:
    with pytest.raises(UserError, match=r"optim\.layer_decay: expected parameters with '\.layers\.N\.' in their names"):
        Optim(make(), OptimConfig(layer_decay=0.9))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optim.betas": [0.9, 1.0]}, "optim.betas.1: got 1.0, expected less than 1"),
        ({"optim.betas": [0.9]}, "optim.betas: got [0.9], expected two numbers, such as [0.9, 0.999]"),
        ({"optim.decay": "biases"}, "optim.decay: got 'biases', expected 'matrices' or 'all'"),
        ({"optim.l1": -1}, "optim.l1: got -1, expected greater than or equal to 0"),
        ({"optim.layer_decay": 1.5}, "optim.layer_decay: got 1.5, expected less than or equal to 1"),
        ({"optim.scale": {"net.*": 0}}, "optim.scale.net.*: got 0, expected greater than 0"),
        ({"optim.precision": "fp16"}, "optim.precision: got 'fp16', expected 'fp32' or 'bf16'"),
        ({"optim.freeze": "net.*"}, "optim.freeze: got 'net.*', expected a valid list"),
        ({"optim.clip": 1.0, "optim.clip_value": 1.0}, "either clip or clip_value, not both"),
    ],
)
def test_bad_values_are_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as error:
        configs.validate(configs.override(configs.read("line"), changes))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_patterns_keep_their_dots_through_overrides() -> None:
    recipe = {"optim": {"scale": {"network.head.*": 0.5, "network.trunk.*": 2.0}}}
    changes = {"optim.scale": {"network.head.*": 3.0}, "optim.scale.network.trunk.layers.0.*": 0.1}
    config = configs.validate(configs.override(recipe, changes))
    assert config.optim.scale == {"network.head.*": 3.0, "network.trunk.*": 2.0, "network.trunk.layers.0.*": 0.1}


def test_bf16_keeps_weights_and_moments_in_fp32_and_learns_as_fp32_does() -> None:
    last, seen = {}, []
    precisions: Any = ("fp32", "bf16")
    for precision in precisions:
        agent = make()
        agent.net[0].register_forward_hook(lambda _, __, out: seen.append(out.dtype))
        optim = Optim(agent, OptimConfig(lr=0.02, precision=precision))
        for i in range(300):
            x = batch(32, i).data.obs
            out, _ = optim.update(agent, Batch(Example(x, x.sum(1, keepdim=True).tanh())), Clock(1, 1))
            last[precision] = out.metrics["loss"].item()
        state = optim.state_dict()["main"]
        kinds = {x.dtype for x in (*agent.parameters(), *state["optimizer"].values(), state["grad"])}
        assert kinds == {torch.float32}
    assert seen == [torch.float32] * 300 + [torch.bfloat16] * 300
    assert last["fp32"] < 2e-3
    assert last["bf16"] < 4e-3  # products keep 8 bits, so errors of 2**-9 of targets near 1 remain
    assert not torch.is_autocast_enabled("cpu"), "autocast ends with the loss"


EVERY = ["dqn-native", "pqn", "c51", "iqn", "sac-pendulum", "td3-pendulum", "ppo-memory", "a2c", "reinforce", "r2d2"]


@pytest.mark.parametrize("case", [*EVERY, "supervised-mini-batches"])
def test_every_agent_trains_with_every_feature(case: str) -> None:
    recipe, overrides = test_resume.CASES[case]
    features = {
        "name": "adamw",
        "precision": "bf16",
        "weight_decay": 0.01,
        "l1": 1e-4,
        "l2": 1e-4,
        "clip": 0.0,
        "clip_value": 0.1,
        "accumulate": 2,
        "scale": {"*bias": 0.5},
        "schedule": {"kind": "cosine", "warmup": 1e-5, "start": 1.0, "end": 0.1},
    }
    raw = configs.override(configs.read(recipe), {**overrides, **{f"optim.{k}": v for k, v in features.items()}})
    trainer = build.trainer(configs.validate(raw))
    before = {n: p.detach().clone() for n, p in trainer.agent.named_parameters() if p.requires_grad}
    iterate(trainer, 3)
    trainer.check_finite()
    for n, p in trainer.agent.named_parameters():
        assert p.dtype == torch.float32, n
        assert n not in before or not torch.equal(p, before[n]), f"{n} did not learn"
    assert all(len(group.segments) > 1 or name == "temperature" for name, group in trainer.optim.groups.items())
    trainer.source.env.close()


@pytest.mark.parametrize("name", sorted(TORCH))
def test_segments_continue_bit_for_bit_even_within_an_accumulation(name: Any) -> None:
    config = OptimConfig(name=name, lr=0.05, accumulate=2, weight_decay=0.1, l2=0.1, freeze=["*.1.bias"], **SCALED)
    one, two = make(Stack), make(Stack)
    first, second = Optim(one, config), Optim(two, config)
    for i in range(5):  # stops in the middle of an accumulation
        first.update(one, batch(4, i), Clock(1, 1))
    two.load_state_dict(one.state_dict())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for i in range(5, 12):
        first.update(one, batch(4, i), Clock(1, 1))
        second.update(two, batch(4, i), Clock(1, 1))
    assert torch.equal(weights(one), weights(two))
