"""Metrics against scikit-learn, figures against slow loops, and the worst mistakes in their order."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import rlcore
from envs import figures, metrics, mistakes
from envs.pairs import Pairs
from rlcore import cli
from rlcore.errors import UserError

TABLE: dict[str, Any] = {
    "env": {
        "id": "tabular",
        "kwargs": {"features": ["sqft", "beds", "baths"], "kind": "classification", "bins": 3},
    },
    "agent": {"name": "supervised", "network": {"name": "mlp", "kwargs": {"hidden": []}}},
    "source": {"name": "dataset", "batch_size": 64},
    "budget": {"frames": 640},
    "eval": {"every": 0},
}


def drawn(classes: int, n: int, seed: int, several: bool = False) -> tuple[Tensor, Tensor]:
    """Return random logits (n, C), coarse enough for ties, and classes (n,), or labels (n, C)."""
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, classes, generator=g) * 4).round() / 4
    shape = (n, classes) if several else (n,)
    target = torch.randint(2 if several else classes, shape, generator=g)
    return logits, target.float() if several else target


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_metrics_of_classes_are_scikit_learns(classes: int) -> None:
    logits, target = drawn(classes, 80, seed=classes)
    got, p, said, y = metrics.labelling(logits, target), logits.double().softmax(1), logits.argmax(1), target
    many = {"average": "macro", "zero_division": 0}
    auc = sk.roc_auc_score(y, p[:, 1]) if classes == 2 else sk.roc_auc_score(y, p, multi_class="ovr")
    assert got == pytest.approx(
        {
            "accuracy": sk.accuracy_score(y, said),
            "precision": sk.precision_score(y, said, **many),
            "recall": sk.recall_score(y, said, **many),
            "f1": sk.f1_score(y, said, **many),
            "roc_auc": auc,
            "cross_entropy": sk.log_loss(y, p),
        }
    )


def test_metrics_of_several_labels_are_scikit_learns() -> None:
    logits, target = drawn(4, 60, seed=1, several=True)
    got, said = metrics.labelling(logits, target), (logits > 0).float()
    many = {"average": "macro", "zero_division": 0}
    assert got["exact"] == pytest.approx(sk.accuracy_score(target, said))
    assert got["accuracy"] == pytest.approx(1 - sk.hamming_loss(target, said))
    assert got["f1"] == pytest.approx(sk.f1_score(target, said, **many))
    assert got["roc_auc"] == pytest.approx(sk.roc_auc_score(target, logits, average="macro"))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_confusion_counts_are_those_of_a_slow_loop(pairs: list[tuple[int, int]]) -> None:
    said, held = torch.tensor(pairs).T
    wanted = np.zeros((4, 4), int)
    for s, h in pairs:
        wanted[h, s] += 1
    assert np.array_equal(figures.confusion_counts(said, held, 4), wanted)


def test_counts_of_several_labels_by_hand() -> None:
    said = torch.tensor([[1, 0], [1, 1], [0, 0], [1, 1]]).bool()
    held = torch.tensor([[1, 1], [0, 1], [0, 1], [1, 0]]).bool()
    assert figures.label_counts(said, held).tolist() == [[2, 0, 1, 1], [1, 2, 1, 0]]


NAMES = ["ant", "bee", "cat"]


def cells(figure: Any) -> np.ndarray:
    """Return the numbers written into a matrix, where they stand."""
    texts = figure.axes[0].texts
    size = math.isqrt(len(texts))
    found = np.full((size, size), -1)
    for text in texts:
        x, y = text.get_position()
        found[round(y), round(x)] = int(text.get_text())
    return found


def test_the_confusion_matrix_has_the_true_classes_as_rows_and_their_names() -> None:
    logits, target = drawn(3, 50, seed=5)
    figure = figures.classification(logits, target, NAMES)["confusion"]
    axes = figure.axes[0]
    assert np.array_equal(cells(figure), sk.confusion_matrix(target, logits.argmax(1)))
    assert [t.get_text() for t in axes.get_yticklabels()] == [t.get_text() for t in axes.get_xticklabels()] == NAMES
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    shares = np.asarray(axes.images[0].get_array())
    assert np.allclose(shares.sum(1), 1)  # the colour is a fraction of the true class
    chosen = figures.classification(logits.argmax(1), target, NAMES)  # classes have no scores
    assert chosen.keys() == {"confusion"} and np.array_equal(cells(chosen["confusion"]), cells(figure))


def slow_points(score: np.ndarray, held: np.ndarray) -> list[tuple[float, float]]:
    """Return the ROC points of every threshold, from the highest down."""
    points = [(0.0, 0.0)]
    for threshold in sorted({*score.tolist()}, reverse=True):
        said = score >= threshold
        points.append(((said & ~held).sum() / (~held).sum(), (said & held).sum() / held.sum()))
    return points


def between(p: tuple[float, float], a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Whether p lies on the way from a up and right to b."""
    turn = (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])
    return abs(turn) < 1e-12 and a[0] <= p[0] <= b[0] and a[1] <= p[1] <= b[1]


