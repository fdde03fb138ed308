"""Returns and advantages of rollouts: pure functions of time-major (T, N) tensors.

Row t holds step t of N environments: ``reward`` is r_{t+1}, ``value`` V(s_t), and ``next_value`` the value of the
step's true successor, before any reset: at a truncation it is the value to bootstrap from. A step that is both
terminated and truncated does not bootstrap. Rows where ``valid`` is False are no steps: the results elsewhere
are those without them, and 0 there; None: all are valid. Results carry no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlcore.errors import UserError


@torch.no_grad()
def n_step(
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    n: int,
    valid: Tensor | None = None,
) -> Tensor:
    """Return the n-step returns (T, N) (Sutton and Barto, 2nd edition, equation 7.1)::

        G_t = r_{t+1} + gamma r_{t+2} + ... + gamma**(k-1) r_{t+k} + gamma**k (1 - terminated) V(s_{t+k})

    where k is n, or less where the episode or the rollout ends first.
    """
    successor, last = _successor(torch.ones_like(terminated) if valid is None else valid)
    stop = terminated | truncated | last
    bootstrap = returns = reward + (gamma * next_value).masked_fill(terminated, 0.0)
    for _ in range(n - 1):
        returns = torch.where(stop, bootstrap, reward + gamma * returns.gather(0, successor))
    return returns if valid is None else torch.where(valid, returns, 0.0)


@torch.no_grad()
def lambda_returns(
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    lam: float,
    valid: Tensor | None = None,
) -> Tensor:
    """Return the lambda-returns (T, N) (Sutton and Barto, 2nd edition, section 12.1; Daley and Amato 2019)::

        G_t = r_{t+1} + gamma (1 - terminated) ((1 - lam) V(s_{t+1}) + lam G_{t+1})

    with G_{t+1} = V(s_{t+1}) at a truncation and at the rollout's end. For Q(lambda) ``next_value`` is
    max_a Q(s_{t+1}, a).
    """
    stop = terminated | truncated | _successor(torch.ones_like(terminated) if valid is None else valid)[1]
    bootstrap = (gamma * next_value).masked_fill(terminated, 0.0)
    return _accumulate(reward + torch.where(stop, bootstrap, (1.0 - lam) * bootstrap), gamma * lam, stop, valid)


@torch.no_grad()
def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    lam: float,
    valid: Tensor | None = None,
) -> Tensor:
    """Return the generalised advantages (T, N) (Schulman et al. 2016, equations 11 and 16)::

        delta_t = r_{t+1} + gamma (1 - terminated) V(s_{t+1}) - V(s_t)
        A_t = delta_t + gamma lam (1 - (terminated or truncated)) A_{t+1}

    with A = 0 after the rollout's end. ``A + value`` are the returns to fit the value to.
    """
    delta = reward + (gamma * next_value).masked_fill(terminated, 0.0) - value
    return _accumulate(delta, gamma * lam, terminated | truncated, valid)


@torch.no_grad()
def group_advantage(reward: Tensor, scale: bool = True) -> Tensor:
    """Return group-relative advantages (..., G) of G rewards for answers to one question.

    ``(reward - mean) / (std + 1e-4)`` with the sample deviation (Shao et al. 2024, GRPO); without ``scale``
    ``reward - mean`` (Liu et al. 2025, Dr. GRPO). Equal rewards give exactly 0.

    Raises:
        UserError: G is below 2.
    """
    centred = _centre(reward)
    return centred / (reward.std(-1, keepdim=True) + 1e-4) if scale else centred


@torch.no_grad()
def leave_one_out(reward: Tensor) -> Tensor:
    """Return each reward less the mean of the G - 1 others, (..., G) (Kool et al. 2019, RLOO).

    Raises:
        UserError: G is below 2.
    """
    group = reward.shape[-1]
    return _centre(reward) * (group / (group - 1))


def _centre(reward: Tensor) -> Tensor:
    if reward.shape[-1] < 2:
        raise UserError(f"group advantage: {reward.shape[-1]} reward a group; expected at least 2 to compare")
    shifted = reward - reward[..., :1]  # equal rewards become exact zeros, whatever their mean rounds to
    return shifted - shifted.mean(-1, keepdim=True)


def _accumulate(delta: Tensor, decay: float, stop: Tensor, valid: Tensor | None) -> Tensor:
    """Return x_t = delta_t + decay x_{t+1}, without the second term at a stop, passing over invalid rows (T, N)."""
    out = torch.empty_like(delta)
    following = torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        torch.add(delta[t], following.masked_fill(stop[t], 0.0), alpha=decay, out=out[t])
        following = out[t] if valid is None else torch.where(valid[t], out[t], following)
    return out if valid is None else torch.where(valid, out, 0.0)


def _successor(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row of each row's next valid one, within [0, T), and whether there is none, each (T, N)."""
    steps = len(valid)
    row = torch.arange(1, steps + 1, device=valid.device)[:, None]  # (T, 1)
    after = torch.where(valid[1:], row[:-1], steps)  # (T - 1, N)
    after = torch.cat([after, torch.full_like(valid[:1], steps, dtype=torch.int64)])
    after = after.flip(0).cummin(0).values.flip(0)
    return after.clamp(max=steps - 1), after == steps
