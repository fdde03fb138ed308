"""Distributions against torch's own; sampling frequencies; masks; the head of every action space."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import distributions as reference

from agents.distributions import Categorical, DiscreteHead, Gaussian, GaussianHead, action_head, orthogonal
from rlcore.errors import UserError

SPACES = [
    spaces.Discrete(3, start=5),
    spaces.MultiDiscrete([2, 5, 3]),
    spaces.MultiDiscrete([[2, 3], [4, 1]]),
    spaces.MultiBinary(4),
    spaces.MultiBinary((2, 3)),
    spaces.Box(-2, 2, (2,)),
    spaces.Box(np.array([0.0, -np.inf], np.float32), np.array([10.0, 1.0], np.float32)),
    spaces.Box(-1, 1, (2, 2)),
    spaces.Box(-1, 1, ()),
]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.sampled_from([(), (3,), (2, 2)]), st.booleans())
def test_categorical_is_torchs(seed: int, parts: tuple[int, ...], masked: bool) -> None:
    g = rng(seed)
    logits = torch.randn(4, *parts, 5, generator=g) * 3
    mask = (torch.rand(logits.shape, generator=g) < 0.6) if masked else torch.ones(logits.shape, dtype=torch.bool)
    mask[..., 2] = True
    ours = Categorical(logits, mask if masked else None)
    theirs = reference.Independent(
        reference.Categorical(logits=logits.masked_fill(~mask, -1e30)), len(parts), validate_args=False
    )
    action = torch.where(mask, torch.rand(mask.shape, generator=g), -1).argmax(-1)  # an allowed one
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    for chosen in (ours.sample(torch.rand(mask.shape, generator=g)), ours.mode()):
        assert chosen.shape == (4, *parts) and bool(mask.gather(-1, chosen[..., None]).all())
    assert torch.equal(ours.mode(), theirs.base_dist.probs.argmax(-1))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.sampled_from([(), (3,), (2, 2)]))
def test_gaussian_is_torchs(seed: int, parts: tuple[int, ...]) -> None:
    g = rng(seed)
    mean, log_std = torch.randn(4, *parts, generator=g), torch.randn(parts, generator=g)
    ours = Gaussian(mean, log_std)
    theirs = reference.Independent(reference.Normal(mean, log_std.exp().expand_as(mean)), len(parts))
    action = ours.sample(torch.randn(mean.shape, generator=g))
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), mean)


def test_samples_have_the_distributions_frequencies() -> None:
    n, logits = 20_000, torch.tensor([[1.0, 0.0, -1.0, 9.0], [0.0, 0.0, 2.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]] * 2)
    head = DiscreteHead(spaces.MultiDiscrete([4, 4]), 1)
    sampled = Categorical(logits.expand(n, 2, 4), mask).sample(head.noise(n, rng()))
    for part in range(2):
        counts = np.bincount(sampled[:, part], minlength=4)
        assert counts[3] == 0
        expected = logits[part, :3].softmax(0).double().numpy()
        assert stats.chisquare(counts[:3], n * expected / expected.sum()).pvalue > 1e-3
    both = np.histogram2d(sampled[:, 0], sampled[:, 1], bins=3)[0]
    assert stats.chi2_contingency(both).pvalue > 1e-3, "the parts are independent"
    normal = Gaussian(torch.full((n,), 3.0), torch.tensor(0.7)).sample(torch.randn(n, generator=rng()))
    assert stats.kstest(normal.numpy(), "norm", (3.0, np.exp(0.7))).pvalue > 1e-3


def test_a_forbidden_action_is_not_drawn_even_by_the_smallest_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.zeros(shape))
    noise = DiscreteHead(spaces.Discrete(2), 1).noise(1, rng())
    assert Categorical(torch.zeros(1, 2), torch.tensor([[False, True]])).sample(noise) == 1


def test_gradients_stay_finite_under_a_mask() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    policy = Categorical(logits, torch.tensor([[True, False, True, False], [True] * 4, [False, False, True, False]]))
    (policy.entropy() + policy.log_prob(torch.tensor([0, 1, 2]))).sum().backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()
    assert (logits.grad[0, [1, 3]] == 0).all() and (logits.grad[2] == 0).all()


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_head_of_every_space(space: Any) -> None:
    torch.manual_seed(0)
    head = action_head(space, 6, "ppo")
    policy = head(torch.randn(50, 6))
    for action in (policy.sample(head.noise(50, rng())), policy.mode()):
        assert action.shape == (50, *space.shape)
        assert policy.log_prob(action).shape == policy.entropy().shape == (50,)
        if isinstance(space, spaces.Box):
            assert action.dtype == torch.float32
        elif isinstance(space, spaces.Discrete):
            assert action.min() >= 0 and action.max() < space.n  # agents count from 0
        else:
            assert all(space.contains(a.astype(space.dtype)) for a in action.numpy())
    if not isinstance(space, spaces.Box):  # nearly uniform at first
        sizes = [2] * int(np.prod(space.shape)) if isinstance(space, spaces.MultiBinary) else None
        sizes = sizes or np.ravel(getattr(space, "nvec", getattr(space, "n", None)))
        assert policy.entropy().detach().numpy() == pytest.approx(np.log(sizes).sum(), rel=0.01)


def test_continuous_actions_are_in_units_of_the_box() -> None:
    head = GaussianHead(SPACES[6], 3, log_std=-1.0)  # type: ignore[arg-type]
    with torch.no_grad():
        head.mean.weight.zero_()
        head.mean.bias.copy_(torch.tensor([0.5, 0.5]))
        policy = head(torch.zeros(1, 3))
    torch.testing.assert_close(policy.mean, torch.tensor([[7.5, 0.5]]))  # 5 + 5 / 2; not bounded: as it is
    torch.testing.assert_close(policy.log_std.exp(), torch.tensor([5.0, 1.0]) * np.exp(-1).astype(np.float32))


def test_orthogonal_initialisation() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Conv2d(2, 4, 2), torch.nn.GRUCell(5, 5))
    orthogonal(net, 2**0.5)
    linear, conv, cell = net
    torch.testing.assert_close(linear.weight @ linear.weight.T, 2 * torch.eye(8), rtol=0, atol=1e-5)
    torch.testing.assert_close(conv.weight.flatten(1) @ conv.weight.flatten(1).T, 2 * torch.eye(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(cell.weight_hh.T @ cell.weight_hh, torch.eye(5), rtol=0, atol=1e-5)
    assert not linear.bias.any() and not conv.bias.any() and not cell.bias_ih.any()


def test_other_spaces_are_refused() -> None:
    with pytest.raises(UserError, match=r"cannot serve action space Box.*int64.*expected.*Box of floats"):
        action_head(spaces.Box(0, 3, (1,), np.int64), 4, "ppo")
    with pytest.raises(UserError, match=r"agent 'ppo' cannot serve action space Text.*expected Discrete"):
        action_head(spaces.Text(3), 4, "ppo")
