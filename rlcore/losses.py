"""Losses and their targets: pure functions of tensors, one result per item, nothing averaged over a batch.

Names carry their time: ``q_tm1`` and ``a_tm1`` were before a step, ``r_t``, ``discount_t`` and ``q_t`` came with
and after it. B items, A actions, Z atoms, M quantiles. Targets carry no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def masked(q: Tensor, mask: Tensor | None) -> Tensor:
    """Return values (..., A) with the lowest finite number where ``mask`` (..., A) is False; None: unchanged.

    Finite, because a terminal state may allow nothing: discount 0 times its maximum must stay 0.
    """
    return q if mask is None else q.masked_fill(mask.logical_not(), torch.finfo(q.dtype).min)


def q_learning_target(r_t: Tensor, discount_t: Tensor, q_t: Tensor, mask_t: Tensor | None = None) -> Tensor:
    """Return ``r_t + discount_t * max_a q_t[a]`` (B,) over the allowed actions (Watkins 1989).

    Args:
        r_t: (B,).
        discount_t: (B,), 0 where the episode terminated.
        q_t: (B, A), the target network's values of the next state.
        mask_t: (B, A) bool, True where the next state allows an action.
    """
    return (r_t + discount_t * masked(q_t, mask_t).amax(-1)).detach()


def double_q_target(
    r_t: Tensor, discount_t: Tensor, q_t: Tensor, selector_t: Tensor, mask_t: Tensor | None = None
) -> Tensor:
    """Return ``r_t + discount_t * q_t[argmax_a selector_t[a]]`` (B,) (van Hasselt et al. 2016).

    As `q_learning_target`, but ``selector_t`` (B, A), the online network's values, choose the action that
    the target network's ``q_t`` value.
    """
    a_t = masked(selector_t, mask_t).argmax(-1, keepdim=True)
    return (r_t + discount_t * masked(q_t, mask_t).gather(-1, a_t).squeeze(-1)).detach()


def soft_value(q: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """Return ``temperature * log sum_a exp(q[a] / temperature)`` (B,) over the allowed actions of values (B, A).

    With pi = softmax(q / temperature) that is ``sum_a pi[a] (q[a] - temperature log pi[a])``, the value of pi with
    its entropy (Haarnoja et al. 2017, equation 3). It tends to the maximum as the temperature tends to 0.
    """
    q = masked(q, mask)
    best = q.amax(-1, keepdim=True)
    return best.squeeze(-1) + temperature * ((q - best) / temperature).logsumexp(-1)


def scaled_log_policy(q: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """Return ``temperature * log softmax(q / temperature)`` (B, A) over the allowed actions of values (B, A)."""
    return masked(q, mask) - soft_value(q, temperature, mask).unsqueeze(-1)


def td_error(q_tm1: Tensor, a_tm1: Tensor, target_tm1: Tensor) -> Tensor:
    """Return ``target_tm1 - q_tm1[a_tm1]`` (B,) for values (B, A), actions (B,) int64 and targets (B,)."""
    return target_tm1.detach() - q_tm1.gather(-1, a_tm1.unsqueeze(-1)).squeeze(-1)


def huber(error: Tensor, delta: float = 1.0) -> Tensor:
    """Return error**2 / 2 within delta of 0, else delta (abs(error) - delta / 2), elementwise (Huber 1964)."""
    return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=delta)


def categorical_projection(atoms: Tensor, target_atoms: Tensor, probs: Tensor) -> Tensor:
    """Return a distribution's projection (B, Z) onto fixed atoms (Bellemare et al. 2017, equation 7)::

        out[i] = sum_j probs[j] * clip(1 - |clip(target_atoms[j], v_min, v_max) - atoms[i]| / spacing, 0, 1)

    Every mass goes to its two neighbours by nearness, what lies outside to the end; the total is kept.

    Args:
        atoms: (Z,), evenly spaced and increasing, Z >= 2.
        target_atoms: (B, Z'), such as ``r_t + discount_t * atoms``.
        probs: (B, Z'), their probabilities.
    """
    spacing = (atoms[-1] - atoms[0]) / (atoms.shape[0] - 1)
    position = (torch.clamp(target_atoms, atoms[0], atoms[-1]) - atoms[0]) / spacing  # (B, Z') in [0, Z - 1]
    grid = torch.arange(atoms.shape[0], dtype=atoms.dtype, device=atoms.device)
    share = (1.0 - (position[:, :, None] - grid).abs()).clamp_min(0.0)  # (B, Z', Z)
    return torch.bmm(probs[:, None, :], share).squeeze(1).detach()


def kl_divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Return ``sum_i target[i] log(target[i] / softmax(logits)[i])`` (B,), with 0 log 0 = 0, for two (B, Z)."""
    target = target.detach()
    return (torch.xlogy(target, target) - target * logits.log_softmax(-1)).sum(-1)


def midpoints(n: int) -> Tensor:
    """Return ``(i - 1/2) / n`` for i = 1 ... n, the fractions whose quantiles represent a distribution best.

    By the 1-Wasserstein distance (Dabney et al. 2018, lemma 2).
    """
    return (torch.arange(n) + 0.5) / n


def quantile_huber(quantiles_tm1: Tensor, target_tm1: Tensor, tau: Tensor, kappa: float = 1.0) -> Tensor:
    """Return the quantile Huber loss (B,) (Dabney et al. 2018, equations 9 and 10)::

        u_ij = target_tm1[j] - quantiles_tm1[i]
        loss = sum_i mean_j |tau[i] - 1{u_ij < 0}| * huber(u_ij, kappa) / kappa

    Args:
        quantiles_tm1: (B, M), predicted for the action taken.
        target_tm1: (B, M'), samples or quantiles of the target distribution.
        tau: (M,) or (B, M), the predictions' quantile fractions, in (0, 1).
        kappa: where the loss turns from quadratic to linear, above 0.
    """
    error = target_tm1.detach().unsqueeze(-2) - quantiles_tm1.unsqueeze(-1)  # (B, M, M')
    weight = (tau.unsqueeze(-1) - (error < 0).to(error.dtype)).abs()
    return (weight * huber(error, kappa) / kappa).mean(-1).sum(-1)


def clipped_surrogate(log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Return PPO's policy loss, elementwise (Schulman et al. 2017, equation 7, negated).

    With ``ratio = exp(log_prob - old_log_prob)``::

        loss = -min(ratio * advantage, clamp(ratio, 1 - clip, 1 + clip) * advantage)
    """
    ratio = (log_prob - old_log_prob).exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage)


def clipped_value_loss(value: Tensor, old_value: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Return half the larger of two squared errors, of ``value`` and of ``value`` held within clip of ``old_value``."""
    held = old_value + (value - old_value).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - returns).square(), (held - returns).square())


def token_cross_entropy(logits: Tensor, target: Tensor, ignore: int = -100) -> tuple[Tensor, Tensor]:
    """Return (sum of -log p(target) over counted positions, their number), each a 0-dim tensor.

    Args:
        logits: (..., V).
        target: (...) int64; positions equal to ``ignore`` count in neither.
        ignore: the mark of padding and of positions without loss.
    """
    total = F.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=ignore, reduction="sum")
    return total, (target != ignore).sum()


def k3_divergence(log_prob: Tensor, other_log_prob: Tensor) -> Tensor:
    """Return ``ratio - 1 - log ratio`` with ``ratio = exp(other_log_prob - log_prob)``, elementwise.

    For actions drawn from the first distribution its mean is KL(first, other); it is never negative (Schulman 2020,
    "Approximating KL divergence", estimator k3; Shao et al. 2024, equation 4).
    """
    log_ratio = other_log_prob - log_prob
    return log_ratio.expm1() - log_ratio


def entropy(log_probs: Tensor) -> Tensor:
    """Return ``-sum_v p(v) log p(v)`` (...) of log-probabilities (..., V), finite also where p is 0."""
    return -(log_probs.exp() * log_probs).sum(-1)


def chosen(log_probs: Tensor, token: Tensor) -> Tensor:
    """Return the log-probabilities (...) of tokens (...) int64 among those of all, (..., V)."""
    return log_probs.gather(-1, token.unsqueeze(-1)).squeeze(-1)
