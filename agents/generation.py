"""Writing text token by token: greedy, sampled, or by beam search. Pure functions.

Truncated distribution at temperature T:  p(v) = exp(z_v / T) / sum over w in S of exp(z_w / T)  for v in S, else 0,
where the support S holds the ``top_k`` likeliest tokens, and of those the fewest whose probabilities together reach
``top_p`` (Fan et al. 2018; Holtzman et al. 2020). A uniform u in [0, 1) draws the first token whose cumulated
probability is above u. Beam search ranks by the mean log-probability of a completion's tokens, its end included (Wu et
al. 2016 with length penalty 1).

A completion ends with the first of its ``stops``; what follows is ``pad``. ``model`` predicts the next token from the
features of ``begin`` and ``extend``, so that every token costs one step of the network (a KV cache); a network with a
``forward`` alone would read the whole text again for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from agents.networks.text_model import TextModel
from rlcore import losses
from rlcore.spaces import Tokens
from rlcore.tree import tmap

Choose = Callable[[Tensor, int], Tensor]  # (logits (B, V), place) -> tokens (B,)


class Writer(NamedTuple):
    """What writes: a network, and its features' logits."""

    trunk: TextModel
    logits: Callable[[Tensor], Tensor]  # (B, F) -> (B, V), the lowest finite number for tokens never to be written
    stops: Sequence[int]  # tokens that end a completion
    pad: int


def allowed(space: Tokens) -> Tensor:
    """Return which tokens may be written, (V,) bool: all but padding and what begins a text."""
    marks = torch.ones(space.vocabulary, dtype=torch.bool)
    for token in {space.pad, space.bos} - {None, space.eos}:
        marks[token] = False
    return marks


def stops(space: Tokens) -> list[int]:
    """Return the tokens that end a completion."""
    return [] if space.eos is None else [space.eos]


class Decoding(NamedTuple):
    """How a text is written."""

    length: int  # most tokens
    temperature: float = 0.0  # 0: the likeliest token
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    beam: int = 0  # 0: no search
    n: int = 1  # completions of each prompt


