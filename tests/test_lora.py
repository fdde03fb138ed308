"""Low-rank adaptation computes what `peft` computes with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretrained import LENGTH, VOCABULARY, bert, gpt2, mean_of, refused, saved, texts
from torch import Tensor, nn

from agents.networks.lora import LoRA, merge
from agents.networks.pretrained import pretrained
from rlcore.spaces import Tokens

peft = pytest.importorskip("peft")
TARGETS = ["query", "key", "value", "out", "up", "down"]
THEIRS = {  # our targets by the names of BERT's layers
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}


def randomized(network: nn.Module) -> nn.Module:
    """Give every adapter weights that make a difference."""
    generator = torch.Generator().manual_seed(3)
    for p in network.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=generator) * 0.2
    return network


def adapters(network: Any) -> dict[str, LoRA]:
    """Return the adapted layers by block and attribute, such as '0.qkv'."""
    found = {n.removeprefix("stack.layers."): m for n, m in network.named_modules() if isinstance(m, LoRA)}
    return {f"{name.split('.')[0]}.{name.split('.')[-1]}": layer for name, layer in found.items()}


def carried(layers: dict[str, LoRA], targets: list[str], theirs: Any) -> None:
    """Give peft's adapters our weights."""
    modules = {n: m for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    for i in range(3):
        for target in targets:
            layer = layers[f"{i}.{'qkv' if target in TARGETS[:3] else target}"]
            (module,) = [m for n, m in modules.items() if n.endswith(f"layer.{i}.{THEIRS[target]}")]
            module.lora_A["default"].weight.data = layer.a[target].weight.data
            module.lora_B["default"].weight.data = layer.b[target].weight.data


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("targets", [["query", "value"], ["key"], TARGETS])
@torch.no_grad()
def test_agrees_with_peft(targets: list[str], tmp_path: Path) -> None:
    model = bert()
    options = {"rank": 3, "alpha": 12, "targets": targets}
    ours: Any = randomized(pretrained(Tokens(VOCABULARY, LENGTH, 0), str(saved(model, tmp_path)), lora=options)).eval()
    pattern = "|".join(rf".*layer\.\d+\.{THEIRS[target]}" for target in targets)
    theirs = peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=12, target_modules=pattern)).eval()
    carried(adapters(ours), targets, theirs)
    tokens = texts(0)
    hidden = theirs(tokens, attention_mask=(tokens != 0).long()).last_hidden_state
    torch.testing.assert_close(ours(tokens), mean_of(hidden, tokens != 0), atol=1e-5, rtol=1e-5)
    trained = sum(p.numel() for p in ours.parameters() if p.requires_grad)
    assert trained == sum(p.numel() for p in theirs.parameters() if p.requires_grad)


@pytest.mark.parametrize("build", [bert, gpt2])
@torch.no_grad()
def test_merged_weights_compute_the_same(build: Any, tmp_path: Path) -> None:
    space = Tokens(VOCABULARY, LENGTH, VOCABULARY - 1 if build is gpt2 else 0)
    folder, tokens = str(saved(build(), tmp_path)), texts(space.pad)
    plain = pretrained(space, folder).eval()
    fresh = pretrained(space, folder, lora={"targets": TARGETS}).eval()
    assert torch.equal(fresh(tokens), plain(tokens))  # B is zero
    network = randomized(pretrained(space, folder, lora={"rank": 4, "alpha": 2, "targets": TARGETS})).eval()
    adapted = network(tokens)
    assert not torch.allclose(adapted, plain(tokens), atol=1e-2)
    merged = merge(network)
    torch.testing.assert_close(merged(tokens), adapted, atol=1e-5, rtol=1e-5)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(merged.state_dict())
    torch.testing.assert_close(plain(tokens), adapted, atol=1e-5, rtol=1e-5)


def test_by_hand() -> None:
    base = nn.Linear(2, 3)
    base.weight.data, base.bias.data = torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([0.0, 0, 5])
    layer = LoRA(base, {"query": 1, "value": 2}, ["value"], rank=1, alpha=3.0, dropout=0.0)
    layer.a["value"].weight.data, layer.b["value"].weight.data = torch.tensor([[1.0, 2]]), torch.tensor([[1.0], [-1]])
    # A x = 1 + 2 * 10 = 21, scaled by 3 / 1: 63
    assert layer(torch.tensor([1.0, 10])).tolist() == [1, 10 + 63, 16 - 63]
    assert layer.merged().weight.tolist() == [[1, 0], [3, 7], [-2, -5]]


def test_only_the_adapters_learn_and_drop_their_inputs_in_training(tmp_path: Path) -> None:
    options = {"rank": 2, "dropout": 0.5}
    network = pretrained(Tokens(VOCABULARY, LENGTH, 0), str(saved(bert(), tmp_path)), lora=options, dropout=0.0)
    randomized(network)
    names = {name for name, p in network.named_parameters() if p.requires_grad}
    assert names == {
        f"stack.layers.{i}.attention.qkv.{side}.{part}.weight"
        for i in range(3)
        for side in "ab"
        for part in ("query", "value")
    }
    tokens: Tensor = texts(0)
    network.train()(tokens).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters() if p.requires_grad)
    assert not torch.equal(network(tokens), network(tokens))
    assert torch.equal(network.eval()(tokens), network(tokens))


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    folder = saved(bert(), tmp_path)
    assert "lora.rnk is not a setting; did you mean 'rank'?" in refused(folder, lora={"rnk": 2})
    assert "lora.rank: got 0" in refused(folder, lora={"rank": 0})
    assert "lora.targets.0: got 'q', expected 'query'" in refused(folder, lora={"targets": ["q"]})
    assert "lora: got 8, expected a mapping" in refused(folder, lora=8)
