from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rlcore.losses import (
    categorical_projection,
    clipped_surrogate,
    clipped_value_loss,
    double_q_target,
    huber,
    masked,
    q_learning_target,
    quantile_huber,
    td_error,
    token_cross_entropy,
)

Q_T = torch.tensor([[1.0, 5.0, 3.0], [-1.0, -5.0, -3.0], [7.0, 8.0, 9.0]])
SELECTOR_T = torch.tensor([[9.0, 0.0, 1.0], [0.0, 1.0, 2.0], [3.0, 2.0, 1.0]])
REWARD, DISCOUNT = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 0.0])  # the last one terminated
MASK = torch.tensor([[True, False, True], [False, True, True], [False, False, False]])


def test_masked():
    low = torch.finfo(torch.float32).min
    assert masked(Q_T, None) is Q_T
    assert masked(Q_T, MASK).tolist() == [[1, low, 3], [low, -5, -3], [low, low, low]]


@pytest.mark.parametrize(
    ("mask", "single", "double"),
    [
        (None, [1 + 2.5, 2 - 1, 3], [1 + 0.5, 2 - 3, 3]),
        # a terminal state allows nothing, and its target is still the reward
        (MASK, [1 + 1.5, 2 - 3, 3], [1 + 0.5, 2 - 3, 3]),
        (torch.tensor([[False, True, True]] * 3), [1 + 2.5, 2 - 3, 3], [1 + 1.5, 2 - 3, 3]),
    ],
    ids=["all", "some or none", "not the first"],
)
def test_targets_by_hand(mask, single, double):
    assert q_learning_target(REWARD, DISCOUNT, Q_T, mask).tolist() == single
    assert double_q_target(REWARD, DISCOUNT, Q_T, SELECTOR_T, mask).tolist() == double


def test_td_error_by_hand():
    q_tm1 = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    target = torch.tensor([5.0, 5.0], requires_grad=True)
    error = td_error(q_tm1, torch.tensor([1, 0]), target * 1.0)
    assert error.tolist() == [3.0, 2.0]
    error.sum().backward()
    assert q_tm1.grad is not None
    assert q_tm1.grad.tolist() == [[0.0, -1.0], [-1.0, 0.0]]
    assert target.grad is None  # semi-gradient
    assert not q_learning_target(REWARD, DISCOUNT, Q_T.clone().requires_grad_()).requires_grad
    assert not double_q_target(REWARD, DISCOUNT, Q_T.clone().requires_grad_(), SELECTOR_T).requires_grad


def test_huber_by_hand():
    error = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0], requires_grad=True)
    loss = huber(error)
    assert loss.tolist() == [2.5, 0.5, 0.0, 0.125, 1.5]
    loss.sum().backward()
    assert error.grad is not None
    assert error.grad.tolist() == [-1.0, -1.0, 0.0, 0.5, 1.0]
    assert huber(torch.tensor([3.0]), delta=2.0).tolist() == [2 * (3 - 1)]


def one_hot(j, size=5):
    return F.one_hot(torch.tensor([j]), size).double()


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (-2.0, [1, 0, 0, 0, 0]),  # exactly on each end, on an inner atom, beyond each end, between two atoms
        (2.0, [0, 0, 0, 0, 1]),
        (1.0, [0, 0, 0, 1, 0]),
        (-9.0, [1, 0, 0, 0, 0]),
        (9.0, [0, 0, 0, 0, 1]),
        (0.25, [0, 0, 0.75, 0.25, 0]),
        (1.75, [0, 0, 0, 0.25, 0.75]),
    ],
)
def test_projection_of_one_atom_by_hand(where, expected):
    atoms = torch.linspace(-2, 2, 5, dtype=torch.float64)
    out = categorical_projection(atoms, torch.full((1, 5), where, dtype=torch.float64), one_hot(3))
    assert out[0].tolist() == expected


def slow_projection(atoms, target, probs):
    """The published algorithm, mass by mass, with the case of an exact hit written out."""
    out = [0.0] * len(atoms)
    spacing = (atoms[-1] - atoms[0]) / (len(atoms) - 1)
    for z, p in zip(target, probs, strict=True):
        b = (min(max(z, atoms[0]), atoms[-1]) - atoms[0]) / spacing
        low, high = math.floor(b), math.ceil(b)
        if low == high:
            out[low] += p
        else:
            out[low] += p * (high - b)
            out[high] += p * (b - low)
    return out


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([2, 5, 51]),
    low=st.sampled_from([-10.0, 0.0, -0.1]),
    reward=st.one_of(st.floats(-30, 30), st.sampled_from([0.0, 1.0, -1.0])),
    discount=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    seed=st.integers(0, 2**20),
)
def test_projection_is_the_algorithm_and_keeps_the_mass(size, low, reward, discount, seed):
    atoms = torch.linspace(low, 10, size, dtype=torch.float64)
    probs = torch.rand(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).softmax(1)
    target = (reward + discount * atoms).expand(3, -1)
    out = categorical_projection(atoms, target, probs)
    expected = [slow_projection(atoms.tolist(), t.tolist(), p.tolist()) for t, p in zip(target, probs, strict=True)]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out.sum(1), torch.ones(3, dtype=torch.float64))
    inside = (target >= atoms[0]).all() and (target <= atoms[-1]).all()
    if inside:  # the mean survives where nothing is clipped
        torch.testing.assert_close((out * atoms).sum(1), (probs * target).sum(1))


