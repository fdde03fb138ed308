"""Regression and classification over tables: rewards, metrics, the shipped data, and what a user may get wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy.special import log_softmax
from torch import nn

from envs import metrics
from envs.tabular import Line, Tabular
from rlcore.errors import UserError

SACRAMENTO = Path(__file__).parent.parent / "envs" / "data" / "sacramento.csv"
HOUSE = {"features": ["sqft", "beds"], "standardize_target": True}
TERCILES = {"kind": "classification", "bins": 3, "features": ["sqft", "beds", "baths", "latitude", "longitude"]}


def everything(env):
    """Return all examples of an environment's split, in order."""
    return env.task.draw(torch.arange(env.task.size))


def least_squares(env):
    """Return the weights (F + 1, 1) of the closed-form fit, the intercept last."""
    x, y = everything(env)
    return torch.linalg.lstsq(with_one(x), y.double()).solution


def with_one(x):
    return torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], dim=1)


# Rewards


@pytest.mark.parametrize("name", ["MSELoss", "nn.L1Loss", "torch.nn.HuberLoss", "SmoothL1Loss", "CrossEntropyLoss"])
def test_the_reward_is_minus_the_loss_and_so_is_its_gradient(name):
    classes = name == "CrossEntropyLoss"
    env = Tabular(8, loss=name, **(TERCILES if classes else HOUSE))
    obs, _ = env.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    network = nn.Linear(obs.shape[1], 3 if classes else 1)
    with torch.no_grad():
        network.weight.copy_(torch.randn(network.weight.shape, generator=generator))
        network.bias.fill_(9.0)  # all errors of one sign: those of L1 must not cancel
    step = env.step(network(obs))
    target = step.extras["target"]
    loss = getattr(nn, name.rpartition(".")[2])
    assert env.spec.loss is not None
    reward = env.task.reward(network(obs), target)
    assert torch.equal(step.reward, reward)
    torch.testing.assert_close(env.spec.loss(network(obs), target)[0], -reward.sum())
    per_item = loss(reduction="none")(network(obs), target).reshape(8)
    torch.testing.assert_close(reward, -per_item, rtol=0, atol=0)
    ours = torch.autograd.grad(env.spec.loss(network(obs), target)[0] / 8, [*network.parameters()])
    theirs = torch.autograd.grad(loss()(network(obs), target), [*network.parameters()])
    assert all(grad.any() for grad in theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_the_default_losses():
    x, y = everything(env := Tabular(1, **HOUSE))
    torch.testing.assert_close(env.task.reward(torch.zeros_like(y), y), -y.square().flatten())
    x, y = everything(env := Tabular(1, **TERCILES))
    torch.testing.assert_close(env.task.reward(torch.zeros(len(x), 3), y), torch.full((len(x),), -np.log(3)).float())


@pytest.mark.parametrize(
    ("name", "kind", "sentence"),
    [
        ("MSELos", "regression", "loss 'MSELos' is unknown; did you mean 'MSELoss'?"),
        ("nn.Linear", "regression", "loss 'nn.Linear' is unknown"),
        ("CrossEntropyLoss", "regression", "loss 'CrossEntropyLoss' does not fit regression"),  # one class: always 0
        ("CTCLoss", "regression", "loss 'CTCLoss' does not fit regression"),
        ("BCELoss", "regression", "loss 'BCELoss' does not fit regression"),  # predictions are unbounded
        ("MSELoss", "classification", "loss 'MSELoss' does not fit classification"),
    ],
)
def test_a_loss_that_cannot_serve_is_refused(name, kind, sentence):
    with pytest.raises(UserError) as error:
        Tabular(1, loss=name, **(TERCILES if kind == "classification" else HOUSE))
    assert sentence in str(error.value)


# Metrics


def test_regression_metrics_against_numpy():
    rng = np.random.default_rng(0)
    y, f = rng.normal(size=50), rng.normal(size=50)
    got = metrics.regression(torch.from_numpy(f[:, None]), torch.from_numpy(y[:, None]))
    assert got == pytest.approx(
        {
            "mse": np.mean((f - y) ** 2),
            "rmse": np.sqrt(np.mean((f - y) ** 2)),
            "mae": np.mean(np.abs(f - y)),
            "r2": 1 - np.sum((y - f) ** 2) / np.sum((y - y.mean()) ** 2),
        },
        rel=1e-12,
    )
    by_hand = metrics.regression(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [3.0], [5.0]]))
    assert by_hand == pytest.approx({"mse": 2 / 3, "rmse": (2 / 3) ** 0.5, "mae": 2 / 3, "r2": 0.75})
    assert np.isnan(metrics.regression(torch.zeros(2, 1), torch.ones(2, 1))["r2"])


