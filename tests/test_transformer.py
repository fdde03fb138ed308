"""The layers of Transformers against PyTorch's, slow references and their defining properties."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents.networks import build_network
from agents.networks.attention import CrossAttention, SelfAttention, seen_by_all, seen_by_later
from agents.networks.positions import Positions, rotate, sinusoids
from agents.networks.predictor import Predictor
from agents.networks.text_model import last, places
from agents.networks.transformer import Decoder, Encoder, pooled
from agents.networks.transformer_blocks import Block, FeedForward, Sight, Stack
from agents.networks.transformer_options import Options
from rlcore import checkpoint
from rlcore.config import NetworkConfig, OptimConfig
from rlcore.errors import UserError
from rlcore.optim import Group
from rlcore.spaces import Tokens
from rlcore.types import Loss

SPACE = Tokens(11, 8, pad=0, bos=2, eos=3)
WIDTH, HEADS = 16, 4


def fill(module: nn.Module, seed: int = 1000) -> nn.Module:
    """Give every parameter, biases and norms included, its own random values."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return module


def copy_attention(ours: SelfAttention | CrossAttention, theirs: nn.MultiheadAttention) -> None:
    weight, bias = theirs.in_proj_weight.data, theirs.in_proj_bias.data
    if isinstance(ours, SelfAttention):
        ours.qkv.weight.data, ours.qkv.bias.data = weight, bias
    else:
        ours.query.weight.data, ours.query.bias.data = weight[:WIDTH], bias[:WIDTH]
        ours.kv.weight.data, ours.kv.bias.data = weight[WIDTH:], bias[WIDTH:]
    ours.out.load_state_dict(theirs.out_proj.state_dict())


def torch_pair(decoder: bool, norm_first: bool, activation: str) -> tuple[nn.Module, Block]:
    cls = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
    theirs = fill(cls(WIDTH, HEADS, 24, 0.0, activation, batch_first=True, norm_first=norm_first))
    options = Options(heads=HEADS, width=WIDTH, feedforward=24, norm_first=norm_first, activation=activation)
    ours = Block(options, cross=decoder)
    copy_attention(ours.attention, theirs.self_attn)
    norms = [ours.attention_norm, ours.feed_norm]
    if decoder:
        copy_attention(ours.cross, theirs.multihead_attn)
        norms.insert(1, ours.cross_norm)
    for i, norm in enumerate(norms, 1):
        norm.load_state_dict(getattr(theirs, f"norm{i}").state_dict())
    ours.feed.up.load_state_dict(theirs.linear1.state_dict())
    ours.feed.down.load_state_dict(theirs.linear2.state_dict())
    return theirs, ours


def texts(generator: torch.Generator, lengths: list[int], size: int) -> tuple[Tensor, Tensor]:
    """Return vectors (B, size, WIDTH) and which are real: the first ones."""
    seen = torch.arange(size) < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), size, WIDTH, generator=generator), seen


CASES = [(norm_first, activation) for norm_first in (True, False) for activation in ("relu", "gelu")]


@pytest.mark.parametrize(("norm_first", "activation"), CASES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_encoder_layer_agrees_with_torch(norm_first: bool, activation: str, causal: bool, padded: bool) -> None:
    theirs, ours = torch_pair(False, norm_first, activation)
    x, seen = texts(torch.Generator().manual_seed(1001), [6, 3, 1], 6)
    hidden = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.bool) if causal else None
    expected = theirs(x, src_mask=hidden, src_key_padding_mask=~seen if padded else None)
    mask = (seen_by_later(seen) if causal else seen_by_all(seen)) if padded else None
    got = ours(x, Sight(mask, causal and not padded), None, None)
    real = seen if padded else torch.ones_like(seen)
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("norm_first", "activation"), CASES)
@pytest.mark.parametrize("padded", [False, True])
def test_decoder_layer_agrees_with_torch(norm_first: bool, activation: str, padded: bool) -> None:
    theirs, ours = torch_pair(True, norm_first, activation)
    generator = torch.Generator().manual_seed(1002)
    x, seen = texts(generator, [5, 2, 4], 5)
    memory, known = texts(generator, [3, 7, 1], 7)
    expected = theirs(
        x, memory, tgt_mask=nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.bool),
        tgt_key_padding_mask=~seen if padded else None, memory_key_padding_mask=~known if padded else None,
    )  # fmt: skip
    sight = Sight(seen_by_later(seen), memory=seen_by_all(known)) if padded else Sight(causal=True)
    got = ours(x, sight, None, ours.cross.project(memory))
    real = seen if padded else torch.ones_like(seen)
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=1e-5)


