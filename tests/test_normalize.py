"""Running moments against NumPy on all that was seen; normalised observations of every space; frozen in evaluation."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rlcore.normalize import Moments, Normalizer
from rlcore.targets import hard_update, polyak_update


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 2**31), st.sampled_from([0.0, 1e6]))
def test_moments_are_those_of_all_items_together(sizes: list[int], seed: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    batches = [rng.normal(offset, 2, (n, 3)) for n in sizes]
    moments = Moments((3,))
    for batch in batches:
        moments.update(torch.tensor(batch))
    seen = np.concatenate(batches)
    np.testing.assert_allclose(moments.mean, seen.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.variance(), seen.var(0), rtol=1e-6, atol=1e-9)
    assert float(moments.count) == len(seen)


def test_moments_leave_out_invalid_items() -> None:
    moments = Moments()
    x = torch.tensor([1.0, 100.0, 3.0])
    moments.update(x, torch.tensor([False, False, False]))
    assert float(moments.variance()) == 1 and float(moments.count) == 0
    moments.update(x, torch.tensor([True, False, True]))
    moments.update(x, torch.tensor([False, False, False]))
    assert (float(moments.count), float(moments.mean), float(moments.variance())) == (2, 2, 1)


def test_moments_stay_right_after_very_many_items() -> None:
    moments = Moments()
    moments.update(torch.tensor([0.0, 2.0]))
    moments.count.fill_(2.0**40)
    moments.squares.fill_(2.0**40)
    moments.update(torch.full((1024,), 1025.0))  # delta 1024: the mean moves by 2**-20, which float32 would lose
    assert float(moments.mean - 1) == pytest.approx(2.0**-20, rel=1e-6)


def test_observations_by_hand() -> None:
    normalizer = Normalizer(spaces.Box(-np.inf, np.inf, (2,)))
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    assert torch.equal(normalizer(x), x)
    normalizer.observe(x)  # mean 2 5, variance 1 0
    torch.testing.assert_close(
        normalizer(torch.tensor([[4.0, 5.0], [-50.0, 6.0]])), torch.tensor([[2.0, 0], [-10, 10]])
    )


def test_every_space() -> None:
    space = spaces.Dict(
        {
            "a.b": spaces.Box(-1, 1, (2, 2)),
            "type": spaces.Discrete(3),
            "image": spaces.Box(0, 255, (3,), np.uint8),
            "pair": spaces.Tuple([spaces.Box(-1, 1, (), np.float64), spaces.MultiBinary(2)]),
        }
    )
    obs = {
        "a.b": torch.randn(5, 2, 2) * 3 + 1,
        "type": torch.arange(5) % 3,
        "image": torch.zeros(5, 3, dtype=torch.uint8),
        "pair": (torch.randn(5, dtype=torch.float64), torch.ones(5, 2, dtype=torch.int8)),
    }
    normalizer = Normalizer(space)
    normalizer.observe(obs)
    out = normalizer(obs)
    assert out["type"] is obs["type"] and out["image"] is obs["image"] and out["pair"][1] is obs["pair"][1]
    for x, raw in ((out["a.b"], obs["a.b"]), (out["pair"][0], obs["pair"][0])):
        assert x.dtype == torch.float32 and x.shape == raw.shape
        torch.testing.assert_close(x.mean(0), torch.zeros_like(x[0]), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.std(0, unbiased=False), torch.ones_like(x[0]), atol=1e-5, rtol=0)


def test_it_is_state_and_only_observe_changes_it() -> None:
    one, other = Normalizer(spaces.Box(-1, 1, (2,))), Normalizer(spaces.Box(-1, 1, (2,)))
    one.observe(torch.randn(9, 2))
    saved = copy.deepcopy(one.state_dict())
    one.train()
    one(torch.randn(9, 2) + 100)
    assert all(torch.equal(x, saved[k]) for k, x in one.state_dict().items())
    other.load_state_dict(saved)
    more = torch.randn(4, 2)
    one.observe(more)
    other.observe(more)
    assert torch.equal(one(more), other(more)) and not torch.equal(one.shift, saved["shift"])


@pytest.mark.parametrize("update", [hard_update, lambda t, o: polyak_update(t, o, 0.01)])
def test_a_target_copy_has_the_online_statistics(update: object) -> None:
    online = nn.Sequential(Normalizer(spaces.Box(-1, 1, (2,))), nn.Linear(2, 2))
    target = copy.deepcopy(online)
    online[0].observe(torch.randn(9, 2))  # type: ignore[operator]
    update(target, online)  # type: ignore[operator]
    assert all(torch.equal(x, y) for x, y in zip(target.buffers(), online.buffers(), strict=True))
