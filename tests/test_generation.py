"""Sampling, greedy writing and beam search against probabilities by hand, slow references and exhaustive search."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from agents import generation
from agents.generation import Writer, beam_search, complete, draw, greedy, sampler, support, truncated, written
from agents.networks import build_network
from rlcore.config import NetworkConfig
from rlcore.spaces import Tokens

PAD, BOS, EOS = 0, 2, 3
SPACE = Tokens(9, 6, pad=PAD, bos=BOS, eos=EOS)
NETWORKS: dict[str, dict[str, Any]] = {
    "decoder": {"layers": 2, "heads": 2, "width": 16, "context": 16},
    "encoder_decoder": {"layers": 2, "heads": 2, "width": 16, "positions": "rotary", "context": 16},
    "text_gru": {"layers": 2, "width": 16},
}


def writer(name: str, seed: int = 0, space: Tokens = SPACE, scale: float = 3.0) -> Writer:
    """Return an untrained network whose distributions are far from uniform."""
    torch.manual_seed(seed)
    trunk: Any = build_network(NetworkConfig(name=name, kwargs=NETWORKS[name]), space, per_token=True).eval()
    for parameter in trunk.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=2 / parameter.shape[1] ** 0.5)
    weight = torch.randn(space.vocabulary, trunk.out_features) * scale / trunk.out_features**0.5
    allowed = torch.ones(space.vocabulary, dtype=torch.bool)
    allowed[[PAD, BOS]] = False

    def logits(features: Tensor) -> Tensor:
        return (features @ weight.T).masked_fill(~allowed, torch.finfo(torch.float32).min)

    return Writer(trunk, logits, [EOS], PAD)


def prompts(rows: int, seed: int = 0) -> Tensor:
    """Return prompts of 1 to 6 tokens, padded on the left."""
    rng = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 9, (rows, 6), generator=rng)
    lengths = torch.randint(1, 7, (rows, 1), generator=rng)
    return tokens.masked_fill(torch.arange(6) < 6 - lengths, PAD)


@torch.no_grad()
def recomputed(w: Writer, prompt: Tensor, length: int, choose: generation.Choose) -> Tensor:
    """Write without a memory: every token from the whole text before it, one prompt at a time and without padding."""
    rows = []
    for i, row in enumerate(prompt):
        real, tokens = row[row != PAD][None], torch.full((1, length), PAD)
        for place in range(length):
            logits = w.logits(w.trunk.given(real, tokens)[:, place])
            tokens[:, place] = choose(logits.expand(len(prompt), -1), place)[i]
            if tokens[0, place] == EOS:
                break
        rows.append(tokens)
    return torch.cat(rows)


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("sampled", [False, True])
def test_writing_with_a_memory_equals_writing_without_token_for_token(name: str, sampled: bool):
    w, prompt = writer(name), prompts(24)
    uniform = torch.rand(24, 8, generator=torch.Generator().manual_seed(1))
    choose = sampler(uniform, 0.9, 5, 0.95) if sampled else greedy
    cached = complete(w, prompt, 8, choose)
    assert torch.equal(cached, recomputed(w, prompt, 8, choose))
    assert sampled is False or len(set(cached[:, 0].tolist())) > 2
    assert (cached == EOS).any(), "nothing ended: this tests less than it should"


def test_nothing_is_written_after_the_end():
    completion = complete(writer("text_gru"), prompts(64), 8)
    for row in completion.tolist():
        end = row.index(EOS) if EOS in row else 7
        assert PAD not in row[: end + 1] and BOS not in row
        assert set(row[end + 1 :]) <= {PAD}


def test_what_counts_ends_with_the_first_end():
    completion = torch.tensor([[4, 3, 3, 0], [4, 5, 6, 7], [3, 4, 3, 0]])
    expected = [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert written(completion, [EOS]).tolist() == expected
    assert written(completion, []).all()
    assert written(completion, [5, EOS])[1].tolist() == [True, True, False, False]


def test_truncation_by_hand():
    probs = torch.tensor([0.1, 0.4, 0.15, 0.05, 0.3])
    kept = {
        (0, 1.0): [0.1, 0.4, 0.15, 0.05, 0.3],
        (2, 1.0): [0, 4 / 7, 0, 0, 3 / 7],
        (0, 0.69): [0, 4 / 7, 0, 0, 3 / 7],  # 0.4 + 0.3 reach it
        (0, 0.71): [0, 0.4 / 0.85, 0.15 / 0.85, 0, 0.3 / 0.85],
        (2, 0.5): [0, 1, 0, 0, 0],  # of what two tokens leave, the first has 4 / 7
        (9, 1e-9): [0, 1, 0, 0, 0],
        (1, 1.0): [0, 1, 0, 0, 0],
    }
    for (top_k, top_p), expected in kept.items():
        torch.testing.assert_close(truncated(probs.log(), 1.0, top_k, top_p).exp(), torch.tensor(expected).float())
    hot = truncated(probs.log(), 2.0).exp()
    torch.testing.assert_close(hot, probs.sqrt() / probs.sqrt().sum())
    # The temperature comes first: sqrt(0.4) and sqrt(0.3) are 0.56 of all, and no longer 0.7.
    assert support(probs.log(), 2.0, 0, 0.6).sum() == 3
    assert support(torch.zeros(4), 1.0, 2).tolist() == [True, True, False, False]  # ties by index, never more than k


@given(seed=st.integers(0, 2**31), top_k=st.integers(0, 8), top_p=st.floats(0.01, 1.0), hot=st.floats(0.1, 5.0))
def test_truncated_distributions_are_distributions(seed: int, top_k: int, top_p: float, hot: float):
    logits = 4 * torch.randn(5, 7, generator=torch.Generator().manual_seed(seed))
    logits[:, 0] = torch.finfo(torch.float32).min  # a token never to be written
    kept, logp = support(logits, hot, top_k, top_p), truncated(logits, hot, top_k, top_p)
    assert torch.isfinite(logp).all()
    torch.testing.assert_close(logp.exp().sum(-1), torch.ones(5))
    for p, stays in zip((logits.double() / hot).softmax(-1), kept, strict=True):
        best = p.sort(descending=True, stable=True).indices[: top_k or 7].tolist()
        share = (p[best] / p[best].sum()).tolist()
        fewest = next(n for n in range(1, 8) if n == len(best) or sum(share[:n]) >= top_p)
        near = min(abs(sum(share[:n]) - top_p) for n in range(1, len(best) + 1)) < 1e-5  # then rounding may decide
        assert near or top_p == 1 or set(stays.nonzero()[:, 0].tolist()) == set(best[:fewest])


def test_tokens_are_drawn_as_often_as_they_are_likely():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=rng)
    for options in ((1.0, 0, 1.0), (0.7, 4, 1.0), (1.5, 5, 0.8)):
        logp = truncated(logits, *options)
        tokens = draw(logp.expand(100_000, 6), torch.rand(100_000, generator=rng))
        counts, expected = torch.bincount(tokens, minlength=6), logp.exp().double() * 100_000
        possible = expected > 0
        assert counts[~possible].sum() == 0
        f_exp = (expected[possible] * (100_000 / expected[possible].sum())).numpy()
        assert stats.chisquare(counts[possible].numpy(), f_exp).pvalue > 1e-3


def test_the_ends_of_the_uniforms_draw_possible_tokens():
    logp = truncated(torch.tensor([-torch.inf, 1.0, 0.0, -torch.inf]).clamp_min(torch.finfo(torch.float32).min))
    ends = torch.tensor([0.0, 1 - 2**-24])
    assert draw(logp.expand(2, 4), ends).tolist() == [1, 2]
    many = torch.randn(200, 50, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    many[:, -1] = torch.finfo(torch.float32).min
    assert (draw(many, torch.full((200,), 1 - 2**-24)) == 48).all()


@torch.no_grad()
def exhaustive(w: Writer, prompt: Tensor, length: int, tokens: list[int]) -> dict[tuple[int, ...], float]:
    """Return the mean log-probability of every completion of one prompt there is."""
    scores = {}
    for n in range(1, length + 1):
        for body in itertools.product(tokens, repeat=n):
            if EOS in body[:-1] or (n < length and body[-1] != EOS):
                continue
            full = torch.tensor([[*body, *[PAD] * (length - n)]])
            logp = w.logits(w.trunk.given(prompt[None], full)).log_softmax(-1)[0]
            scores[tuple(full[0].tolist())] = sum(float(logp[i, token]) for i, token in enumerate(body)) / n
    return scores


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_wide_beam_finds_what_exhaustive_search_finds(name: str):
    space = Tokens(6, 3, pad=PAD, bos=BOS, eos=EOS)
    w, prompt = writer(name, seed=3, space=space), torch.tensor([[0, 4, 5], [5, 4, 4]])
    tokens, scores = beam_search(w, prompt, 3, 64)
    for row in range(2):
        best = sorted(exhaustive(w, prompt[row], 3, [1, 3, 4, 5]).items(), key=lambda item: -item[1])
        found = [tuple(t) for t in tokens[row].tolist()]
        assert found[: len(best)] == [completion for completion, _ in best]
        torch.testing.assert_close(scores[row, : len(best)], torch.tensor([score for _, score in best]))
        assert (scores[row, len(best) :] < -1e30).all()


def test_a_narrow_beam_is_greedy_at_width_1_and_never_worse_wider():
    w, prompt = writer("decoder", seed=1), prompts(32, seed=5)
    assert torch.equal(beam_search(w, prompt, 5, 1)[0][:, 0], complete(w, prompt, 5))
    wide = beam_search(w, prompt, 5, 4)[1]
    assert (wide.diff(dim=1) <= 0).all(), "best first"
    assert wide[:, 0].mean() >= beam_search(w, prompt, 5, 1)[1][:, 0].mean()
    assert math.isfinite(float(wide.sum()))
