"""The bag of n-grams against one counted in plain Python, and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.configs.supervised import SupervisedConfig
from agents.networks.ngrams import NGrams, rows
from agents.supervised import Supervised
from rlcore.errors import UserError
from rlcore.spaces import Tokens
from rlcore.types import Spec

SPACE = Tokens(11, 6, pad=0, bos=2, eos=3)


def by_hand(text: list[int], n: int, vocabulary: int, buckets: int) -> list[int]:
    """Return the rows of a text's n-grams, as the docstring of `rows` says."""
    found = []
    for k in range(1, n + 1):
        for start in range(len(text) - k + 1):
            code = text[start]
            for token in text[start + 1 : start + k]:
                code = (1_000_003 * code + token + 1) % (2**31 - 1)
            found.append(text[start] if k == 1 else vocabulary + code % buckets)
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 10), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(1, 50),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_features_are_the_scaled_sum_over_all_n_grams_wherever_padding_is(
    text: list[int], n: int, buckets: int, before: int, after: int
):
    torch.manual_seed(1000)
    network = NGrams(SPACE, n=n, buckets=buckets, width=5).double()
    features = network(torch.tensor([[0] * before + text + [0] * after]))
    table = network.embedding.weight
    found = by_hand(text, n, 11, buckets)
    wanted = sum((table[row] for row in found), torch.zeros(5, dtype=torch.float64)) / math.sqrt(len(found))
    torch.testing.assert_close(features[0], wanted, rtol=0, atol=1e-6)


def test_rows_by_hand():
    found = rows(torch.tensor([[5, 7, 0]]), 2, 0, 11, 1000)
    assert found.tolist() == [[5, 7, 0, 11 + (5 * 1_000_003 + 8) % 1000, 0]]


def test_pairs_know_their_order_and_lie_in_different_rows():
    """A thousand different pairs share few of 2^18 buckets."""
    pairs = torch.cartesian_prod(torch.arange(20_000, 20_032), torch.arange(100, 132))
    held = rows(pairs, 2, 0, 30_000, 2**18)[:, 2]
    assert len(held.unique()) > 1000 and held.min() >= 30_000 and held.max() < 30_000 + 2**18
    assert not torch.equal(rows(pairs.flip(1), 2, 0, 30_000, 2**18)[:, 2], held)


def test_a_text_of_padding_alone_has_features_of_zero():
    assert torch.equal(NGrams(SPACE, width=3)(torch.zeros(2, 4, dtype=torch.int64)), torch.zeros(2, 3))


def test_a_word_order_is_learnt_that_single_tokens_cannot_tell():
    """Which of two tokens comes first: pairs tell, single tokens do not."""
    obs = torch.tensor([[2, 5, 6, 3, 0, 0], [2, 6, 5, 3, 0, 0]])
    for n, told in ((1, False), (2, True)):
        network = NGrams(SPACE, n=n, buckets=1000)
        assert torch.allclose(network(obs)[0], network(obs)[1], atol=1e-6) is not told


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"n": 0}, "network.kwargs.n: got 0, expected a positive integer"),
        ({"buckets": 2.5}, "network.kwargs.buckets: got 2.5, expected a positive integer"),
        ({"width": True}, "network.kwargs.width: got True, expected a positive integer"),
        ({"dropout": 1}, "network.kwargs.dropout: got 1, expected a probability below 1"),
    ],
)
def test_options_out_of_range_are_refused(kwargs: dict[str, Any], said: str):
    with pytest.raises(UserError, match=said):
        NGrams(SPACE, **kwargs)


def test_other_spaces_and_the_prediction_of_each_token_are_refused():
    with pytest.raises(UserError, match="network 'ngrams' cannot read"):
        NGrams(spaces.Discrete(3))
    spec = Spec(SPACE, spaces.Box(-1, 1, (6, 11)), loss=lambda prediction, target: (prediction.sum(), 1))
    config = SupervisedConfig.model_validate({"network": {"name": "ngrams"}})
    with pytest.raises(UserError, match="network 'ngrams' gives features of a whole observation, expected of each"):
        Supervised(config, spec)
