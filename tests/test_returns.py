"""Returns against arrays worked out by hand and against their definitions, summed in O(T^2)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcore.returns import (
    gae,
    group_deviation,
    group_relative_advantage,
    lambda_returns,
    leave_one_out_advantage,
    n_step,
)

T_, F_ = True, False


def column(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)[:, None]  # (T, 1)


def flags(*values):
    return column(*values, dtype=torch.bool)


# Four steps with gamma = lam = 1/2: an episode ends after step 1 (in one of three ways), the next runs on.
REWARD, VALUE, NEXT = column(1, 2, 4, 8), column(10, 20, 30, 40), column(20, 100, 40, 60)
NO, AT_1 = flags(F_, F_, F_, F_), flags(F_, T_, F_, F_)
ENDS = {"terminated": (AT_1, NO), "truncated": (NO, AT_1), "both": (AT_1, AT_1)}


@pytest.mark.parametrize(
    ("end", "advantage"),
    [
        # deltas: 1 + 10 - 10 = 1; 2 (+ 50 if cut) - 20; 4 + 20 - 30 = -6; 8 + 30 - 40 = -2
        ("terminated", [1 - 18 / 4, -18, -6 - 2 / 4, -2]),
        ("truncated", [1 + 32 / 4, 32, -6 - 2 / 4, -2]),
        ("both", [1 - 18 / 4, -18, -6 - 2 / 4, -2]),
    ],
)
def test_gae_by_hand(end, advantage):
    assert gae(REWARD, VALUE, NEXT, *ENDS[end], 0.5, 0.5)[:, 0].tolist() == advantage


@pytest.mark.parametrize(
    ("end", "returns"),
    [
        # G_1 = 2 or 2 + 50; G_0 = 1 + (20 / 2 + G_1 / 2) / 2; G_3 = 8 + 30 = 38; G_2 = 4 + (40 / 2 + 38 / 2) / 2
        ("terminated", [1 + 5 + 0.5, 2, 4 + 10 + 9.5, 38]),
        ("truncated", [1 + 5 + 13, 52, 4 + 10 + 9.5, 38]),
        ("both", [1 + 5 + 0.5, 2, 4 + 10 + 9.5, 38]),
    ],
)
def test_lambda_returns_by_hand(end, returns):
    assert lambda_returns(REWARD, NEXT, *ENDS[end], 0.5, 0.5)[:, 0].tolist() == returns


@pytest.mark.parametrize(
    ("end", "n", "returns"),
    [
        ("terminated", 1, [1 + 10, 2, 4 + 20, 8 + 30]),
        ("truncated", 1, [1 + 10, 2 + 50, 4 + 20, 8 + 30]),
        ("terminated", 3, [1 + 1, 2, 4 + 4 + 15, 8 + 30]),
        ("truncated", 3, [1 + 1 + 25, 2 + 50, 4 + 4 + 15, 8 + 30]),
        ("both", 3, [1 + 1, 2, 4 + 4 + 15, 8 + 30]),
    ],
)
def test_n_step_by_hand(end, n, returns):
    assert n_step(REWARD, NEXT, *ENDS[end], 0.5, n)[:, 0].tolist() == returns


def test_a_fake_row_is_passed_over():
    """The same four steps with NEXT_STEP's fake row after the episode's end."""
    reward, value, next_value = column(1, 2, 7, 4, 8), column(10, 20, 7, 30, 40), column(20, 100, 7, 40, 60)
    no, valid = flags(F_, F_, F_, F_, F_), flags(T_, T_, F_, T_, T_)
    at_1 = flags(F_, T_, F_, F_, F_)
    advantage = gae(reward, value, next_value, no, at_1, 0.5, 0.5, valid)
    assert advantage[:, 0].tolist() == [9, 32, 0, -6.5, -2]
    assert lambda_returns(reward, next_value, no, at_1, 0.5, 0.5, valid)[:, 0].tolist() == [19, 52, 0, 23.5, 38]
    assert n_step(reward, next_value, no, at_1, 0.5, 3, valid)[:, 0].tolist() == [27, 52, 0, 23, 38]


def rows_of(step, e):
    """Return environment e's valid rows as plain numbers, with their row in the rollout."""
    return [
        (t, *(float(step[name][t, e]) for name in ("reward", "value", "next_value", "terminated", "truncated")))
        for t in range(len(step["reward"]))
        if step["valid"][t, e]
    ]


def slow_n_step(rows, gamma, n):
    out = {}
    for i, (t, *_) in enumerate(rows):
        total, bootstrap = 0.0, 0.0
        for k, (_, reward, _, next_value, terminated, truncated) in enumerate(rows[i : i + n]):
            total += gamma**k * reward
            bootstrap = gamma ** (k + 1) * next_value * (1 - terminated)
            if terminated or truncated:
                break
        out[t] = total + bootstrap
    return out


def slow_lambda(rows, gamma, lam):
    """Mix the n-step returns: (1 - lam) sum_n lam**(n-1) G^(n), the longest with all the weight that is left."""
    out = {}
    for i, (t, *_) in enumerate(rows):
        longest = next((j for j, r in enumerate(rows[i:]) if r[4] or r[5]), len(rows) - i - 1) + 1
        each = [slow_n_step(rows[i:], gamma, n)[t] for n in range(1, longest + 1)]
        out[t] = sum((1 - lam) * lam**k * g for k, g in enumerate(each[:-1])) + lam ** (longest - 1) * each[-1]
    return out


