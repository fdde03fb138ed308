"""Returns and advantages of rollouts: pure functions of time-major (T, N) tensors.

Row t holds step t of N environments: ``reward`` is r_{t+1}, ``value`` V(s_t), and ``next_value`` the value of the
step's true successor, before any reset: at a truncation it is the value to bootstrap from. A step that is both
terminated and truncated does not bootstrap. Rows where ``valid`` is False are no steps: the results elsewhere
are those without them, and 0 there; None: all are valid. Results carry no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
def group_relative_advantage(reward: Tensor, group: Tensor, valid: Tensor | None = None, scale: bool = True) -> Tensor:
    """Return each reward less its group's mean, by the group's deviation: advantages of answers to one question.

    ``(reward - mean) / (deviation + 1e-4)`` (Shao et al. 2024, GRPO); without ``scale`` ``reward - mean`` (Liu et al.
    2025, Dr. GRPO). Equal rewards give exactly 0.

    Args:
        reward: (..., N).
        group: (..., N) int64; rewards with the same number are compared.
        valid: (..., N) bool; None: all are.
        scale: divide by the deviation.
    """
    centred, _ = _centred(reward, group, valid)
    return centred / (group_deviation(reward, group, valid) + 1e-4) if scale else centred


@torch.no_grad()
def leave_one_out_advantage(reward: Tensor, group: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return each reward less the mean of the others of its group, (..., N) (Kool et al. 2019, RLOO).

    Takes what `group_relative_advantage` takes. A group of one gives 0: there is nothing to compare.
    """
    centred, same = _centred(reward, group, valid)
    count = same.sum(-1)
    return centred * (count / (count - 1).clamp(min=1))


@torch.no_grad()
def group_deviation(reward: Tensor, group: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the sample deviation (..., N) of the rewards of each one's group; of a group of one 0."""
    centred, same = _centred(reward, group, valid)
    squares = (same * centred.square()[..., None, :]).sum(-1)
    return (squares / (same.sum(-1) - 1).clamp(min=1)).sqrt()


def _centred(reward: Tensor, group: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return rewards less their groups' means (..., N), 0 where not valid, and who is in whose group (..., N, N)."""
    valid = torch.ones_like(reward, dtype=torch.bool) if valid is None else valid
    same = (group[..., :, None] == group[..., None, :]) & valid[..., :, None] & valid[..., None, :]
    others = reward[..., None, :].expand(same.shape)
    # Equal rewards less one of them become exact zeros, whatever their mean rounds to.
    least = others.masked_fill(~same, torch.inf).amin(-1)
    above = (others - least[..., None]).masked_fill(~same, 0.0)
    mean = above.sum(-1) / same.sum(-1).clamp(min=1)
    return (reward - least - mean).masked_fill(~valid, 0.0), same


def _accumulate(delta: Tensor, decay: float, stop: Tensor, valid: Tensor | None) -> Tensor:
    """Return x_t = delta_t + decay x_{t+1}, without the second term at a stop, passing over invalid rows (T, N)."""
    out = torch.empty_like(delta)
    following = torch.zeros_like(delta[0])
    rows = zip(
        delta.unbind(),
        stop.unbind(),
        out.unbind(),
        [None] * len(delta) if valid is None else valid.unbind(),
        strict=True,
    )
    for now, last, result, real in reversed(list(rows)):
        torch.add(now, following.masked_fill(last, 0.0), alpha=decay, out=result)
        following = result if real is None else torch.where(real, result, following)
    return out if valid is None else torch.where(valid, out, 0.0)


def _successor(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row of each row's next valid one, within [0, T), and whether there is none, each (T, N)."""
    steps = len(valid)
    row = torch.arange(1, steps + 1, device=valid.device)[:, None]  # (T, 1)
    after = torch.where(valid[1:], row[:-1], steps)  # (T - 1, N)
    after = torch.cat([after, torch.full_like(valid[:1], steps, dtype=torch.int64)])
    after = after.flip(0).cummin(0).values.flip(0)
    return after.clamp(max=steps - 1), after == steps
