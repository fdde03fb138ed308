"""Networks with a memory: unrolled they equal single steps, and slow references; nothing crosses an episode."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from agents.networks import build_network
from agents.networks.encode import Network
from rlcore.config import NetworkConfig
from rlcore.tree import leaves, tmap

SMALL = {"name": "mlp", "kwargs": {"hidden": [8], "activation": "tanh"}}
NETWORKS: dict[str, dict[str, Any]] = {
    "gru": {"name": "gru", "kwargs": {"features": 6, "encoder": SMALL}},
    "lstm": {"name": "lstm", "kwargs": {"features": 6, "encoder": SMALL}},
    "history": {"name": "history", "kwargs": {"context": 4, "features": 8, "heads": 2, "encoder": SMALL}},
    "history-3-layers": {
        "name": "history",
        "kwargs": {"context": 3, "features": 8, "heads": 2, "layers": 3, "encoder": SMALL},
    },
    "mlp": {"name": "mlp", "kwargs": {"hidden": [8]}},
}
MEMORIES = sorted(set(NETWORKS) - {"mlp"})
SPACE = spaces.Dict({"x": spaces.Box(-1, 1, (2,)), "n": spaces.Discrete(3, start=1)})


def make(name: str, space: gym.Space[Any] = SPACE) -> Network:
    torch.manual_seed(0)
    network = build_network(NetworkConfig(**NETWORKS[name]), space)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape))  # away from zero biases, which hide mistakes
    return network


def observations(*shape: int, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(*shape, 2, generator=rng), "n": torch.randint(1, 4, shape, generator=rng)}


def stepped(network: Network, obs: Any, state: Any, first: Tensor) -> tuple[Tensor, list[Any]]:
    """One step at a time, the memory of an ended episode replaced by an empty one."""
    features, states = [], []
    for t in range(len(first)):
        empty = network.initial_state(first.shape[1])
        state = tmap(lambda s, e, t=t: torch.where(first[t].view(-1, *[1] * (s.dim() - 1)), e, s), state, empty)
        out, state = network.step(tmap(lambda x, t=t: x[t], obs), state)
        features.append(out)
        states.append(state)
    return torch.stack(features), states


@pytest.mark.parametrize("name", sorted(NETWORKS))
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 12),
    items=st.integers(1, 4),
    often=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_unrolled_it_equals_single_steps_memories_included(
    name: str, seed: int, steps: int, items: int, often: float
) -> None:
    network = make(name)
    rng = torch.Generator().manual_seed(seed)
    first = torch.rand(steps, items, generator=rng) < often
    warm = observations(5, items, seed=seed + 1)
    with torch.no_grad():
        _, states = stepped(network, warm, network.initial_state(items), torch.rand(5, items, generator=rng) < 0.2)
        obs = observations(steps, items, seed=seed)
        features, after = network.unroll(obs, states[-1], first)
        wanted, each = stepped(network, obs, states[-1], first)
    scale = wanted.abs().max().clamp_min(1.0)  # features of History are a layer norm's, not within [-1, 1]
    torch.testing.assert_close(features / scale, wanted / scale, rtol=0, atol=1e-6)
    for t, state in enumerate(each if network.recurrent else ()):
        for ours, theirs in zip(leaves(tmap(lambda x, t=t: x[t], after)), leaves(state), strict=True):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MEMORIES)
def test_the_gradient_is_that_of_single_steps_through_time(name: str) -> None:
    network, first = make(name), torch.tensor([[False, True], [False, False], [True, False], [False, False]])
    obs, weight = observations(4, 2), torch.randn(4, 2, network.out_features)
    gradients = []
    for unroll in (True, False):
        state = network.initial_state(2)
        features = network.unroll(obs, state, first)[0] if unroll else stepped(network, obs, state, first)[0]
        gradients.append(torch.autograd.grad((features * weight).sum(), list(network.parameters())))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert ours.any()


@pytest.mark.parametrize("name", MEMORIES)
def test_nothing_crosses_an_episode_or_a_row_and_nothing_comes_from_the_future(name: str) -> None:
    network, steps = make(name), 9
    first = torch.zeros(steps, 2, dtype=torch.bool)
    first[5, 0] = True
    x = torch.randn(steps, 2, 2, requires_grad=True)
    obs = {"x": x, "n": observations(steps, 2)["n"]}
    features, _ = network.unroll(obs, network.initial_state(2), first)
    reach = 1 + network.depth if name.startswith("history") else steps  # type: ignore[operator]
    for t in range(steps):
        for row in range(2):
            (grad,) = torch.autograd.grad(features[t, row].sum(), x, retain_graph=True)
            begins = max(5 if row == 0 and t >= 5 else 0, t - reach + 1)  # type: ignore[call-overload]
            expected = torch.zeros(steps, 2, dtype=torch.bool)
            expected[begins : t + 1, row] = True
            assert torch.equal(grad.any(-1), expected), f"step {t} of row {row}"


@pytest.mark.parametrize(("name", "cell"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_the_cell_is_torchs(name: str, cell: type[nn.GRU] | type[nn.LSTM]) -> None:
    network: Any = make(name)
    theirs = cell(8, 6)
    theirs.load_state_dict({f"{k}_l0": v for k, v in network.cell.state_dict().items()})
    obs = observations(7, 3)
    encoded = network.encoder(tmap(lambda x: x.flatten(0, 1), obs)).view(7, 3, 8)
    features, _ = network.unroll(obs, network.initial_state(3), torch.zeros(7, 3, dtype=torch.bool))
    torch.testing.assert_close(features, theirs(encoded)[0], rtol=0, atol=1e-6)


def test_one_layer_of_history_is_torchs_attention_over_a_window() -> None:
    """With no bias by distance, the last token of `nn.TransformerEncoderLayer` over the latest K observations."""
    network: Any = make("history")
    (block,) = network.blocks
    layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    with torch.no_grad():
        block.bias.zero_()
        layer.self_attn.in_proj_weight.copy_(torch.cat([block.query.weight, block.keys.weight]))
        layer.self_attn.in_proj_bias.copy_(torch.cat([block.query.bias, block.keys.bias]))
        pairs = [
            (layer.self_attn.out_proj, block.out), (layer.linear1, block.feed[0]), (layer.linear2, block.feed[2]),
            (layer.norm1, block.norm), (layer.norm2, block.norm2),
        ]  # fmt: skip
        for into, source in pairs:
            into.load_state_dict(source.state_dict())
        obs = observations(9, 3)
        features, _ = network.unroll(obs, network.initial_state(3), torch.zeros(9, 3, dtype=torch.bool))
        tokens = network.encoder(tmap(lambda x: x.flatten(0, 1), obs)).view(9, 3, 8).transpose(0, 1)  # (B, L, 8)
        for t in range(9):
            window = tokens[:, max(0, t - 3) : t + 1]
            torch.testing.assert_close(features[t], network.norm(layer(window)[:, -1]), rtol=0, atol=1e-5)


def test_a_distance_has_a_bias_of_its_own() -> None:
    """A bias that leaves only the step before makes the features blind to the one before that."""
    network: Any = make("history")
    with torch.no_grad():
        network.blocks[0].bias.fill_(-1e9)
        network.blocks[0].bias[:, 1] = 0
    obs = observations(6, 1)
    obs["x"].requires_grad_()
    features, _ = network.unroll(obs, network.initial_state(1), torch.zeros(6, 1, dtype=torch.bool))
    (grad,) = torch.autograd.grad(features[5].sum(), obs["x"])
    assert grad.any(-1).flatten().tolist() == [False, False, False, False, True, True]


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (3,)), spaces.Box(0, 255, (5,), "uint8"), spaces.Discrete(4), spaces.MultiBinary(3),
        spaces.MultiDiscrete([2, 3]), spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (1,))]),
    ],
    ids=lambda space: type(space).__name__,
)  # fmt: skip
def test_it_serves_the_spaces_of_its_encoder(name: str, space: gym.Space[Any]) -> None:
    network = make(name, space)
    space.seed(0)
    obs = tmap(torch.as_tensor, space.sample() if isinstance(space, spaces.Tuple) else torch.as_tensor(space.sample()))
    obs = tmap(lambda x: torch.as_tensor(x).expand(2, *torch.as_tensor(x).shape), obs)
    state = network.initial_state(2)
    features, after = network.step(obs, state)
    assert features.shape == (2, network.out_features)
    for old, new in zip(leaves(state), leaves(after), strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)
        assert not old.any(), "an empty memory is all zeros"
    torch.testing.assert_close(network(obs), features, rtol=0, atol=0)