def test_attention_is_the_weighted_sum_of_the_equation() -> None:
    layer = fill(SelfAttention(6, 2, 2)).double()
    x = torch.randn(1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1003))
    seen = torch.tensor([[0, 1, 1, 1]]) > 0
    q, k, v = layer.qkv(x)[0].chunk(3, -1)
    rows = []
    for t in range(4):
        heads = []
        for h in range(2):
            part = slice(3 * h, 3 * h + 3)
            sees = [s for s in range(t + 1) if seen[0, s] or s == t]
            scores = [math.exp((q[t, part] @ k[s, part]).item() / math.sqrt(3)) for s in sees]
            heads.append(sum(e / sum(scores) * v[s, part] for e, s in zip(scores, sees, strict=True)))
        rows.append(torch.cat(heads))
    torch.testing.assert_close(layer(x, seen_by_later(seen))[0], layer.out(torch.stack(rows)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_queries_are_all_heads_with_repeated_keys(kv_heads: int) -> None:
    grouped, full = fill(SelfAttention(WIDTH, 4, kv_heads)), SelfAttention(WIDTH, 4, 4)
    d = WIDTH // 4

    def repeat(rows: Tensor) -> Tensor:
        q, k, v = rows.split([WIDTH, kv_heads * d, kv_heads * d])
        k, v = (x.view(kv_heads, d, -1).repeat_interleave(4 // kv_heads, 0).flatten(0, 1) for x in (k, v))
        return torch.cat([q.view(WIDTH, -1), k, v]).view(3 * WIDTH, *rows.shape[1:])

    full.qkv.weight.data, full.qkv.bias.data = repeat(grouped.qkv.weight.data), repeat(grouped.qkv.bias.data)
    full.out.load_state_dict(grouped.out.state_dict())
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1004))
    torch.testing.assert_close(grouped(x, causal=True), full(x, causal=True), rtol=0, atol=1e-5)
    assert grouped.qkv.weight.shape[0] == WIDTH + 2 * kv_heads * d


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(50, 6)
    for t in (0, 1, 7, 49):
        for i in range(3):
            angle = t / 10000 ** (2 * i / 6)
            assert table[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def rotated(x: Tensor, at: Tensor | None = None, context: int = 64) -> Tensor:
    positions = Positions("rotary", context, 0, x.shape[-1])
    _, rotation = positions(torch.empty(x.shape[0], x.shape[2], 0), at)
    assert rotation is not None
    return rotate(x, rotation)


def test_rotation_is_a_product_of_complex_numbers() -> None:
    x = torch.randn(1, 1, 9, 8, generator=torch.Generator().manual_seed(1005))
    got = rotated(x)[0, 0]
    for t in range(9):
        for i in range(4):
            turned = complex(x[0, 0, t, i], x[0, 0, t, i + 4]) * np.exp(1j * t * 10000 ** (-2 * i / 8))
            assert complex(got[t, i], got[t, i + 4]) == pytest.approx(turned, abs=1e-5)


def test_rotated_products_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(1006)
    q, k = (torch.randn(1, 1, 1, 8, generator=generator).expand(1, 1, 40, 8) for _ in range(2))
    scores = (rotated(q) @ rotated(k).transpose(2, 3))[0, 0]
    for distance in range(-5, 6):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-4)
    assert scores[0].std() > 0.1  # and on the distance it does depend


def test_rotary_attention_is_the_same_wherever_a_text_begins() -> None:
    layer, positions = fill(SelfAttention(WIDTH, 4, 2)).double(), Positions("rotary", 32, WIDTH, WIDTH // 4).double()
    x = torch.randn(1, 6, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1012))

    def attended(start: int) -> Tensor:
        _, rotation = positions(x, start + torch.arange(6)[None])
        return layer(x, causal=True, rotation=rotation)

    torch.testing.assert_close(attended(20), attended(0), rtol=0, atol=1e-6)  # angles are float32
    assert (attended(0) - layer(x, causal=True)).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_positions_are_added_where_they_are_asked_for(kind: str) -> None:
    positions = fill(Positions(kind, 10, 6, 3))
    at = torch.tensor([[0, 0, 1], [7, 8, 9]])
    all_rows = positions(torch.zeros(1, 10, 6), None)[0][0]
    torch.testing.assert_close(positions(torch.ones(2, 3, 6), at)[0], 1 + all_rows[at])


def test_places_and_pools_leave_padding_out() -> None:
    seen = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]]) > 0
    assert places(seen).tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    x = torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 4, 1).expand(4, 4, 1)
    assert last(x, seen).flatten().tolist() == [8, 2, 8, 1]
    mask = seen_by_all(seen)
    assert pooled(x, mask, "mean").flatten().tolist() == [6, 1.5, 4.5, 3.75]  # of no tokens: of all places
    assert pooled(-x, mask, "max").flatten().tolist() == [-4, -1, -1, -1]
    assert pooled(x, mask, "first").flatten().tolist() == [4, 1, 1, 1]
    assert pooled(x, None, "mean").flatten().tolist() == [3.75] * 4