def test_classification_metrics_against_numpy():
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    got = metrics.classification(torch.from_numpy(logits), torch.from_numpy(y))
    assert got == pytest.approx(
        {
            "accuracy": np.mean(logits.argmax(1) == y),
            "cross_entropy": -np.mean(log_softmax(logits, axis=1)[np.arange(40), y]),
        }
    )
    assert metrics.classification(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2])) == {"accuracy": 0.75}


@pytest.mark.parametrize("standardize", [False, True])
def test_metrics_are_in_the_targets_own_units(standardize):
    env = Tabular(186, split="test", features=["sqft", "beds"], standardize_target=standardize)
    env.reset(seed=0)
    step = env.step(torch.zeros(186, 1))
    dollars = everything(Tabular(1, split="test")).target.double().numpy()
    guess = env.prepared.encoding.target.mean
    assert (guess > 1e5) == standardize
    got = env.metrics(step.extras)
    assert got["mae"] == pytest.approx(np.abs(dollars - guess).mean(), rel=1e-6)
    assert got["rmse"] == pytest.approx(np.sqrt(np.mean((dollars - guess) ** 2)), rel=1e-6)


# The shipped houses


def test_closed_form_fit_of_the_houses():
    """The reference that a trained model has to meet, from the file by NumPy alone, and by way of the task."""
    with SACRAMENTO.open() as file:
        rows = [[float(r[name]) for name in ("sqft", "beds", "price")] for r in csv.DictReader(file)]
    data = np.array(rows)
    train, test = (Tabular(1, split=split, **HOUSE) for split in ("train", "test"))
    parts = train.prepared.parts
    a = np.column_stack([data[:, :2], np.ones(len(data))])
    w, *_ = np.linalg.lstsq(a[parts["train"]], data[parts["train"], 2], rcond=None)
    y, f = data[parts["test"], 2], (a @ w)[parts["test"]]
    expected = 1 - np.sum((y - f) ** 2) / np.sum((y - y.mean()) ** 2)
    x, target = everything(test)
    got = test.metrics({"prediction": with_one(x) @ least_squares(train), "target": target})["r2"]
    assert got == pytest.approx(expected, abs=1e-5)
    assert expected == pytest.approx(0.5975, abs=1e-3)


def test_every_house_is_in_one_part_and_runs_share_the_parts():
    parts = {split: everything(Tabular(2, split=split)) for split in ("train", "validation", "test")}
    assert [len(part.target) for part in parts.values()] == [653, 93, 186]
    with SACRAMENTO.open() as file:
        prices = sorted(float(r["price"]) for r in csv.DictReader(file))
    assert sorted(torch.cat([part.target for part in parts.values()]).flatten().tolist()) == prices
    again = everything(Tabular(7, split="test"))
    assert torch.equal(again.obs, parts["test"].obs)
    other = everything(Tabular(1, split="test", split_seed=1))
    assert not torch.equal(other.target, parts["test"].target)


def test_all_columns_are_features_by_default():
    env = Tabular(1)
    assert env.spec.obs_space.shape == everything(env).obs.shape[1:] == (len(env.prepared.encoding.outputs),)
    values, text = env.report()
    kinds = {c["name"]: (c["type"], c["role"]) for c in values["columns"]}
    assert kinds["zip"] == kinds["city"] == ("categorical", "feature")
    assert kinds["price"] == ("numeric", "target")
    assert "sacramento: 932 rows, 2 duplicated" in text


