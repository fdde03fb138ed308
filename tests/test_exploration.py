from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from rlcore.exploration import coins, epsilon_greedy, gaussian

Q = torch.tensor([0.1, 0.9, 0.3, 0.5])


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_every_environment_flips_its_own_coin():
    q = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    scores = torch.tensor([[0.0, 1.0]]).repeat(4, 1)
    coin = torch.tensor([0.1, 0.6, 0.5, 0.4])
    assert epsilon_greedy(q, torch.tensor(0.5), coin, scores).tolist() == [1, 0, 0, 1]
    assert epsilon_greedy(q, torch.tensor([0.0, 1.0, 0.4, 0.3]), coin, scores).tolist() == [0, 1, 0, 0]


def test_epsilon_zero_is_greedy_and_one_is_random():
    q, coin, scores = uniform(1000, 4, seed=1), uniform(1000, seed=2), uniform(1000, 4, seed=3)
    coin[0] = 0.0
    assert torch.equal(epsilon_greedy(q, 0.0, coin, scores), q.argmax(1))
    assert torch.equal(epsilon_greedy(q, 1.0, coin, scores), scores.argmax(1))


@pytest.mark.parametrize("allowed", [[True] * 4, [True, False, True, True], [False, False, True, False]])
def test_frequencies_over_allowed_actions(allowed):
    n, epsilon, allowed = 60_000, 0.4, torch.tensor(allowed)
    mask = None if allowed.all() else allowed.repeat(n, 1)
    action = epsilon_greedy(Q.repeat(n, 1), epsilon, uniform(n), uniform(n, 4, seed=1), mask)
    expected = epsilon * allowed.double() / allowed.sum()
    expected[Q.masked_fill(~allowed, -9).argmax()] += 1 - epsilon
    counts = action.bincount(minlength=4)
    assert (counts[~allowed] == 0).all()
    if allowed.sum() > 1:
        assert chisquare(counts[allowed], n * expected[allowed]).pvalue > 1e-3


def test_masks_hold_for_negative_values_and_zero_scores():
    mask = torch.tensor([[False, True, False, False]])
    q = torch.full((1, 4), -1e30)
    for coin in (0.0, 0.99):
        assert epsilon_greedy(q, 0.5, torch.tensor([coin]), torch.zeros(1, 4), mask).item() == 1


def test_coins_and_scores_are_independent_uniforms_from_the_generator():
    drawn = coins(50_000, 3, torch.Generator().manual_seed(0))
    again = coins(50_000, 3, torch.Generator().manual_seed(0))
    assert all(torch.equal(x, again[name]) for name, x in drawn.items())
    table = torch.cat([drawn["coin"][:, None], drawn["scores"]], 1)
    assert table.shape == (50_000, 4)
    assert (table.mean(0) - 0.5).abs().max() < 0.01
    assert (table.T.corrcoef() - torch.eye(4)).abs().max() < 0.02


def test_gaussian_noise_is_scaled_and_clipped():
    action = torch.tensor([[0.0, 1.0], [0.5, -1.9]])
    normal = torch.tensor([[1.0, 2.0], [-3.0, -1.0]])
    low, high = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0])
    assert torch.equal(gaussian(action, 0.5, normal, low, high), torch.tensor([[0.5, 2.0], [-1.0, -2.0]]))