def test_swiglu_and_rms_norm_are_their_equations() -> None:
    options = Options(width=8, heads=2, feedforward=5, activation="swiglu", norm="rms_norm", eps=0.1)
    feed, norm = fill(FeedForward(options)), fill(options.normalizer())
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1007))
    u, v = (x @ feed.up.weight.T + feed.up.bias).split(5, 1)
    torch.testing.assert_close(feed(x), (u * torch.sigmoid(u) * v) @ feed.down.weight.T + feed.down.bias)
    torch.testing.assert_close(norm(x), x / (x.square().mean(1, keepdim=True) + 0.1).sqrt() * norm.weight)


def test_weights_start_as_those_of_gpt2() -> None:
    torch.manual_seed(1008)
    stack = Stack(Options(layers=8, width=128, heads=4))
    for block in stack.layers:
        for layer, std in ((block.attention.qkv, 0.02), (block.feed.up, 0.02), (block.attention.out, 0.005),
                           (block.feed.down, 0.005)):  # fmt: skip
            assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
            assert not layer.bias.any()


def test_without_bias_there_is_none_and_norms_come_where_they_are_asked_for() -> None:
    for norm in ("layer_norm", "rms_norm"):
        network = Decoder(SPACE, layers=2, width=WIDTH, bias=False, norm=norm)
        assert not [name for name, _ in network.named_parameters() if name.endswith("bias")]
    post = Encoder(SPACE, layers=1, width=WIDTH, norm_first=False, embedding_norm=True)
    assert isinstance(post.stack.norm, nn.Identity)
    assert isinstance(post.embedding_norm, nn.LayerNorm)


def test_dropout_is_silent_in_evaluation_only() -> None:
    network = Decoder(SPACE, layers=1, width=WIDTH, dropout=0.5)
    tokens = torch.randint(4, 11, (2, 8), generator=torch.Generator().manual_seed(1009))
    assert not torch.equal(network(tokens), network(tokens))
    network.eval()
    assert torch.equal(network(tokens), network(tokens))


