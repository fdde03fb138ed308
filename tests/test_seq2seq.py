"""Completions learnt from examples: the loss by hand, what acting writes, labels beside completions, generation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Command
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F

import rlcore
from agents.configs.text import Seq2SeqConfig
from agents.seq2seq import Seq2Seq
from rlcore import config as configs
from rlcore.errors import UserError
from rlcore.generate import generate
from rlcore.losses import token_cross_entropy
from rlcore.spaces import Tokens
from rlcore.testing import check_agent
from rlcore.types import Batch, Example, Spec

SMALL = {"layers": 1, "heads": 2, "width": 16}
PROMPT, COMPLETION = Tokens(9, 5, 0, 2, 3), Tokens(9, 4, 0, 2, 3)
PAIRS: dict[str, Any] = {
    "env": {"id": "pairs", "num_envs": 4, "kwargs": {"kind": "reversal", "max_length": 4, "n": 300}},
    "agent": {"name": "seq2seq", "network": {"name": "encoder_decoder", "kwargs": SMALL}},
    "optim": {"lr": 0.01},
    "eval": {"every": 0},
}
TINY_TEXT = "the cat sat on the mat. " * 20


def criterion(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return token_cross_entropy(logits, target, ignore=0)


def weighted(prediction: tuple[Tensor, Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
    label = F.cross_entropy(prediction[0], target[:, 0], reduction="sum")
    total, count = token_cross_entropy(prediction[1], target[:, 1:], ignore=0)
    return 2 * label + total, count


def agent(name: str = "decoder", spec: Spec | None = None, **kwargs: Any) -> Seq2Seq:
    torch.manual_seed(0)
    network = {"name": name, "kwargs": {**({} if name == "text_gru" else SMALL), **kwargs}}
    config = Seq2SeqConfig.model_validate({"network": network})
    return Seq2Seq(config, spec or Spec(PROMPT, COMPLETION, loss=criterion)).eval()


def example() -> Example:
    """Return two prompts padded on the left and completions that end."""
    return Example(torch.tensor([[0, 0, 4, 5, 6], [7, 8, 4, 4, 5]]), torch.tensor([[6, 5, 3, 0], [5, 4, 4, 3]]))


@pytest.mark.parametrize("name", ["decoder", "encoder_decoder", "text_gru"])
def test_the_loss_is_that_of_every_token_given_those_before_it(name: str):
    learner, (prompt, target) = agent(name), example()
    total, n = torch.zeros(()), 0
    for x, y in zip(prompt, target, strict=True):
        for i in range(int((y != 0).sum())):  # one token at a time, without padding on the left
            features, state = learner.trunk.begin(x[x != 0][None], 4)
            for token in y[:i]:
                features, state = learner.trunk.extend(token[None], state)
            total = total - learner.network.head(features).log_softmax(-1)[0, y[i]]
            n += 1
    out = learner.loss(Batch(Example(prompt, target)))
    assert int(out.count) == n == 7
    torch.testing.assert_close(out.total, total)


def test_acting_writes_what_was_learnt_and_nothing_after_its_end():
    learner, (prompt, target) = agent().train(), example()
    optimizer = torch.optim.Adam(learner.parameters(), 0.02)
    for _ in range(150):
        out = learner.loss(Batch(Example(prompt, target)))
        optimizer.zero_grad()
        out.total.backward()
        optimizer.step()
    assert torch.equal(learner.act(prompt, (), {}, {}, explore=False).action, target)


def test_labels_go_before_completions():
    space = spaces.MultiDiscrete(np.array([3, 9, 9, 9, 9]))
    learner = agent("encoder_decoder", Spec(PROMPT, space, loss=weighted))
    prompt, completion = example()
    target = torch.cat([torch.tensor([[2], [0]]), completion], 1)
    out = learner.loss(Batch(Example(prompt, target)))
    assert learner.labels is not None
    label = -learner.labels(learner.trunk.encode(prompt)).log_softmax(-1)[[0, 1], [2, 0]].sum()  # type: ignore[operator]
    logits = learner.network.head(learner.trunk.given(prompt, completion))
    torch.testing.assert_close(out.total, 2 * label + criterion(logits, completion)[0])
    out.total.backward()
    assert all(p.grad is not None for p in learner.parameters())
    action = learner.act(prompt, (), {}, {}, explore=False).action
    assert action.shape == (2, 5) and all(space.contains(row) for row in action.numpy())
    assert torch.equal(action[:, 1:], learner.write(prompt))
    assert torch.equal(action[:, 0], learner.label_logits(prompt).argmax(-1))


@pytest.mark.parametrize(
    ("space", "name", "said"),
    [
        (
            spaces.Discrete(4),
            "decoder",
            r"'seq2seq' cannot serve observations Tokens\(9, length=5\) with .*Discrete\(4\)",
        ),
        (Tokens(8, 4), "decoder", "expected one vocabulary"),
        (COMPLETION, "encoder", "expected of each token, as decoder, encoder_decoder or text_gru"),
        (spaces.MultiDiscrete(np.array([3, 9, 9])), "decoder", "cannot label .* 'decoder'; expected encoder_decoder"),
        (spaces.MultiDiscrete(np.array([3, 9, 8])), "decoder", "cannot serve"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_sentence(space: Any, name: str, said: str):
    with pytest.raises(UserError, match=said):
        agent(name, Spec(PROMPT, space, loss=criterion))


def test_an_environment_without_examples_cannot_teach():
    with pytest.raises(UserError, match="without labelled examples"):
        agent(spec=Spec(PROMPT, COMPLETION))


@pytest.mark.parametrize("beam", [0, 3])
def test_the_agent_keeps_the_contract(beam: int):
    check_agent(configs.override(PAIRS, {"agent.beam": beam}))


@pytest.fixture(scope="module")
def reversal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "reversal"
    rlcore.train(configs.override(PAIRS, {"budget.frames": 640, "eval.final_episodes": 4}), out=out)
    return out


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(TINY_TEXT)
    recipe: dict[str, Any] = {
        "env": {"id": "language_model", "kwargs": {"data": str(folder / "text.txt"), "context": 12}},
        "agent": {"name": "supervised", "network": {"name": "decoder", "kwargs": {**SMALL, "width": 32}}},
        "source": {"batch_size": 32},
        "optim": {"lr": 0.01},
        "eval": {"every": 0, "final_episodes": 4},
        "budget": {"frames": 4000},
    }
    rlcore.train(recipe, out=folder / "language")
    return folder / "language"


def test_generation_answers_as_the_agent_acts(reversal: Path):
    run = rlcore.load(reversal)
    acted = run.predict(["abcd", "xy"])[0]
    assert [some for (some,) in generate(reversal, ["abcd", "xy"])] == acted
    assert generate(reversal, ["xy"]) == [[acted[1]]]
    assert [len(some) for some in generate(reversal, ["xy", "abc"], beam=4, n=3)] == [3, 3]
    drawn = generate(reversal, ["xy", "abc"], temperature=3.0, n=4, seed=1)
    assert drawn == generate(reversal, ["xy", "abc"], temperature=3.0, n=4, seed=1)
    assert drawn != generate(reversal, ["xy", "abc"], temperature=3.0, n=4, seed=2)
    assert len(set(drawn[0])) > 1
    assert all(len(text) <= 2 for (text,) in generate(reversal, ["abcd"], length=2))


def test_evaluation_and_prediction_search_with_the_beam_that_is_asked_for(command: Command, reversal: Path):
    prompts = ["abcd", "xy", "hell", "qrst", "zz", "fgh"]
    greedy, searched = (rlcore.load(reversal, beam=beam).predict(prompts)[0] for beam in (0, 4))
    assert searched == [some[0] for some in generate(reversal, prompts, beam=4)] != greedy
    assert greedy == rlcore.load(reversal).predict(prompts)[0]
    whole, best = (rlcore.evaluate(reversal, beam=beam)["token_accuracy"] for beam in (None, 4))
    assert whole != best
    said = command("evaluate", reversal, "--beam", "4", "--json").out
    assert json.loads(said)["token_accuracy"] == best
    refused = command("evaluate", reversal, "--beam", "4", "--record", "x.npz")
    assert refused.code == 2 and "error: --beam: expected no --record" in refused.err


def test_a_beam_is_refused_where_nothing_is_written(language: Path):
    with pytest.raises(UserError, match=r"beam: .* has agent 'supervised', expected one that answers prompts"):
        rlcore.evaluate(language, beam=2)


def test_a_language_model_goes_on_beyond_its_context(language: Path):
    ((text,),) = generate(language, ["the cat"], length=60)
    assert ("the cat" + text) in TINY_TEXT and len(text) == 60
    ((stopped,),) = generate(language, ["the cat"], length=60, stop=["."])
    assert stopped == " sat on the mat"
    ((stopped,),) = generate(language, ["the cat"], length=60, stop=["mat"])
    assert stopped == " sat on the "
    together = generate(language, ["the cat", "at. t"], length=20)  # of different lengths
    assert together == [[TINY_TEXT[7:27]], [TINY_TEXT[25:45]]]
    drawn = generate(language, ["the cat", "at. t"], length=40, temperature=2.0, n=3, seed=4)
    assert [len(some) for some in drawn] == [3, 3] and len({*drawn[0], *drawn[1]}) == 6
    assert generate(language, ["the cat"], length=40, temperature=1e-3, n=2, seed=4) == [[TINY_TEXT[7:47]] * 2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompt", "the caß"], "error: prompt 'the caß': got 'ß', expected only what"),
        (["--prompt", ""], "error: prompt: got an empty text"),
        (["--prompt", "the cat sat on"], "error: prompt: got 14 tokens, expected at most 12, the network's context"),
        (
            ["--prompt", "the cat", "--beam", "2", "--length", "9"],
            "error: length: got 9, expected at most 5 with a beam",
        ),
        ([], "error: --prompt: got none"),
        (["--prompt", "a", "--top-p", "0"], "error: top_p: got 0"),
        (["--prompt", "a", "--temperature", "-1"], "error: temperature: got -1"),
        (["--prompt", "a", "--top-k", "3"], "error: temperature: got 0 with top_k"),
        (["--prompt", "a", "--n", "3"], "error: n: got 3"),
        (["--prompt", "a", "--beam", "2", "--temperature", "1"], "error: beam: got 2 with temperature"),
        (["--prompt", "a", "--stop", ""], "error: stop: got an empty text"),
        (["--file", "nowhere.txt"], "error: --file nowhere.txt: expected a readable text file"),
    ],
)
def test_bad_prompts_and_options_get_one_sentence(command: Command, language: Path, options: list[str], said: str):
    called = command("generate", language, *options)
    assert called.code == 2 and called.out == ""
    assert called.err.startswith(said) and called.err.count("\n") == 1


def test_the_command_prints_text_or_json(command: Command, language: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("the cat\n\nthe mat\n")
    lines = command("generate", language, "--file", "prompts.txt", "--length", "7")
    assert lines.out == " sat on\n. the c\n" and lines.err == ""
    called = command("generate", language, "--prompt", "the cat", "--length", "4", "--json")
    assert called.out == '[{"prompt": "the cat", "completions": [" sat"]}]\n'


def test_a_run_that_writes_nothing_says_so(finished: Path, regression: Path):
    for run in (finished, regression):
        with pytest.raises(UserError, match="writes no text"):
            generate(run, ["a"])


def test_a_completion_longer_than_those_learnt_is_refused(reversal: Path):
    with pytest.raises(UserError, match="length: got 50, expected at most 5"):
        generate(reversal, ["ab"], length=50)


def test_generation_takes_the_checkpoint_that_the_run_is_used_by(reversal: Path, tmp_path: Path):
    shutil.copytree(reversal, tmp_path / "run")
    config = configs.override(configs.read(reversal), {"eval.every": 320, "eval.use": "best"})
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="has no checkpoint 'best'"):
        generate(tmp_path / "run", ["ab"])
    assert generate(tmp_path / "run", ["ab"], which="last") == generate(reversal, ["ab"])