# Classification


def test_bandit_and_supervised_faces_show_the_same_examples():
    bandit, supervised = Tabular(16, bandit=True, **TERCILES), Tabular(16, **TERCILES)
    assert bandit.spec.action_space == spaces.Discrete(3)
    assert bandit.spec.loss is None
    assert supervised.spec.action_space.shape == (3,)
    a, b = bandit.reset(seed=3)[0], supervised.reset(seed=3)[0]
    assert torch.equal(a, b)
    action = torch.arange(16) % 3
    step = bandit.step(action)
    assert step.reward.tolist() == [
        float(x == y) for x, y in zip(action.tolist(), step.extras["target"].tolist(), strict=True)
    ]
    assert {0.0, 1.0} == {*step.reward.tolist()}
    assert bandit.metrics(step.extras) == {"accuracy": pytest.approx(step.reward.mean().item())}
    logits = nn.functional.one_hot(action, 3).float()
    got = supervised.metrics(supervised.step(logits).extras)
    assert got.keys() == {"accuracy", "precision", "recall", "f1", "roc_auc", "cross_entropy"}
    assert got["accuracy"] == bandit.metrics(step.extras)["accuracy"]


def test_price_terciles_are_balanced_and_learnable():
    train, test = (Tabular(1, split=split, **TERCILES) for split in ("train", "test"))
    x, y = everything(train)
    assert y.bincount().tolist() == pytest.approx([653 / 3] * 3, abs=6)
    # a nearest-class-mean rule fitted on training rows does better than guessing on held-out ones
    means = torch.stack([x[y == k].mean(0) for k in range(3)])
    x, y = everything(test)
    assert metrics.classification(-torch.cdist(x, means), y)["accuracy"] > 0.5


def test_labels_of_a_column():
    env = Tabular(4, kind="classification", target="type", features=["sqft", "beds"])
    assert env.prepared.encoding.target.classes == ("Condo", "Multi_Family", "Residential")
    assert env.prepared.encoding.decode(torch.tensor([[0.0, 1.0, 2.0]])) == ["Residential"]


# The line


def test_the_line_has_its_slope_over_standardised_inputs():
    env = Line(4)
    x, y = everything(env)
    assert x.mean().item() == pytest.approx(0, abs=1e-6)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    slope, intercept = least_squares(env).flatten().tolist()
    assert abs(slope - 3) < 0.02
    assert abs(intercept) < 0.02
    exact = least_squares(Line(4, slope=-2.5, intercept=7, noise=0, split_seed=3, data_seed=9)).flatten().tolist()
    assert exact == pytest.approx([-2.5, 7], abs=1e-5)
    residual = y.double() - with_one(x) @ least_squares(env)
    assert residual.std().item() == pytest.approx(0.1, rel=0.1)