def slow_gae(rows, gamma, lam):
    out = {}
    for i, (t, *_) in enumerate(rows):
        out[t], weight = 0.0, 1.0
        for _, reward, value, next_value, terminated, truncated in rows[i:]:
            out[t] += weight * (reward + gamma * next_value * (1 - terminated) - value)
            weight *= gamma * lam
            if terminated or truncated:
                break
    return out


@settings(max_examples=80, deadline=None)
@given(
    steps=st.integers(1, 9),
    n=st.integers(1, 11),
    gamma=st.sampled_from([0.0, 0.7, 0.99, 1.0]),
    lam=st.sampled_from([0.0, 0.6, 1.0]),
    end=st.sampled_from([0.0, 0.2, 0.5]),
    fake=st.sampled_from([0.0, 0.3, 0.8]),
    seed=st.integers(0, 2**20),
)
def test_definitions(steps, n, gamma, lam, end, fake, seed):
    rng = np.random.default_rng(seed)
    step = {name: torch.from_numpy(rng.normal(size=(steps, 3))) for name in ("reward", "value", "next_value")}
    step |= {name: torch.from_numpy(rng.random((steps, 3)) < end) for name in ("terminated", "truncated")}
    step["valid"] = torch.from_numpy(rng.random((steps, 3)) >= fake)
    reward, value, next_value, *rest, valid = step.values()
    valid = None if fake == 0.0 else valid
    for mine, slow in (
        (n_step(reward, next_value, *rest, gamma, n, valid), lambda rows: slow_n_step(rows, gamma, n)),
        (lambda_returns(reward, next_value, *rest, gamma, lam, valid), lambda rows: slow_lambda(rows, gamma, lam)),
        (gae(reward, value, next_value, *rest, gamma, lam, valid), lambda rows: slow_gae(rows, gamma, lam)),
    ):
        expected = torch.zeros_like(reward)
        for e in range(3):
            for t, number in slow(rows_of(step, e)).items():
                expected[t, e] = number
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-10)


def test_constant_reward_under_a_time_limit_is_worth_one_over_one_minus_gamma():
    """Reward 1, gamma 0.9, cut every 10 steps: with the true value 10 as bootstrap every return is 10."""
    ones, ten = torch.ones(25, 2), torch.full((25, 2), 10.0)
    cut = (torch.arange(25) % 10 == 9)[:, None].expand(25, 2)
    no = torch.zeros_like(cut)
    for lam in (0.0, 0.9, 1.0):
        torch.testing.assert_close(lambda_returns(ones, ten, no, cut, 0.9, lam), ten)
        torch.testing.assert_close(gae(ones, ten, ten, no, cut, 0.9, lam), torch.zeros(25, 2), rtol=0, atol=1e-5)


def test_group_advantages_by_hand():
    reward = torch.tensor([1.0, 3.0, 2.0, 5.0, 3.0, 4.0, 9.0])
    group = torch.tensor([7, 4, 7, 4, 7, 4, 7])  # two groups of three and a step that is none
    valid = torch.tensor([True] * 6 + [False])
    centred = torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(group_relative_advantage(reward, group, valid), centred / 1.0001)
    assert torch.equal(group_relative_advantage(reward, group, valid, scale=False), centred)
    assert torch.equal(leave_one_out_advantage(reward, group, valid), 1.5 * centred)
    assert torch.equal(group_deviation(reward, group, valid), valid.float())


def test_equal_rewards_move_nothing():
    equal, group = torch.full((7,), 0.1), torch.zeros(7, dtype=torch.int64)
    assert (equal != equal.mean()).any()  # the mean is rounded
    assert (group_relative_advantage(equal, group) == 0.0).all()
    assert (group_relative_advantage(equal, group, scale=False) == 0.0).all()
    assert (leave_one_out_advantage(equal, group) == 0.0).all()


@given(seed=st.integers(0, 2**31), groups=st.integers(1, 5), n=st.integers(2, 24))
def test_group_advantages_are_their_definitions(seed: int, groups: int, n: int):
    rng = torch.Generator().manual_seed(seed)
    reward = torch.randn(3, n, dtype=torch.float64, generator=rng)
    group = torch.randint(groups, (3, n), generator=rng)  # of any sizes, in any order
    valid = torch.rand(3, n, generator=rng) < 0.8
    relative = group_relative_advantage(reward, group, valid)
    left_out = leave_one_out_advantage(reward, group, valid)
    for t in range(3):
        for i in range(n):
            mates = [j for j in range(n) if valid[t, j] and group[t, j] == group[t, i]]
            if not valid[t, i] or len(mates) < 2:
                assert relative[t, i] == left_out[t, i] == 0
                continue
            own = reward[t, mates]
            torch.testing.assert_close(relative[t, i], (reward[t, i] - own.mean()) / (own.std() + 1e-4))
            others = reward[t, [j for j in mates if j != i]]
            torch.testing.assert_close(left_out[t, i], reward[t, i] - others.mean())


def test_no_gradient_reaches_the_value():
    value = torch.ones(3, 1, requires_grad=True)
    no = torch.zeros(3, 1, dtype=torch.bool)
    assert not gae(torch.ones(3, 1), value, value, no, no, 0.9, 0.9).requires_grad
    assert not lambda_returns(torch.ones(3, 1), value, no, no, 0.9, 0.9).requires_grad
    assert not n_step(torch.ones(3, 1), value, no, no, 0.9, 2).requires_grad