@pytest.mark.parametrize("several", [False, True])
def test_roc_curves_pass_through_the_points_of_a_slow_loop(several: bool) -> None:
    logits, target = drawn(3, 60, seed=2, several=several)
    axes = figures.classification(logits, target, NAMES)["roc"].axes[0]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    lines = {line.get_label().split(" ")[0]: line for line in axes.lines[1:]}  # the first is the diagonal
    areas = []
    for c, name in enumerate(NAMES):
        score = (logits.double().sigmoid() if several else logits.double().softmax(1))[:, c].numpy()
        held = (target[:, c] > 0 if several else target == c).numpy()
        points = slow_points(score, held)
        kept = list(zip(*lines[name].get_data(), strict=True))  # without those on a straight line
        assert {*kept} <= {*points} and kept[0] == (0, 0) and kept[-1] == (1, 1)
        assert all(any(between(p, a, b) for a, b in itertools.pairwise(kept)) for p in points)
        area = sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(points))
        areas.append((area, f"{name} (area {area:.3f})"))
    assert legend == [text for _, text in sorted(areas)]


def test_of_two_classes_the_second_has_the_curve_and_of_many_the_lowest_ten_are_named() -> None:
    axes = figures.classification(*drawn(2, 40, seed=3), ["no", "yes"])["roc"].axes[0]
    assert [line.get_label().split(" ")[0] for line in axes.lines[1:]] == ["yes"]
    many = [f"class {i}" for i in range(30)]
    axes = figures.classification(*drawn(30, 900, seed=3), many)["roc"].axes[0]
    assert len(axes.lines) == 31 and len(axes.get_legend().get_texts()) == 10
    assert axes.get_legend().get_title().get_text() == "the lowest 10 of 30"


def test_a_class_without_items_has_no_curve_and_no_area(capsys: pytest.CaptureFixture[str]) -> None:
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [1, 2, 0]])
    target = torch.tensor([0, 1, 1])
    axes = figures.classification(logits, target, NAMES)["roc"].axes[0]
    assert sorted(line.get_label().split(" ")[0] for line in axes.lines[1:]) == ["ant", "bee"]
    metrics._without_area.cache_clear()
    for _ in range(2):
        assert "roc_auc" not in metrics.labelling(logits, target)
    assert capsys.readouterr().err.count("there is no roc_auc: a split has no item of one class") == 1


def test_without_matplotlib_there_are_no_figures_and_one_remark(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    figures._drawable.cache_clear()
    try:
        for _ in range(2):
            assert figures.classification(*drawn(3, 9, seed=0), NAMES) == {}
    finally:
        figures._drawable.cache_clear()
    assert capsys.readouterr().err.count("pip install 'rlcore[plot]'") == 1


def test_without_scikit_learn_accuracy_and_cross_entropy_are_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logits, target = drawn(3, 9, seed=0)
    whole = metrics.labelling(logits, target)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "sklearn" else find(name, *a))
    metrics.has_scikit_learn.cache_clear()
    try:
        for _ in range(2):
            assert metrics.labelling(logits, target) == {k: whole[k] for k in ("accuracy", "cross_entropy")}
        assert figures.classification(logits, target, NAMES).keys() == {"confusion"}
    finally:
        metrics.has_scikit_learn.cache_clear()
    assert capsys.readouterr().err.count("pip install scikit-learn") == 1


