"""Networks without a memory: the shapes they read and return, their published layers, and what they refuse."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.networks import build_network
from agents.networks.encode import Network
from envs.cartpole import CartPole, CartPolePositions
from rlcore.config import NetworkConfig
from rlcore.errors import UserError
from rlcore.tree import tmap


def make(name: str, space: gym.Space[Any], **kwargs: Any) -> Network:
    torch.manual_seed(0)
    return build_network(NetworkConfig(name=name, kwargs=kwargs), space)


def sample(space: gym.Space[Any], n: int) -> Any:
    """Return a batch of observations as environments of this package give them."""
    if isinstance(space, spaces.Dict):
        return {key: sample(part, n) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(sample(part, n) for part in space.spaces)
    space.seed(0)
    x = torch.as_tensor(np.stack([space.sample() for _ in range(n)]))
    return x.float() if x.dtype in (torch.bool, torch.float64) else x


def image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


VECTORS = {
    "box": spaces.Box(-1, 1, (3, 2)),
    "bytes": spaces.Box(0, 255, (5,), np.uint8),
    "discrete": spaces.Discrete(4, start=-1),
    "binary": spaces.MultiBinary([2, 2]),
    "multi": spaces.MultiDiscrete([2, 3]),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (1,))]),
    "dict": spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Dict({"c": spaces.Box(0, 1, (3,))})}),
}
PLANES = spaces.Box(0, 1, (10, 10, 4), np.bool_)
SERVED = [
    *(("mlp", space, 128) for space in VECTORS.values()),
    *(("nature_cnn", image(*shape), 512) for shape in ((4, 84, 84), (84, 84, 1), (96, 64, 3), (36, 36, 4))),
    *(("impala_cnn", image(*shape), 256) for shape in ((4, 84, 84), (64, 64, 3), (10, 12, 3), (2, 7, 7))),
    ("minatar_cnn", PLANES, 128),
    ("minatar_cnn", spaces.Box(0, 1, (10, 10, 7)), 128),
    ("dict", VECTORS["dict"], 128),
    ("dict", spaces.Dict({"far": image(36, 36, 3), "near": image(8, 8, 3), "n": spaces.Discrete(3)}), 128),
]


@pytest.mark.parametrize(("name", "space", "width"), SERVED)
def test_a_row_of_observations_becomes_a_row_of_features(name: str, space: gym.Space[Any], width: int) -> None:
    network = make(name, space)
    obs = sample(space, 6)
    features = network(obs)
    assert features.shape == (6, width) and network.out_features == width
    assert features.dtype == torch.float32
    torch.testing.assert_close(network(tmap(lambda x: x[2:3], obs)), features[2:3], rtol=1e-4, atol=1e-5)
    assert (network.recurrent, network.initial_state(6)) == (False, ())
    stepped, state = network.step(obs, ())
    assert state == () and torch.equal(stepped, features)
    time_major = tmap(lambda x: x.unflatten(0, (3, 2)), obs)
    unrolled, after = network.unroll(time_major, (), torch.zeros(3, 2, dtype=torch.bool))
    assert after == () and torch.equal(unrolled, features.view(3, 2, width))


def convolutions(network: nn.Module) -> list[tuple[int, ...]]:
    return [
        (m.in_channels, m.out_channels, *m.kernel_size, *m.stride)
        for m in network.modules()
        if isinstance(m, nn.Conv2d)
    ]


def test_the_layers_are_the_published_ones() -> None:
    nature = make("nature_cnn", image(4, 84, 84))
    assert convolutions(nature) == [(4, 32, 8, 8, 4, 4), (32, 64, 4, 4, 2, 2), (64, 64, 3, 3, 1, 1)]
    assert sum(p.numel() for p in nature.parameters()) == 1_684_128  # 77,984 of convolutions, 3136 x 512 + 512
    impala = make("impala_cnn", image(4, 84, 84))
    inputs = [(i, o) for i, o, *_ in convolutions(impala)]
    assert inputs == [(4, 16), *[(16, 16)] * 4, (16, 32), *[(32, 32)] * 4, (32, 32), *[(32, 32)] * 4]
    assert all(rest == [3, 3, 1, 1] for _, _, *rest in convolutions(impala))
    assert next(m for m in impala.modules() if isinstance(m, nn.Linear)).in_features == 11 * 11 * 32
    wide = make("impala_cnn", image(4, 84, 84), width=2, features=64)
    assert [(i, o) for i, o, *_ in convolutions(wide)][::5] == [(4, 32), (32, 64), (64, 64)]
    minatar = make("minatar_cnn", PLANES)
    assert convolutions(minatar) == [(4, 16, 3, 3, 1, 1)]
    assert next(m for m in minatar.modules() if isinstance(m, nn.Linear)).in_features == 8 * 8 * 16


@pytest.mark.parametrize(
    ("name", "space"), [("nature_cnn", image(4, 84, 84)), ("impala_cnn", image(10, 12, 3)), ("minatar_cnn", PLANES)]
)
def test_normalised_features_do_not_depend_on_the_scale_of_any_layer(name: str, space: gym.Space[Any]) -> None:
    network, plain = make(name, space, layer_norm=True), make(name, space)
    obs = sample(space, 3)
    with torch.no_grad():
        before, raw = network(obs), plain(obs)
        for net in (network, plain):
            for module in net.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    for parameter in module.parameters():
                        parameter *= 5
        torch.testing.assert_close(network(obs), before, rtol=0.05, atol=0.02)
        assert plain(obs).norm() > 4.9 * raw.norm()


def test_a_residual_block_is_the_identity_plus_its_layers() -> None:
    network = make("impala_cnn", image(8, 8, 3))
    block: Any = next(m for m in network.modules() if type(m).__name__ == "Residual")
    x = torch.randn(2, 16, 4, 4)
    first, second = (m for m in block.modules() if isinstance(m, nn.Conv2d))
    torch.testing.assert_close(block(x), x + second(first(x.relu()).relu()))


@pytest.mark.parametrize("name", ["nature_cnn", "impala_cnn"])
def test_channels_may_come_first_or_last_and_bytes_are_scaled(name: str) -> None:
    last, first = make(name, image(40, 48, 3)), make(name, image(40, 48, 3))
    obs = sample(image(40, 48, 3), 2)
    scaled = obs.float() / 255
    torch.testing.assert_close(last(obs), last(scaled), rtol=0, atol=1e-6)
    stack = make(name, image(5, 40, 48))
    flipped = stack(sample(image(5, 40, 48), 2).flip(-1))
    assert not torch.equal(flipped, stack(sample(image(5, 40, 48), 2)))
    first.channels_last = False  # type: ignore[assignment]
    torch.testing.assert_close(first(obs.movedim(-1, 1)), last(obs))


def test_vectors_of_bytes_are_scaled_and_normalised_ones_are_not() -> None:
    network = make("mlp", spaces.Box(0, 255, (5,), np.uint8), hidden=[])
    assert network(torch.tensor([[0, 51, 255, 0, 0]], dtype=torch.uint8))[0].tolist() == pytest.approx(
        [0, 0.2, 1, 0, 0]
    )
    assert network(torch.tensor([[-2.0, 3.0, 0.0, 0.0, 0.0]]))[0].tolist() == [-2, 3, 0, 0, 0]


def test_keys_are_encoded_apart_by_the_networks_named_for_them() -> None:
    space = spaces.Dict({"far": image(40, 40, 3), "near": image(8, 8, 3), "v": spaces.Box(-1, 1, (2,))})
    network: Any = make("dict", space, encoders={"v": {"name": "mlp", "kwargs": {"hidden": []}}}, hidden=[])
    names = dict(zip(network.keys, (type(e).__name__ for e in network.encoders), strict=True))
    assert names == {"far": "NatureCNN", "near": "ImpalaCNN", "v": "MLP"}
    assert network.out_features == 512 + 256 + 2
    obs = sample(space, 3)
    torch.testing.assert_close(network(obs)[:, -2:], obs["v"])
    other = obs | {"v": obs["v"] + 1}
    assert torch.equal(network(other)[:, :-2], network(obs)[:, :-2])


BOX, DICT = VECTORS["box"], VECTORS["dict"]
REFUSED: list[tuple[str, gym.Space[Any], dict[str, Any], str]] = [
    ("mlp", spaces.Text(3), {}, "networks cannot read observation space Text"),
    ("nature_cnn", BOX, {}, "network 'nature_cnn' cannot read observation space Box.*; expected uint8 images"),
    ("nature_cnn", image(3, 20, 20), {}, r"'nature_cnn' got images of \(3, 20, 20\); expected at least 36 x 36"),
    ("nature_cnn", image(84, 84, 3), {"features": 0}, "network.kwargs.features: got 0, expected a positive integer"),
    ("impala_cnn", PLANES, {}, "network 'impala_cnn' cannot read observation space Box.*; expected uint8 images"),
    ("impala_cnn", image(8, 8, 3), {"width": 0.5}, "network.kwargs.width: got 0.5, expected a positive integer"),
    ("minatar_cnn", image(10, 10, 4), {}, "network 'minatar_cnn' cannot read .* Box.*bool or float planes"),
    ("minatar_cnn", BOX, {}, "network 'minatar_cnn' cannot read .* at least 3 x 3"),
    ("dict", BOX, {}, "network 'dict' cannot read observation space Box.*; expected Dict"),
    ("dict", DICT, {"encoders": {"bb": {"name": "mlp"}}}, "network.kwargs.encoders.bb is not a key .*mean 'b'"),
    ("dict", DICT, {"encoders": {"a": "mlp"}}, "network.kwargs.encoders.a: got 'mlp', expected a mapping"),
    ("dict", DICT, {"encoders": ["a"]}, r"network.kwargs.encoders: got \['a'\], expected a mapping"),
    ("dict", DICT, {"encoders": {"a": {"name": "gru"}}}, "encoders.a.name: 'gru' has a memory; expected a network"),
    ("gru", BOX, {"features": -1}, "network.kwargs.features: got -1, expected a positive integer"),
    ("gru", BOX, {"encoder": {"name": "nature_cnn"}}, "network 'nature_cnn' cannot read observation space"),
    ("lstm", BOX, {"encoder": {"name": "mlp", "kwarg": {}}}, "encoder.kwarg is not an option of a network.*'kwargs'"),
    ("lstm", BOX, {"featurs": 3}, "network.kwargs.featurs is not an option of network 'lstm'.*'features'"),
    ("history", BOX, {"context": 1}, "network.kwargs.context: got 1, expected a whole number >= 2"),
    ("history", BOX, {"features": 30, "heads": 4}, "network.kwargs.features: got 30, expected a multiple of heads = 4"),
    ("history", spaces.Text(3), {}, "networks cannot read observation space Text"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "space", "kwargs", "message"), REFUSED)
def test_what_cannot_be_built_is_said_in_one_sentence(
    name: str, space: gym.Space[Any], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make(name, space, **kwargs)
    assert "\n" not in str(caught.value)


def test_positions_are_cartpole_without_its_velocities() -> None:
    full, part = CartPole(4), CartPolePositions(4)
    assert part.spec.obs_space == spaces.Box(full.spec.obs_space.low[::2], full.spec.obs_space.high[::2])  # type: ignore[attr-defined]
    (obs, _), (seen, _) = full.reset(1000), part.reset(1000)
    ends = 0
    for t in range(60):
        assert torch.equal(seen, obs[:, ::2])
        action: Tensor = torch.full((4,), t % 3 // 2)
        whole, some = full.step(action), part.step(action)
        assert torch.equal(some.next_obs, whole.next_obs[:, ::2])
        assert torch.equal(some.terminated, whole.terminated)
        ends += int(whole.terminated.sum())
        obs, seen = whole.obs, some.obs
    assert ends > 0
    assert gym.make("rlcore/CartPolePositions-v1").observation_space.shape == (2,)
