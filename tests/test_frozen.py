"""What frozen layers compute is computed once; a run learns as if it were computed each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_pretrained import SMALL

import rlcore
from agents.supervised import Supervised
from envs.vocabulary import Vocabulary
from rlcore import build, checkpoint, config
from rlcore.testing import check_agent
from rlcore.trainer import Trainer
from rlcore.types import Features

transformers = pytest.importorskip("transformers")
WORDS = {"good": ["fine", "lovely", "warm", "bright"], "bad": ["dull", "poor", "cold", "grim"]}
FILLERS = ["film", "plot", "scene", "cast", "music", "end"]
SETTINGS: dict[str, Any] = {
    "agent": {"name": "supervised", "network": {"name": "pretrained", "kwargs": {"freeze": "all"}}},
    "source": {"name": "dataset", "batch_size": 16},
    "optim": {"lr": 1e-2},
    "budget": {"frames": 400},
    "eval": {"every": 0},
    "checkpoint": {"every": 200},
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a run's settings: 200 texts in a file, and a small pretrained model that knows their words."""
    folder = tmp_path_factory.mktemp("pretrained")
    texts = {
        f"the {which} {filler} and then {word} {again}": label
        for label, words in WORDS.items()
        for filler in FILLERS
        for word in words
        for which, again in (("one", "two"), ("two", "three"), ("one", "three"), ("three", "two"))
    }
    file = folder / "texts.csv"
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in texts.items()))
    vocabulary = Vocabulary.train(texts, "words", 60)
    vocabulary.tokenizer.save(str(folder / "tokenizer.json"))
    options = {**SMALL, "vocab_size": vocabulary.size, "initializer_range": 0.5}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformers.BertModel(transformers.BertConfig(**options)).save_pretrained(folder)
    kwargs = {"data": str(file), "tokens": str(folder), "length": 10}
    return config.override(
        SETTINGS,
        {"env": {"id": "text_classification", "kwargs": kwargs}, "agent.network.kwargs.path": str(folder)},
    )


def built(settings: dict[str, Any], **overrides: Any) -> Trainer:
    return build.trainer(config.validate(config.override(settings, overrides)))


def test_every_example_is_read_once(settings: dict[str, Any]) -> None:
    trainer = built(settings)
    agent: Any = trainer.agent
    read: list[int] = []
    agent.network.trunk.register_forward_hook(lambda module, given, out: read.append(len(given[0])))
    trainer.fit()
    size = trainer.source.task.size  # type: ignore[attr-defined]
    assert trainer.clock.frames >= 2 * size
    assert sum(read) == size + 1  # the first one twice, to see whether there is anything to keep


@pytest.mark.parametrize("frozen", [{}, {"agent.network.kwargs.freeze": "none", "optim.freeze": ["network.trunk.*"]}])
def test_the_same_is_learnt(settings: dict[str, Any], frozen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    once, each = built(settings, **frozen), built(settings, **frozen)
    once.fit()
    monkeypatch.setattr(Supervised, "frozen", lambda self, obs: None)
    each.fit()
    before, kept, computed = (t.agent.state_dict() for t in (built(settings, **frozen), once, each))
    for name, weight in computed.items():
        torch.testing.assert_close(kept[name], weight, atol=1e-5, rtol=1e-5)
        assert torch.equal(weight, before[name]) == name.startswith("network.trunk")


def test_the_loss_gets_features_of_its_own_examples(settings: dict[str, Any]) -> None:
    trainer = built(settings)
    agent: Any = trainer.agent.train()
    (batch,) = trainer.source.collect(agent, trainer.clock)
    assert isinstance(batch.data.obs, Features)
    source: Any = trainer.source
    tokens = source.task.draw(source.order[:16]).obs
    assert agent.training and not agent.network.trunk.training
    torch.testing.assert_close(batch.data.obs.features, agent.network.trunk(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        {"env.kwargs.augment": [{"name": "mask", "p": 0.5}]},
        {"agent.network.kwargs.freeze": 2},
        {"agent.network.kwargs.freeze": "none"},
        {"agent.network.kwargs": {"freeze": "none", "lora": {"rank": 2}}},
    ],
)
def test_what_varies_is_not_kept(settings: dict[str, Any], overrides: dict[str, Any]) -> None:
    trainer = built(settings, **overrides)
    (batch,) = trainer.source.collect(trainer.agent.train(), trainer.clock)
    assert batch.data.obs.shape == (16, 10)


def test_stopped_and_resumed_equals_never_stopped(settings: dict[str, Any], tmp_path: Path) -> None:
    rlcore.train(settings, out=tmp_path / "whole")
    rlcore.train(settings, out=tmp_path / "parts", **{"budget.frames": 200, "budget.horizon": 400})
    rlcore.train(out=tmp_path / "parts", resume=True, **{"budget.frames": 400})
    whole, parts = (checkpoint.load(tmp_path / name / "checkpoints") for name in ("whole", "parts"))
    assert all(torch.equal(weight, parts.agent[name]) for name, weight in whole.agent.items())
    assert not any("kept" in name or "features" in name for name in whole.state["source"])


@pytest.mark.parametrize("kwargs", [{"freeze": "all"}, {"freeze": "none", "lora": {"rank": 2}}])
def test_conformance(settings: dict[str, Any], kwargs: dict[str, Any]) -> None:
    check_agent(config.override(settings, {"agent.network.kwargs": {**kwargs, "dropout": 0.0}}))