def test_projection_mass_in_float32():
    atoms = torch.linspace(-10, 10, 51)
    probs = torch.rand(64, 51, generator=torch.Generator().manual_seed(0)).softmax(1)
    for reward in (-25.0, -0.4, 0.0, 0.4, 25.0):
        out = categorical_projection(atoms, reward + 0.99 * atoms.expand(64, -1), probs)
        torch.testing.assert_close(out.sum(1), torch.ones(64), rtol=0, atol=1e-5)
        assert (out >= 0).all()


def test_quantile_huber_weighs_by_the_side_of_the_target():
    """One prediction at 0 for the 0.9 quantile: a target above it counts 0.9, one below 0.1."""
    tau, zero = torch.tensor([0.9]), torch.zeros(1, 1)
    assert quantile_huber(zero, torch.tensor([[3.0]]), tau).item() == pytest.approx(0.9 * 2.5)
    assert quantile_huber(zero, torch.tensor([[-3.0]]), tau).item() == pytest.approx(0.1 * 2.5)


@pytest.mark.parametrize("kappa", [0.5, 1.0, 2.0])
def test_quantile_huber_is_the_double_loop(kappa):
    generator = torch.Generator().manual_seed(0)
    quantiles = torch.randn(4, 3, dtype=torch.float64, generator=generator) * 2
    target = torch.randn(4, 5, dtype=torch.float64, generator=generator) * 2
    tau = torch.tensor([1 / 6, 1 / 2, 5 / 6], dtype=torch.float64)
    expected = []
    for b in range(4):
        total = 0.0
        for i in range(3):  # summed over predictions
            for j in range(5):  # averaged over targets
                u = float(target[b, j] - quantiles[b, i])
                loss = 0.5 * u * u if abs(u) <= kappa else kappa * (abs(u) - 0.5 * kappa)
                total += abs(float(tau[i]) - (u < 0)) * loss / kappa / 5
        expected.append(total)
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(quantile_huber(quantiles, target, tau, kappa), expected)
    torch.testing.assert_close(quantile_huber(quantiles, target, tau.expand(4, 3), kappa), expected)
    assert not quantile_huber(quantiles, target.clone().requires_grad_(), tau).requires_grad


def test_quantile_regression_finds_the_quantiles():
    """Descending the loss with a small kappa recovers a distribution's quantiles."""
    target = torch.arange(100, dtype=torch.float64)[None] / 10
    tau = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    quantiles = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([quantiles], lr=0.05)
    for _ in range(1500):
        optimiser.zero_grad()
        quantile_huber(quantiles, target, tau, kappa=0.05).sum().backward()
        optimiser.step()
    torch.testing.assert_close(quantiles.detach()[0], 9.9 * tau, rtol=0, atol=0.1)


def test_clipped_surrogate_by_hand():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    log_prob = ratio.log().requires_grad_()
    loss = clipped_surrogate(log_prob, torch.zeros(5), advantage, clip=0.2)
    torch.testing.assert_close(loss, torch.tensor([-1.2, 1.5, -0.5, 0.8, -2.2]))
    loss.sum().backward()  # d ratio / d log_prob = ratio; clipped on the side that would improve further
    torch.testing.assert_close(log_prob.grad, torch.tensor([0.0, 1.5, -0.5, 0.0, -2.2]))


def test_clipped_value_loss_by_hand():
    value, old, returns = torch.tensor([2.0, 2.0, 0.1]), torch.zeros(3), torch.tensor([3.0, 0.0, 1.0])
    # held at 0.5: the larger of 1 and 2.5; of 2 and 0.5; within the clip: 0.9 twice; squared and halved
    torch.testing.assert_close(
        clipped_value_loss(value, old, returns, clip=0.5), torch.tensor([2.5**2 / 2, 2**2 / 2, 0.9**2 / 2])
    )


def test_token_cross_entropy_counts_what_it_sums():
    logits = torch.tensor([[[0.0, math.log(3.0)], [5.0, 0.0], [0.0, 0.0]]])  # (1, 3, 2)
    total, count = token_cross_entropy(logits, torch.tensor([[1, -100, 0]]))
    assert float(total) == pytest.approx(-math.log(3 / 4) - math.log(1 / 2))
    assert int(count) == 2
    total, count = token_cross_entropy(logits, torch.tensor([[0, 1, 0]]), ignore=0)
    assert float(total) == pytest.approx(5 + math.log(1 + math.exp(-5)), rel=1e-5)
    assert int(count) == 1


def test_token_cross_entropy_adds_up_over_pieces_and_over_nothing():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 7, generator=generator, requires_grad=True)
    target = torch.randint(0, 7, (4, 6), generator=generator)
    target[1, 2:] = target[3] = -100
    whole = token_cross_entropy(logits, target)
    parts = [token_cross_entropy(logits[i : i + 1], target[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(whole[0], sum(total for total, _ in parts))
    assert int(whole[1]) == sum(int(count) for _, count in parts) == 14
    assert [x.item() for x in parts[3]] == [0.0, 0.0]
    whole[0].backward()
    assert logits.grad is not None
    assert (logits.grad[target == -100] == 0).all()