def rows(text: str) -> list[list[str]]:
    """Return the cells of a Markdown table's rows."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()[4:]]


def test_the_worst_mistakes_come_first_and_what_is_right_does_not_come() -> None:
    #            right, wrong and sure, wrong and unsure, right but unsure
    logits = torch.tensor([[5.0, 0, 0], [0, 4, 0], [0, 0.5, 0.4], [0.1, 0, 0]])
    target = torch.tensor([0, 2, 2, 0])
    text = mistakes.labels(logits, target, NAMES, ["i0", "i1", "i2\n|x", "i3"], 5)
    assert text.startswith("The worst 2 of 2 mistakes among 4:\n\n| loss | true | predicted | confidence | item |\n")
    loss = [math.log(2 + math.exp(4)), math.log(1 + math.exp(0.5) + math.exp(0.4)) - 0.4]
    sure = [math.exp(4 - loss[0]), math.exp(0.5 - 0.4 - loss[1])]
    assert rows(text) == [
        [f"{loss[0]:.4f}", "cat", "bee", f"{sure[0]:.4f}", "i1"],
        [f"{loss[1]:.4f}", "cat", "bee", f"{sure[1]:.4f}", "i2 \\|x"],
    ]
    assert [row[-1] for row in rows(mistakes.labels(logits, target, NAMES, list("abcd"), 1))] == ["b"]
    assert mistakes.labels(logits[:1], target[:1], NAMES, ["a"], 5) == "No mistake among 1."


def test_mistakes_of_several_labels_and_of_chosen_classes() -> None:
    logits = torch.tensor([[1.0, -1], [3, 3], [-2, -2]])
    target = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    found = rows(mistakes.labels(logits, target, ["x", "y"], list("abc"), 5))
    one, two = math.log1p(math.exp(-3)), math.log1p(math.exp(-2))
    assert found == [
        [f"{two + 2:.4f}", "x, y", "none", f"{math.exp(-2 * two):.4f}", "c"],
        [f"{(2 * one + 3) / 2:.4f}", "y", "x, y", f"{math.exp(-2 * one):.4f}", "b"],
    ]
    chosen = mistakes.labels(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 1]), NAMES, list("abc"), 5)
    assert rows(chosen) == [["1.0000", "cat", "bee", "", "b"], ["1.0000", "bee", "cat", "", "c"]]


def test_mistakes_of_numbers_and_of_completions() -> None:
    text = mistakes.numbers(torch.tensor([[1.0], [9], [4]]), torch.tensor([[2.0], [5], [4.5]]), list("abc"), 2)
    assert rows(text) == [["4", "5", "9", "b"], ["1", "2", "1", "a"]]
    env = Pairs(4, split="validation", n=200)
    env.reset(seed=0)
    target = env.task.draw(torch.arange(4)).target
    written = target.clone()
    written[1, 0] = written[1, 1]  # one token may be wrong
    written[3] = env.task.vocabulary.eos
    found = rows(env.mistakes(env.step(written).extras, 9))
    prompts = env.task.vocabulary.decode(env.task.draw(torch.tensor([3])).obs)
    assert found[0] == ["0.0000", prompts[0], env.task.vocabulary.decode(target[3:4])[0], ""]
    assert len(found) == int((written != target).any(1).sum())


def test_a_run_shows_figures_and_mistakes_and_evaluate_lists_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = rlcore.train(TABLE, out=tmp_path / "run", **{"eval.every": 320})
    assert {"precision", "recall", "f1", "roc_auc"} < run.result["evaluation"].keys()
    for _ in range(2):
        events = EventAccumulator(str(run.path)).Reload()
        assert sorted(events.Tags()["images"]) == ["eval/confusion", "eval/roc", "final/confusion", "final/roc"]
        assert [image.step for image in events.Images("final/confusion")] == [640]
        assert [image.step for image in events.Images("eval/confusion")] == [320, 640]
        (shown,) = events.Tensors("final/mistakes/text_summary")
        rlcore.train(out=run.path, resume=True)  # shows them anew, not twice
    listed = shown.tensor_proto.string_val[0].decode()
    assert len(rows(listed)) == 20
    with pytest.raises(SystemExit, match="0"):
        cli.evaluate([str(run.path), "--mistakes", "3", "--json"])
    result = json.loads(capsys.readouterr().out)
    found = rows(result["mistakes"])
    assert found == rows(listed)[:3]
    losses = [float(row[0]) for row in rows(listed)]
    assert losses == sorted(losses, reverse=True)
    assert -losses[0] == pytest.approx(result["min"], abs=1e-4)  # the reward is minus the loss
    line = int(found[0][-1].split(":")[0].removeprefix("line "))
    assert f"sqft={shipped(line)}" in found[0][-1]
    with pytest.raises(SystemExit, match="2"):
        cli.evaluate([str(run.path), str(run.path / ".." / "run"), "--mistakes", "3"])


def shipped(line: int) -> str:
    """Return the living area in a line of the shipped table."""
    from envs.table import read

    table = read("sacramento")
    return table.cells["sqft"][table.lines.index(line)]


def test_where_no_mistakes_are_listed_one_sentence_says_so(tmp_path: Path) -> None:
    run = rlcore.train(
        "cartpole_dqn", out=tmp_path / "run", **{"budget.frames": 64, "eval.every": 0, "stop.metric": ""}
    )
    with pytest.raises(UserError, match=r"--mistakes: environment 'CartPole-v1' lists none; expected a task that does"):
        rlcore.evaluate(run.path, mistakes=3)
