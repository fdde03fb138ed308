"""The contract of text models: causality, padding, and writing with a memory as without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.configs.supervised import SupervisedConfig
from agents.networks import build_network
from agents.networks.predictor import Predictor
from agents.networks.text_model import TextModel
from agents.networks.transformer import Decoder, Encoder, EncoderDecoder
from agents.supervised import Supervised
from rlcore.config import NetworkConfig
from rlcore.errors import UserError
from rlcore.spaces import Tokens
from rlcore.tree import leaves, tmap
from rlcore.types import Spec

SPACE = Tokens(11, 6, pad=0, bos=2, eos=3)
TRANSFORMERS: list[tuple[str, dict[str, Any]]] = [
    (name, {"layers": 2, "width": 16, "context": 24, **kwargs})
    for name in ("decoder", "encoder_decoder")
    for kwargs in (
        {"positions": "learned"},
        {"positions": "sinusoidal", "norm_first": False, "embedding_norm": True, "activation": "relu"},
        {"positions": "rotary", "kv_heads": 2, "norm": "rms_norm", "activation": "swiglu", "bias": False},
        {"positions": "learned", "kv_heads": 1, "activation": "gelu_tanh"},
    )
]
MODELS = [*TRANSFORMERS, ("text_gru", {"layers": 2, "width": 16})]
WRITERS = [case for case in MODELS if case[0] != "encoder_decoder"]
NETWORKS: dict[str, Any] = {}


def model(case: tuple[str, dict[str, Any]], dtype: torch.dtype = torch.float64) -> Any:
    """Return a network, all of whose parameters are random and large enough to matter."""
    key = f"{case} {dtype}"
    if key not in NETWORKS:
        torch.manual_seed(1000)
        network = (
            build_network(NetworkConfig(name=case[0], kwargs=case[1]), SPACE, per_token=case[0] != "encoder")
            .to(dtype)
            .eval()
        )
        generator = torch.Generator().manual_seed(1000)
        for parameter in network.parameters():
            parameter.data += torch.empty_like(parameter).normal_(0, 0.2, generator=generator)
        NETWORKS[key] = network
    return NETWORKS[key]


def words(*shape: int, seed: int = 1001) -> Tensor:
    return torch.randint(4, 11, shape, generator=torch.Generator().manual_seed(seed))


def prompts() -> Tensor:
    """Return prompts of 6, 4, 1 and 0 tokens, padded on the left."""
    tokens = words(4, 6)
    return tokens.where(torch.arange(6) >= torch.tensor([0, 2, 5, 6])[:, None], 0)


def close(a: Tensor, b: Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


def written(network: TextModel, prompt: Tensor, completion: Tensor) -> Tensor:
    """Return the features that predict completions, one token at a time."""
    features, state = network.begin(prompt, completion.shape[1])
    steps = [features]
    for token in completion.unbind(1)[:-1]:
        features, state = network.extend(token, state)
        steps.append(features)
    return torch.stack(steps, 1)


@pytest.mark.parametrize("case", MODELS, ids=str)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_written_step_by_step_as_read_at_once(case: Any, dtype: torch.dtype, atol: float) -> None:
    network = model(case, dtype)
    prompt, completion = prompts(), words(4, 5, seed=1002)
    at_once = network.given(prompt, completion)
    assert at_once.shape == (4, 5, network.out_features)
    close(written(network, prompt, completion), at_once, atol)
    if case[0] != "encoder_decoder":
        whole = network(torch.cat([prompt, completion], 1))
        close(at_once[:3], whole[:3, 5:-1], atol)
        close(at_once[3, 1:], whole[3, 6:-1], atol)


@pytest.mark.parametrize("case", MODELS, ids=str)
def test_a_completion_that_has_ended_changes_nothing_before_its_end(case: Any) -> None:
    network = model(case)
    prompt, completion = prompts(), words(4, 5, seed=1003)
    ended = completion.where(torch.arange(5) < torch.tensor([5, 3, 1, 2])[:, None], 0)
    counts = torch.arange(5) <= torch.tensor([5, 3, 1, 2])[:, None]
    close(network.given(prompt, ended)[counts], network.given(prompt, completion)[counts])
    close(written(network, prompt, ended)[counts], network.given(prompt, completion)[counts])


@pytest.mark.parametrize("case", WRITERS, ids=str)
def test_no_token_changes_the_features_before_it(case: Any) -> None:
    network, tokens = model(case), words(2, 6)
    before = network(tokens)
    for t in range(6):
        changed = tokens.clone()
        changed[:, t] = torch.where(tokens[:, t] == 4, 5, 4)
        after = network(changed)
        close(after[:, :t], before[:, :t])
        assert ((after[:, t:] - before[:, t:]).abs().amax((0, 2)) > 1e-6).all()  # and those from it on


@pytest.mark.parametrize("case", MODELS, ids=str)
def test_a_completion_is_predicted_from_the_prompt_and_what_came_before(case: Any) -> None:
    network, prompt, completion = model(case), prompts(), words(4, 5)
    before = network.given(prompt, completion)
    for t in range(5):
        changed = completion.clone()
        changed[:, t] = torch.where(completion[:, t] == 4, 5, 4)
        after = network.given(prompt, changed)
        close(after[:, : t + 1], before[:, : t + 1])
        assert ((after - before)[:, t + 1 :].abs().amax((0, 2)) > 1e-6).all()
    other = prompt.clone()
    other[:2, -2] = torch.where(prompt[:2, -2] == 4, 5, 4)
    after = network.given(other, completion)
    assert ((after - before)[:2].abs().amax(2) > 1e-6).all()
    close(after[2:], before[2:])


pads = st.tuples(st.integers(0, 4), st.integers(0, 4))


def padded(tokens: Tensor, sides: tuple[int, int]) -> Tensor:
    return torch.nn.functional.pad(tokens, sides)


@pytest.mark.parametrize("case", WRITERS, ids=str)
@settings(max_examples=12, deadline=None)
@given(length=st.integers(1, 6), sides=pads, seed=st.integers(1000, 2000))
def test_padding_changes_no_features(case: Any, length: int, sides: tuple[int, int], seed: int) -> None:
    network, tokens = model(case), words(2, length, seed=seed)
    close(network(padded(tokens, sides))[:, sides[0] : sides[0] + length], network(tokens))


@pytest.mark.parametrize("case", MODELS, ids=str)
@settings(max_examples=12, deadline=None)
@given(length=st.integers(0, 6), sides=pads, more=st.integers(0, 3), seed=st.integers(1000, 2000))
def test_padding_changes_no_prediction(case: Any, length: int, sides: tuple[int, int], more: int, seed: int) -> None:
    network, prompt = model(case), padded(words(2, length, seed=seed), (0 if length else 1, 0))
    completion = words(2, 4, seed=seed + 1)
    expected = network.given(prompt, completion)
    close(network.given(padded(prompt, sides), padded(completion, (0, more)))[:, :4], expected)
    close(written(network, padded(prompt, sides), completion), expected)


POOLS = ("mean", "first", "max")
READERS = [("encoder", TRANSFORMERS[i][1] | {"pool": pool}) for i, pool in enumerate(POOLS)]


@pytest.mark.parametrize("case", [*READERS, *TRANSFORMERS[5:7]], ids=str)
@settings(max_examples=12, deadline=None)
@given(length=st.integers(0, 6), sides=pads, seed=st.integers(1000, 2000))
def test_padding_changes_no_pooled_features(case: Any, length: int, sides: tuple[int, int], seed: int) -> None:
    network = model(case)
    read = network if isinstance(network, Encoder) else network.encode
    tokens = padded(words(2, length, seed=seed), (0 if length else 1, 0))
    close(read(padded(tokens, sides)), read(tokens))
    assert torch.isfinite(read(tokens)).all()


@pytest.mark.parametrize("case", MODELS, ids=str)
def test_rows_of_a_memory_can_be_chosen(case: Any) -> None:
    network, prompt, completion = model(case), prompts(), words(4, 5, seed=1004)
    _, state = network.begin(prompt, 5)
    _, state = network.extend(completion[:, 0], state)
    assert {len(leaf) for leaf in leaves(state)} == {4}
    chosen = torch.tensor([2, 0, 0, 3, 1])
    state = tmap(lambda leaf: leaf.index_select(0, chosen), state)
    second = words(5, seed=1005)  # the same prompt goes on in two ways
    _, state = network.extend(second, state)
    features, _ = network.extend(completion[chosen, 2], state)
    text = torch.cat([completion[chosen, :1], second[:, None], completion[chosen, 2:]], 1)
    close(features, network.given(prompt[chosen], text)[:, 3])


@pytest.mark.parametrize("case", WRITERS, ids=str)
def test_padding_that_is_written_is_not_seen(case: Any) -> None:
    network, token = model(case), words(4, seed=1006)
    expected, _ = network.extend(token, network.begin(prompts(), 3)[1])
    _, state = network.extend(torch.zeros_like(token), network.begin(prompts(), 3)[1])
    close(network.extend(token, state)[0], expected)


def test_without_padding_every_token_counts_and_texts_without_it_read_the_same() -> None:
    for positions in ("learned", "sinusoidal", "rotary"):
        kwargs = {"layers": 2, "width": 16, "positions": positions}
        masked, plain = model(("decoder", kwargs)), model(("decoder", kwargs | {"padding": False}))
        tokens = words(3, 6)
        close(plain(tokens), masked(tokens))
        tokens[:, 2] = 0
        assert (plain(tokens) - masked(tokens)).abs().max() > 1e-6
        close(written(plain, prompts()[:, 3:], words(4, 3)), masked.given(prompts()[:, 3:], words(4, 3)))


def test_gradients_are_finite_where_rows_are_padding_only() -> None:
    for case in MODELS:
        network = model(case, torch.float32)
        network.given(prompts(), words(4, 5)).square().sum().backward()
        grads = {name: p.grad for name, p in network.named_parameters()}
        assert all(grad is not None and torch.isfinite(grad).all() for grad in grads.values()), case
        network.zero_grad()


def test_an_encoder_sees_later_tokens_and_their_order() -> None:
    network = model(("encoder", {"layers": 1, "width": 16, "pool": "first"}))
    tokens = words(1, 6)
    other = tokens.clone()
    other[0, 5] = 4 if tokens[0, 5] != 4 else 5
    assert (network(other) - network(tokens)).abs().max() > 1e-6
    tokens = torch.tensor([[4, 5, 6, 7, 8, 9]])
    assert (network(tokens[:, [0, 2, 1, 3, 4, 5]]) - network(tokens)).abs().max() > 1e-6


def test_texts_longer_than_the_context_are_refused() -> None:
    decoder, both = Decoder(SPACE, width=16), EncoderDecoder(SPACE, width=16)
    for call in (
        lambda: decoder(words(1, 7)), lambda: decoder.given(words(1, 4), words(1, 3)),
        lambda: decoder.begin(words(1, 4), 3), lambda: Encoder(SPACE, width=16)(words(1, 7)),
        lambda: both.given(words(1, 7), words(1, 3)), lambda: both.given(words(1, 3), words(1, 7)),
        lambda: both.begin(words(1, 3), 7), lambda: Decoder(SPACE, width=16, padding=False)(words(1, 7)),
    ):  # fmt: skip
        with pytest.raises(
            UserError, match=r"got a text of 7 tokens, longer than its context of 6; expected a shorter"
        ):
            call()
    assert both.given(words(1, 6), words(1, 6)).shape == (1, 6, 16)
    _, state = both.begin(words(1, 6), 6)
    for token in words(6, 1):  # the last one's features predict what nobody asks for
        features, state = both.extend(token, state)
    assert features.shape == (1, 16)
    assert decoder.begin(words(1, 3), 3)[0].shape == (1, 16)


def test_an_encoder_decoder_needs_a_completion_and_a_token_that_begins_it() -> None:
    with pytest.raises(UserError, match="'encoder_decoder' needs a prompt and a completion"):
        Predictor(EncoderDecoder(SPACE, width=16), 11)(words(1, 6))
    with pytest.raises(UserError, match=r"'encoder_decoder' cannot write Tokens\(11, length=6\) without a token"):
        EncoderDecoder(Tokens(11, 6), width=16)


@pytest.mark.parametrize(
    ("action", "name", "said"),
    [
        ((3,), "decoder", "'decoder' gives features of each token, expected of a whole observation, as encoder or mlp"),
        ((6, 11), "encoder", "'encoder' gives features of a whole observation, expected of each token, as decoder, "),
    ],
)
def test_networks_that_read_a_text_otherwise_than_the_task_are_refused(action: Any, name: str, said: str) -> None:
    spec = Spec(SPACE, spaces.Box(-1.0, 1.0, action), loss=lambda prediction, target: (prediction.sum(), 1))
    with pytest.raises(UserError, match=said):
        Supervised(SupervisedConfig(network=NetworkConfig(name=name, kwargs={"width": 16})), spec)