def test_the_line_is_a_matter_of_its_seeds():
    a, b, c = (everything(Line(1, split="test", data_seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(a.target, b.target)
    assert not torch.equal(a.target, c.target)
    assert len(a.target) == 200


# From a file to predictions


def test_a_saved_run_predicts_and_fine_tunes_without_the_old_rows(tmp_path):
    old_csv, new_csv, more_csv = (tmp_path / name for name in ("old.csv", "new.csv", "more.csv"))
    old_csv.write_text(
        "房间,城市,价格\n" + "".join(f"{i % 5},{'北上'[i % 2]},{i}\n" for i in range(40)), encoding="utf-8"
    )
    kwargs = {"path": str(old_csv), "target": "价格", "standardize_target": True}
    old = Tabular(1, **kwargs)
    fitted = json.loads(json.dumps(old.fitted(), allow_nan=False))
    old_csv.unlink()
    predictor = Tabular.predictor({**kwargs, **fitted})
    assert predictor.spec.obs_space == old.spec.obs_space
    assert predictor.spec.action_space == old.spec.action_space
    assert predictor.spec.loss is not None
    obs, remarks = predictor.encode([{"房间": 3, "城市": "上"}, {"房间": "0", "城市": "广"}])
    assert remarks == ["column '城市': 1 of 2 rows hold a category unknown to training, encoded as zeros"]
    more_csv.write_text("城市,房间\n上,3\n深,0\n", encoding="utf-8")
    assert torch.equal(predictor.encode(more_csv)[0], obs)
    target = old.prepared.encoding.target
    assert predictor.decode(torch.tensor([[0.0], [1.0]])) == pytest.approx([target.mean, target.mean + target.std])

    new_csv.write_text("价格,城市,房间\n" + "".join(f"{1000 + i},北,{i}\n" for i in range(20)), encoding="utf-8")
    tuned = Tabular(1, **{**kwargs, **fitted, "path": str(new_csv)})
    assert tuned.fitted() == old.fitted()
    assert everything(tuned).obs.shape == (14, 3)
    assert min(tuned.prepared.encoding.decode(everything(tuned).target)) > 999
    with pytest.raises(UserError, match=r"classification of '价格' from all other columns does not fit the saved enc"):
        Tabular(1, path=str(new_csv), target="价格", kind="classification", **fitted)


def test_the_line_and_the_bandit_predict_too():
    line = Line.predictor({"slope": 2, **Line(1, slope=2).fitted()})
    assert line.encode([{"x": 0.5}])[0].item() == pytest.approx(0.5)
    assert line.decode(torch.tensor([[2.5]])) == [2.5]
    kwargs = {**TERCILES, "bandit": True}
    bandit = Tabular.predictor({**kwargs, **Tabular(1, **kwargs).fitted()})
    assert bandit.spec.action_space == spaces.Discrete(3)
    assert bandit.decode(torch.tensor([0]))[0].startswith("price < ")


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"targt": "price"}, "env.kwargs.targt is not a setting; did you mean 'target'?"),
        ({"missing": "men"}, "env.kwargs.missing: got 'men', expected 'drop', 'mean', 'median' or 'error'"),
        ({"val_fraction": 1.5}, "env.kwargs.val_fraction: got 1.5, expected"),
        ({"test_fraction": float("nan")}, "env.kwargs.test_fraction: got nan, expected"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "expected val_fraction + test_fraction below 1"),
        ({"features": "sqft"}, "env.kwargs.features: got 'sqft', expected a valid list"),
        ({"bins": 1, "kind": "classification"}, "env.kwargs.bins: got 1, expected greater than or equal to 2"),
        ({"bins": 3}, "expected kind='classification' beside bandit or bins"),
        ({"bandit": True}, "expected kind='classification' beside bandit or bins"),
        ({"kind": "classification", "bins": 3, "standardize_target": True}, "expected kind='regression' beside"),
        ({"kind": "classification", "bins": 3, "bandit": True, "loss": "NLLLoss"}, "expected no loss beside bandit"),
        ({"target": "prise"}, "sacramento: there is no column 'prise'; did you mean 'price'?"),
        ({"target": "city"}, "sacramento line 2: target 'city' is 'SACRAMENTO', expected a number"),
        ({"path": "no.csv"}, "no.csv: got No such file or directory, expected a CSV or TSV file"),
        ({"val_fraction": 0.0, "split": "validation"}, "sacramento: the validation split is empty"),
        ({"encoding": "no.json"}, "env.kwargs.encoding: got 'no.json', expected a valid dictionary"),
        ({"encoding": {"features": []}}, "saved encoding: target: got"),
    ],
)
def test_bad_keywords_get_one_sentence(kwargs, sentence):
    with pytest.raises(UserError) as error:
        Tabular(1, **kwargs)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_keywords_of_the_line():
    with pytest.raises(UserError, match=r"env\.kwargs\.n: got 5, expected greater than or equal to 10"):
        Line(1, n=5)
    with pytest.raises(UserError, match=r"env\.kwargs\.nois is not a setting; did you mean 'noise'"):
        Line(1, nois=1)