def support(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Return which tokens truncation leaves, (..., V) bool; the likeliest always stays.

    Args:
        logits: (..., V).
        temperature: above 0; it matters to ``top_p`` only.
        top_k: how many stay, ties by index; 0: all.
        top_p: the mass, of what ``top_k`` left, that those which stay reach; 1: all.
    """
    ordered, order = torch.sort(logits / temperature, dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    stays = rank < (top_k or logits.shape[-1])
    probs = losses.masked(ordered, stays).softmax(-1)
    before = probs.cumsum(-1) - probs  # the mass of likelier tokens
    stays = stays & ((before < top_p) | (rank == 0)) if top_p < 1 else stays.expand_as(logits)
    return torch.zeros_like(stays).scatter(-1, order, stays)


def log_probs(logits: Tensor, temperature: float = 1.0, kept: Tensor | None = None) -> Tensor:
    """Return the truncated log-probabilities (..., V); outside ``kept`` (..., V) bool the lowest finite number."""
    lowest = torch.finfo(logits.dtype).min  # also where the temperature takes it below: 0 times it must stay 0
    return losses.masked((logits / temperature).clamp_min(lowest), kept).log_softmax(-1)


def truncated(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Return the log-probabilities (..., V) that tokens are drawn from; see `support` and `log_probs`."""
    return log_probs(logits, temperature, support(logits, temperature, top_k, top_p) if top_k or top_p < 1 else None)


def draw(logp: Tensor, uniform: Tensor) -> Tensor:
    """Return tokens (...) int64 of log-probabilities (..., V), by inverse CDF from uniforms (...) in [0, 1)."""
    probs = logp.exp()
    cdf = probs.cumsum(-1)
    above = (cdf > uniform.unsqueeze(-1) * cdf[..., -1:]) & (probs > 0)  # rounding must not draw the impossible
    return above.to(torch.uint8).argmax(-1)  # the first


def truncates(top_k: int, top_p: float) -> bool:
    """Whether these leave out any token."""
    return top_k > 0 or top_p < 1


def greedy(logits: Tensor, place: int) -> Tensor:
    """Choose the likeliest tokens (B,) of logits (B, V)."""
    return logits.argmax(-1)


def sampler(uniform: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Choose:
    """Return what chooses by the uniforms (B, L) of each place."""
    return lambda logits, place: draw(truncated(logits, temperature, top_k, top_p), uniform[:, place])


def is_any(tokens: Tensor, these: Sequence[int]) -> Tensor:
    """Return which tokens (...) are among a few, (...) bool."""
    found = torch.zeros_like(tokens, dtype=torch.bool)
    for token in these:
        found = found | (tokens == token)
    return found


def written(completion: Tensor, ends: Sequence[int]) -> Tensor:
    """Return which places of completions (..., L) hold tokens, the one that ends included, (..., L) bool."""
    end = is_any(completion, ends).long()
    return (end.cumsum(-1) - end) == 0


def complete(writer: Writer, prompt: Tensor, length: int, choose: Choose = greedy) -> Tensor:
    """Return completions (B, length) of prompts (B, P), each token chosen from its logits."""
    features, state = writer.trunk.begin(prompt, length)
    tokens: list[Tensor] = []
    ended = torch.zeros_like(prompt[:, 0], dtype=torch.bool)
    for place in range(length):
        if place:
            features, state = writer.trunk.extend(tokens[-1], state)
        tokens.append(choose(writer.logits(features), place).masked_fill(ended, writer.pad))
        ended = ended | is_any(tokens[-1], writer.stops)
    return torch.stack(tokens, 1)


def beam_search(writer: Writer, prompt: Tensor, length: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the best completions (B, width, length) found, best first, and their mean log-probabilities (B, width).

    A score of -inf marks a place of the beam that no completion has filled.
    """
    features, state = writer.trunk.begin(prompt, length)
    rows = prompt.shape[0]
    features, state = tmap(lambda x: x.repeat_interleave(width, 0), (features, state))  # (B * W, ...)
    tokens = prompt.new_full((rows, width, length), writer.pad)
    total = torch.where(torch.arange(width, device=prompt.device) == 0, 0.0, -torch.inf).expand(rows, width)  # (B, W)
    lengths = torch.zeros_like(total)
    ended = torch.zeros_like(total, dtype=torch.bool)
    score = total
    for place in range(length):
        if place:
            features, state = writer.trunk.extend(tokens[:, :, place - 1].flatten(), state)
        logp = writer.logits(features).log_softmax(-1).view(rows, width, -1)
        size = logp.shape[-1]
        # What has ended goes on as it is, in one way only.
        stay = torch.where(torch.arange(size, device=prompt.device) == writer.pad, 0.0, -torch.inf)
        sums = total[..., None] + torch.where(ended[..., None], stay, logp)  # (B, W, V)
        counts = (lengths + ~ended)[..., None].expand_as(sums)
        score, best = (sums / counts).flatten(1).topk(width)  # (B, W)
        beam, token = best // size, best % size
        total, lengths = sums.flatten(1).gather(1, best), counts.flatten(1).gather(1, best)
        tokens = tokens.gather(1, beam[..., None].expand_as(tokens))
        tokens[:, :, place] = token
        ended = ended.gather(1, beam) | is_any(token, writer.stops)
        source = (beam + width * torch.arange(rows, device=prompt.device)[:, None]).flatten()
        state = tmap(lambda x, source=source: x.index_select(0, source), state)
    return tokens, score


@torch.no_grad()
def generate(writer: Writer, prompt: Tensor, how: Decoding, rng: torch.Generator) -> Tensor:
    """Return ``n`` completions (B, n, length) of each prompt (B, P), as ``how`` says."""
    if how.beam:
        return beam_search(writer, prompt, how.length, how.beam)[0][:, : how.n]
    rows = prompt.repeat_interleave(how.n, 0)  # (B * n, P)
    choose = greedy
    if how.temperature:
        uniform = torch.rand(len(rows), how.length, generator=rng, device=rng.device)
        choose = sampler(uniform, how.temperature, how.top_k, how.top_p)
    return complete(writer, rows, how.length, choose).unflatten(0, (len(prompt), how.n))


def generate_on(writer: Writer, prompt: Tensor, how: Decoding, rng: torch.Generator, context: int) -> Tensor:
    """Return completions as `generate` does, of any length: what no longer fits goes on from the last half context."""
    room = context - prompt.shape[1]
    if how.length <= room:
        return generate(writer, prompt, how, rng)
    endless = writer._replace(stops=[])
    text, start = prompt.repeat_interleave(how.n, 0), prompt.shape[1]  # (B * n, ...)
    while (missing := start + how.length - text.shape[1]) > 0:
        kept = text if room > 0 else text[:, -max(1, context // 2) :]
        some = how._replace(length=min(missing, context - kept.shape[1]), n=1)
        text, room = torch.cat([text, generate(endless, kept, some, rng)[:, 0]], 1), 0
    completion = text[:, start:].unflatten(0, (len(prompt), how.n))
    return completion.masked_fill(~written(completion, writer.stops), writer.pad)
