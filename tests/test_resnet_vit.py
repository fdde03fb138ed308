"""Networks for images: residual blocks with batch normalisation, and a Transformer over patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.networks import build_network
from agents.networks.resnet import ResidualBlock, ResNet
from agents.networks.vit import ViT
from rlcore import checkpoint
from rlcore.config import NetworkConfig, OptimConfig
from rlcore.errors import UserError
from rlcore.optim import Group


def space(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def images(*shape: int, seed: int = 1000) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 8, 1), (12, 16, 3), (2, 16, 12)])
@pytest.mark.parametrize(
    ("name", "kwargs", "features"),
    [
        ("resnet", {}, 64),
        ("resnet", {"width": 4, "stages": 2, "blocks": 2}, 8),
        ("vit", {"layers": 1, "width": 16}, 16),
        ("vit", {"layers": 1, "width": 16, "patch": 2, "pool": "mean", "positions": "rotary", "kv_heads": 2}, 16),
    ],
)
def test_shapes(name: str, kwargs: dict[str, Any], features: int, shape: tuple[int, ...]) -> None:
    network = build_network(NetworkConfig(name=name, kwargs=kwargs), space(*shape))
    assert network.out_features == features
    assert network(images(3, *shape)).shape == (3, features)


@pytest.mark.parametrize("cls", [ResNet, ViT])
def test_channels_may_come_first_or_last(cls: type[ResNet] | type[ViT]) -> None:
    last, first = cls(space(8, 12, 3)).eval(), cls(space(3, 8, 12)).eval()
    first.load_state_dict(last.state_dict())
    x = images(2, 8, 12, 3)
    torch.testing.assert_close(first(x.permute(0, 3, 1, 2)), last(x))


def test_a_residual_block_is_its_equation() -> None:
    torch.manual_seed(1002)
    x = torch.randn(4, 2, 6, 6)
    for outputs, stride in ((2, 1), (5, 2)):
        block = ResidualBlock(2, outputs, stride)
        y = x
        for i, step in ((0, stride), (3, 1)):
            y = nn.functional.conv2d(y, block.layers[i].weight, None, step, 1)
            y = (y - y.mean((0, 2, 3), keepdim=True)) / (y.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
            y = y.relu() if i == 0 else y
        past = x
        if stride == 2:
            past = nn.functional.conv2d(x, block.past[0].weight, None, 2)
            past = past - past.mean((0, 2, 3), keepdim=True)
            past = past / (past.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        torch.testing.assert_close(block(x), (past + y).relu(), rtol=0, atol=1e-5)


def test_stages_halve_the_image_and_double_the_channels() -> None:
    network = ResNet(space(16, 16, 3), width=4, stages=3, blocks=2)
    outputs = []
    for layer in network.layers:
        layer.register_forward_hook(lambda _m, _i, y: outputs.append(y))
    features = network(images(2, 16, 16, 3))
    torch.testing.assert_close(features, outputs[-1].flatten(2).mean(2))
    assert [tuple(y.shape[1:]) for y in outputs[2:]] == [(4, 16, 16)] * 3 + [(8, 8, 8)] * 2 + [(16, 4, 4)] * 2
    assert network.out_features == 16


def test_batch_statistics_are_gathered_in_training_kept_in_checkpoints_and_used_in_evaluation(tmp_path) -> None:
    torch.manual_seed(1003)
    network = ResNet(space(8, 8, 1), width=4)
    Group(dict(network.named_parameters()), OptimConfig())  # flat parameters leave the buffers alone
    x = images(6, 8, 8, 1)
    raw = nn.functional.conv2d(x.movedim(-1, 1) / 255, network.layers[0].weight, None, 1, 1)
    in_training = network(x)
    running = network.state_dict()["layers.1.running_mean"]
    torch.testing.assert_close(running, 0.1 * raw.detach().mean((0, 2, 3)))
    assert int(network.state_dict()["layers.1.num_batches_tracked"]) == 1
    alone = torch.cat([network.eval()(row[None]) for row in x])
    torch.testing.assert_close(network(x), alone, rtol=0, atol=1e-5)  # every image by itself
    assert (alone - in_training).abs().max() > 0.01
    torch.testing.assert_close(network.state_dict()["layers.1.running_mean"], running)  # unchanged by evaluation
    path = checkpoint.save(tmp_path, 1, network.state_dict(), {})
    other = ResNet(space(8, 8, 1), width=4).eval()
    other.load_state_dict(checkpoint.load(path).agent)
    assert torch.equal(other(x), network(x))


def test_patches_are_squares_of_the_image_row_by_row() -> None:
    network = ViT(space(4, 6, 1), patch=2, layers=1, heads=1, width=4, pool="mean")
    seen = []
    network.positions.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    x = images(1, 4, 6, 1)
    network(x)
    weight, bias = network.patches.weight.flatten(1), network.patches.bias
    for n, (row, column) in enumerate((r, c) for r in (0, 2) for c in (0, 2, 4)):
        patch = x[0, row : row + 2, column : column + 2, 0].flatten() / 255
        torch.testing.assert_close(seen[0][0, n], weight @ patch + bias)
    assert seen[0].shape == (1, 6, 4)


def test_the_class_token_stands_first_and_gives_the_features() -> None:
    network = ViT(space(8, 8, 1), layers=1, width=16)
    passed = []
    network.stack.register_forward_hook(lambda _m, inputs, y: passed.extend([inputs[0], y]))
    features = network(images(2, 8, 8, 1))
    before, after = passed
    assert before.shape == (2, 5, 16)
    for row in range(2):
        torch.testing.assert_close(before[row, 0], network.token[0, 0] + network.positions.weight[0])
        assert torch.equal(features[row], after[row, 0])


@pytest.mark.parametrize("pool", ["class", "mean"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_every_patch_and_its_place_count(pool: str, positions: str) -> None:
    torch.manual_seed(1004)
    network = ViT(space(8, 8, 1), layers=2, width=16, pool=pool, positions=positions)
    for p in network.parameters():
        p.data += 0.1 * torch.randn_like(p)
    x = images(1, 8, 8, 1)
    base = network(x)
    for row in (0, 4):
        for column in (0, 4):
            changed = x.clone()
            changed[0, row, column] += 100
            assert (network(changed) - base).abs().max() > 1e-5
    swapped = torch.cat([x[:, :, 4:], x[:, :, :4]], 2)
    assert (network(swapped) - base).abs().max() > 1e-5


def test_networks_for_images_learn_to_tell_two_kinds() -> None:
    generator = torch.Generator().manual_seed(1005)
    x = images(32, 8, 8, 1, seed=1006) // 2
    labels = torch.randint(2, (32,), generator=generator)
    x[labels == 1, :4] += 100  # the upper half is brighter
    for name, kwargs in (("resnet", {"width": 4}), ("vit", {"layers": 1, "width": 16})):
        torch.manual_seed(1007)
        trunk = build_network(NetworkConfig(name=name, kwargs=kwargs), space(8, 8, 1))
        network = nn.Sequential(trunk, nn.Linear(trunk.out_features, 2))
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), labels).backward()
            optimizer.step()
        assert (network.eval()(x).argmax(1) == labels).all(), name


@pytest.mark.parametrize(
    ("name", "shape", "kwargs", "sentence"),
    [
        ("vit", (8, 10, 1), {}, "network.kwargs.patch: got 4, expected a divisor of the images' height 8 and width 10"),
        ("vit", (8, 8, 1), {"patch": 0}, "network.kwargs.patch: got 0, expected a positive integer"),
        ("vit", (8, 8, 1), {"pool": "first"}, "network.kwargs.pool 'first' is unknown; known: class, mean"),
        ("vit", (8, 8, 1), {"context": 9}, "network.kwargs.context is not an option of network 'vit'"),
        (
            "vit",
            (8,),
            {},
            "network 'vit' cannot read observation space Box(0, 255, (8,), uint8); expected uint8 images",
        ),
        (
            "resnet",
            (8,),
            {},
            "network 'resnet' cannot read observation space Box(0, 255, (8,), uint8); expected uint8 ",
        ),
        (
            "resnet",
            (6, 8, 1),
            {},
            "network 'resnet' with 3 stages got images of (6, 8, 1); expected at least 8 x 8 pix",
        ),
        ("resnet", (8, 8, 1), {"blocks": 0}, "network.kwargs.blocks: got 0, expected a positive integer"),
        ("resnet", (8, 8, 1), {"wdth": 8}, "network.kwargs.wdth is not an option of network 'resnet'; did you mean 'w"),
    ],
)
def test_bad_keywords_give_one_sentence(name: str, shape: tuple, kwargs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        build_network(NetworkConfig(name=name, kwargs=kwargs), space(*shape))
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)