def test_a_tied_head_is_the_embedding_also_after_flattening_an_update_and_a_checkpoint(tmp_path) -> None:
    def build(seed: int) -> Predictor:
        torch.manual_seed(seed)
        return Predictor(Decoder(SPACE, layers=1, width=WIDTH), SPACE.vocabulary, tie=True)

    network = build(1010)
    parameters = dict(network.named_parameters())
    assert sum(p is network.trunk.embedding.weight for p in parameters.values()) == 1
    group = Group(parameters, OptimConfig(lr=0.1))
    tokens = torch.randint(4, 11, (2, 8), generator=torch.Generator().manual_seed(1011))
    before = network.head.weight.detach().clone()
    loss = nn.functional.cross_entropy(network(tokens).flatten(0, 1), tokens.flatten(), reduction="sum")
    expected = torch.autograd.grad(loss, network.head.weight, retain_graph=True)[0]
    group.backward(Loss(loss, tokens.numel(), {}))
    torch.testing.assert_close(network.trunk.embedding.weight.grad, expected)
    group.step(0.1)
    assert network.head.weight.data_ptr() == network.trunk.embedding.weight.data_ptr()
    assert not torch.equal(network.head.weight, before)
    path = checkpoint.save(tmp_path, 1, network.state_dict(), {})
    other = build(1012)
    Group(dict(other.named_parameters()), OptimConfig())
    other.load_state_dict(checkpoint.load(path).agent)
    assert torch.equal(other(tokens), network(tokens))
    assert other.head.weight.data_ptr() == other.trunk.embedding.weight.data_ptr()


@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        ("decoder", {"layers": 0}, "network.kwargs.layers: got 0, expected a positive integer"),
        ("decoder", {"heads": True}, "network.kwargs.heads: got True, expected a positive integer"),
        ("decoder", {"heads": 3}, "network.kwargs.width: got 128, expected a multiple of heads = 3"),
        ("decoder", {"kv_heads": 3}, "network.kwargs.kv_heads: got 3, expected a divisor of heads = 4"),
        ("decoder", {"width": 12, "positions": "rotary"}, "network.kwargs.width: got 12, expected a multiple of 2 hea"),
        ("decoder", {"width": 5, "heads": 1, "positions": "sinusoidal"}, "network.kwargs.width: got 5, expected an ev"),
        ("decoder", {"positions": "rotry"}, "network.kwargs.positions 'rotry' is unknown; did you mean 'rotary'?"),
        ("decoder", {"norm": "rmsnorm"}, "network.kwargs.norm 'rmsnorm' is unknown; did you mean 'rms_norm'?"),
        ("decoder", {"activation": "swiglo"}, "network.kwargs.activation 'swiglo' is unknown; did you mean 'swiglu'?"),
        ("decoder", {"dropout": 1.0}, "network.kwargs.dropout: got 1.0, expected a probability below 1"),
        ("decoder", {"eps": 0}, "network.kwargs.eps: got 0, expected a positive number"),
        ("decoder", {"bias": "no"}, "network.kwargs.bias: got 'no', expected true or false"),
        ("decoder", {"context": -1}, "network.kwargs.context: got -1, expected a positive integer"),
        ("decoder", {"kv_head": 2}, "network.kwargs.kv_head is not an option of network 'decoder'; did you mean 'kv_h"),
        ("decoder", {"pool": "mean"}, "network.kwargs.pool is not an option of network 'decoder'"),
        ("encoder", {"pool": "man"}, "network.kwargs.pool 'man' is unknown; did you mean 'mean'?"),
        ("encoder_decoder", {"pool": "man"}, "network.kwargs.pool 'man' is unknown; did you mean 'mean'?"),
        ("text_gru", {"layers": 1.5}, "network.kwargs.layers: got 1.5, expected a positive integer"),
        ("text_gru", {"dropout": -1}, "network.kwargs.dropout: got -1, expected a probability below 1"),
    ],
)
def test_bad_keywords_give_one_sentence(name: str, kwargs: dict, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        build_network(NetworkConfig(name=name, kwargs=kwargs), SPACE)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["encoder", "decoder", "encoder_decoder", "text_gru"])
def test_a_space_without_tokens_is_refused_by_name(name: str) -> None:
    space = gym.spaces.MultiDiscrete([5, 5])
    with pytest.raises(UserError, match=rf"network '{name}' cannot read observation space MultiDiscrete.* Tokens"):
        build_network(NetworkConfig(name=name), space)
