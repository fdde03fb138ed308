"""Runs into curves, and curves into figures: run folders written by hand, artists read back, bytes compared."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcore import config as configs
from rlcore import curves, plots
from rlcore.curves import Curve, Entry
from rlcore.errors import UserError
from rlcore.statistics import aggregates, iqm, performance_profile, probability_of_improvement, stratified_bootstrap_ci

Row = dict[str, float]


def write(
    run: Path,
    rows: list[Row],
    *,
    recipe: str = "cartpole_online_q",
    result: dict[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """Write a run's folder; ``result`` None: it is unfinished."""
    run.mkdir(parents=True)
    settings = {name.replace("__", "."): value for name, value in fields.items()}
    config = configs.validate({**configs.override(configs.read("cartpole_online_q"), settings), "recipe": recipe})
    (run / "config.yaml").write_text(configs.dump(config))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (run / "progress.csv").write_text(text.getvalue())
    if result is not None:
        (run / "result.json").write_text(json.dumps({"status": "finished", **result}))
    return run


def evaluated(*pairs: tuple[float, float]) -> list[Row]:
    """Return rows of (frames, return) with a second of training every 100 frames."""
    return [{"frames": f, "eval/return_mean": r, "time/train_seconds": f / 100} for f, r in pairs]


def seeds(root: Path, name: str, scores: list[float], **fields: Any) -> list[Path]:
    """Write a run for each score, whose curve rises to it in two steps."""
    return [
        write(
            root / f"{name}-{seed}",
            evaluated((100, 0), (200, score / 2), (300, score)),
            recipe=name,
            result={"evaluation": {"mean": score + 1, "episodes": 5}},
            seed=seed,
            **fields,
        )
        for seed, score in enumerate(scores)
    ]


def made(name: str, x: list[float], y: list[float], held: bool = False) -> Curve:
    return Curve(Path(name), np.array(x, float), np.array(y, float), held)


# Reading


def test_columns_by_name_with_the_frames_of_their_rows(tmp_path: Path) -> None:
    (tmp_path / "progress.csv").write_text("frames,a,b\n100,1,\n200,2,5\n200,,6\n300,nan,\n400,4")
    found = {name: (frames.tolist(), values.tolist()) for name, (frames, values) in curves.read(tmp_path).items()}
    assert found["b"] == ([200, 200], [5, 6])
    assert found["a"][0] == [100, 200, 300]  # the last row lacks its end: a kill left it
    assert found["a"][1][:2] == [1, 2] and np.isnan(found["a"][1][2])
    assert found.keys() == {"a", "b"}
    assert curves.read(tmp_path / "nothing") == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("frames,a\n1,2\n2,x\n", r"progress.csv line 3: expected a number of frames .*'x'"),
        ("frames,a\n1,2,3\n", "line 2: expected a number"),
        ("frames,a\n,2\n", "line 2: expected a number"),
        ("frames,a\n10,2\n9,2\n", "line 3: frame 9 follows 10"),
    ],
)
def test_a_broken_row_is_told(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "progress.csv").write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        curves.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_time_is_read_between_the_rows_that_have_it(tmp_path: Path) -> None:
    columns = {
        "eval": (np.array([50.0, 150, 200]), np.array([1.0, 2, 3])),
        curves.SECONDS: (np.array([100.0, 200]), np.array([1.0, 3])),
    }
    assert curves.curve(tmp_path, columns, "eval", "time").x.tolist() == [0.5, 2.0, 3.0]  # the first second began at 0
    assert curves.curve(tmp_path, columns, "eval").x.tolist() == [50, 150, 200]
    with pytest.raises(UserError, match=r"logged no time/train_seconds; expected it for the axis of time"):
        curves.curve(tmp_path, {"eval": columns["eval"]}, "eval", "time")
    columns["eval"][1][1] = np.inf
    with pytest.raises(UserError, match="eval is inf at frame 150"):
        curves.curve(tmp_path, columns, "eval")


@pytest.mark.parametrize(
    ("result", "frames", "time"),
    [
        (None, False, False),
        ({"status": "failed", "error": "NaN"}, False, False),
        ({"frames": 300}, False, True),
        ({"stopped": "eval/return_mean reached 500"}, True, True),
    ],
)
def test_which_last_values_hold(tmp_path: Path, result: dict[str, Any] | None, frames: bool, time: bool) -> None:
    run = write(tmp_path / "r", evaluated((100, 1), (200, 2)), result=result)
    found = [curves.curve(run, curves.read(run), "eval/return_mean", x).held for x in ("frames", "time")]
    assert found == [frames, time]


# One grid


def test_a_grid_is_the_union_between_the_last_begin_and_the_first_end() -> None:
    grid = curves.grid([made("long", [100, 200, 300], [0, 10, 30]), made("short", [150, 250], [1, 2])])
    assert grid.x.tolist() == [150, 200, 250]
    assert grid.values.tolist() == [[5, 10, 20], [1, 1.5, 2]]
    assert (grid.shortest, grid.stops.tolist()) == (Path("short"), [])


def test_a_run_that_stopped_by_itself_keeps_its_last_value() -> None:
    grid = curves.grid([made("long", [100, 200, 300], [0, 10, 30]), made("short", [150, 250], [1, 2], held=True)])
    assert grid.x.tolist() == [150, 200, 250, 300]
    assert grid.values.tolist() == [[5, 10, 20, 30], [1, 1.5, 2, 2]]
    assert (grid.shortest, grid.stops.tolist()) == (None, [250])
    both = curves.grid([made("a", [100, 200], [0, 1], held=True), made("b", [100, 150], [0, 7], held=True)])
    assert (both.x[-1], both.values[1, -1], both.stops.tolist()) == (200, 7, [150])
    # A stopped run does not carry the group past one that was killed.
    killed = curves.grid([made("killed", [100, 120], [0, 2]), made("stopped", [100, 200], [0, 1], held=True)])
    assert (killed.x.tolist(), killed.stops.tolist(), killed.shortest) == ([100, 120], [], Path("killed"))


def test_many_points_are_thinned_and_stops_stay() -> None:
    x = np.sort(np.random.default_rng(0).uniform(0, 1000, size=300)).tolist()
    grid = curves.grid(
        [made("a", [0, *x, 1000], [2 * v for v in (0, *x, 1000)]), made("b", [0, 333.3], [0, 1], held=True)]
    )
    assert 200 <= len(grid.x) <= 201 and 333.3 in grid.x
    assert np.allclose(grid.values[0], 2 * grid.x)


def test_runs_without_common_frames_are_told() -> None:
    with pytest.raises(UserError, match=r"run 'late' begins at 300, where another of its group has ended \(200\)"):
        curves.grid([made("early", [100, 200], [0, 1]), made("late", [300, 400], [0, 1])])


points = st.lists(st.tuples(st.integers(0, 50), st.integers(-9, 9)), min_size=1, max_size=8, unique_by=lambda p: p[0])


@given(st.lists(st.tuples(points, st.booleans()), min_size=1, max_size=4))
@settings(deadline=None, max_examples=150)
def test_a_grid_invents_nothing(drawn: list[tuple[list[tuple[int, int]], bool]]) -> None:
    mine = [made(str(i), *map(list, zip(*sorted(p), strict=True)), held) for i, (p, held) in enumerate(drawn)]
    try:
        grid = curves.grid(mine)
    except UserError:
        assert max(c.x[0] for c in mine) > min(c.x[-1] for c in mine if not c.held)
        return
    for curve, values in zip(mine, grid.values, strict=True):
        assert curve.x[0] <= grid.x[0] and (curve.held or grid.x[-1] <= curve.x[-1])
        for x, value in zip(grid.x, values, strict=True):
            around = [curve.y[curve.x <= x][-1], *curve.y[curve.x >= x][:1]]
            assert min(around) - 1e-9 <= value <= max(around) + 1e-9
            if x in curve.x:
                assert value == curve.y[curve.x == x][0]
    assert (grid.shortest is not None) == (grid.x[-1] < max(c.x[-1] for c in mine))


# Groups and scores


def test_groups_by_recipe_seed_and_any_field(tmp_path: Path) -> None:
    rows = evaluated((100, 1))
    trees = {
        run: configs.read(run)
        for run in (
            write(tmp_path / "a", rows, recipe="one", seed=3, optim__lr=0.1),
            write(tmp_path / "b", rows, recipe="two", seed=1, optim__lr=0.01),
            write(tmp_path / "c", rows, recipe="", seed=3, optim__lr=0.01),
        )
    }
    by = {field: [*curves.groups(trees, field).values()] for field in ("recipe", "seed", "optim.lr", "agent.name")}
    assert by["recipe"] == ["one", "two", 'recipe = ""']
    assert by["seed"] == ["seed = 1", "seed = 3", "seed = 3"]  # numbers ascend
    assert by["optim.lr"] == ["optim.lr = 0.01", "optim.lr = 0.01", "optim.lr = 0.1"]
    assert len({*by["agent.name"]}) == 1 and "=" not in by["agent.name"][0]
    del trees[tmp_path / "a"]["optim"]["lr"]
    assert curves.groups(trees, "optim.lr")[tmp_path / "a"] == "optim.lr = unset"
    with pytest.raises(UserError, match=r"--group-by optim.rl: is no settings field .*; did you mean 'optim.lr'"):
        curves.groups(trees, "optim.rl")


def test_a_score_is_the_final_evaluations_where_all_have_one(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "a", [10, 20])
    rows, metric, said = curves.entries(runs, None, "frames", "recipe")
    assert (metric, said) == ("eval/return_mean", "mean return of the final evaluation (5 episodes)")
    assert [row.score for row in rows] == [11, 21]
    (runs[0] / "result.json").write_text('{"status": "failed", "error": "NaN"}')
    rows, _, said = curves.entries(runs, None, "frames", "recipe")
    assert ([row.score for row in rows], said) == ([10, 20], "last logged eval/return_mean")  # of all runs the same


def test_a_run_without_the_metric_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = seeds(tmp_path, "a", [10, 20])
    runs.append(write(tmp_path / "young", [{"frames": 10, "train/episode_return": 3}]))
    rows, metric, _ = curves.entries(runs, None, "frames", "recipe")
    assert ([row.run for row in rows], metric) == (runs[:2], "eval/return_mean")
    assert f"left out, for eval/return_mean was never logged: {tmp_path / 'young'}\n" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"metric 'eval/retrun_mean' is in no run's .*did you mean 'eval/return_mean'"):
        curves.entries(runs, "eval/retrun_mean", "frames", "recipe")
    (runs[2] / "progress.csv").write_text("")
    with pytest.raises(
        UserError, match=r"neither eval/return_mean nor train/episode_return; .*have logged nothing yet"
    ):
        curves.entries(runs[2:], None, "frames", "recipe")


def entry(group: str, environment: str, score: float) -> Entry:
    return Entry(Path("r"), group, environment, made("r", [0], [0]), score)


def test_scores_of_several_environments_are_scaled_to_each_ones_range() -> None:
    one = [entry("a", "E", 5), entry("a", "E", 7), entry("b", "E", 9)]
    assert {name: table.tolist() for name, table in curves.score_tables(one).items()} == {"a": [[5], [7]], "b": [[9]]}
    rows = [entry("a", "E", -200), entry("a", "F", 10), entry("b", "E", -100), entry("b", "F", 30)]
    rows += [entry("a", "E", -150), entry("a", "F", 20)]
    tables = curves.score_tables(rows)
    assert tables["a"].tolist() == [[0.0, 0.0], [0.5, 0.5]] and tables["b"].tolist() == [[1.0, 1.0]]
    with pytest.raises(UserError, match="group 'b' has runs 2 of E, 1 of F; expected as many of each"):
        curves.score_tables([*rows, entry("b", "E", 0)])


# Figures


def lines_of(panel: Any) -> dict[str, Any]:
    return {line.get_label(): line for line in panel.lines if not line.get_label().startswith("_")}


def band(panel: Any, colour: str) -> dict[float, tuple[float, float]]:
    """Return the lowest and highest point of the filled band of a colour, by x."""
    from matplotlib.colors import same_color, to_rgb

    (filled,) = [c for c in panel.collections if same_color(to_rgb(c.get_facecolor()[0]), colour)]
    found: dict[float, tuple[float, float]] = {}
    for x, y in filled.get_paths()[0].vertices:
        low, high = found.get(x, (y, y))
        found[x] = min(low, y), max(high, y)
    return found


def legend_of(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_curve_is_the_interquartile_mean_with_its_interval() -> None:
    values = np.random.default_rng(0).normal(size=(5, 3)) + 10
    mine = [made(f"r{i}", [1000, 2000, 3000], row.tolist()) for i, row in enumerate(values)]
    figure = plots.learning_curves({"E": {"many": mine, "single": mine[:1]}}, "eval/return_mean")
    (panel,) = figure.axes
    lines = lines_of(panel)
    assert lines["many"].get_xdata().tolist() == [1000, 2000, 3000]
    assert lines["many"].get_ydata().tolist() == pytest.approx([iqm(column) for column in values.T])
    for x, column in zip((1000, 2000, 3000), values.T, strict=True):
        assert band(panel, plots.COLOURS[0])[x] == pytest.approx(stratified_bootstrap_ci(column[:, None]))
    assert lines["single"].get_ydata().tolist() == pytest.approx(values[0].tolist())
    assert len(panel.collections) == 1  # one run has no band, and its label says so
    assert legend_of(figure) == ["many\n(5 runs)", "single\n(1 run, no interval)"]
    assert [handle.get_color() for handle in figure.legends[0].get_lines()] == list(plots.COLOURS[:2])
    assert (panel.get_title(), figure.get_supxlabel(), figure.get_supylabel()) == (
        "E",
        "environment frames",
        "mean return of evaluation",
    )
    assert "interquartile mean over runs; shaded: 95 % stratified bootstrap" in figure.get_suptitle()
    assert "○" not in figure.get_suptitle()  # nothing stopped, nothing to explain


def test_stops_are_marked_and_the_curve_is_dashed_where_most_runs_are_carried_on() -> None:
    mine = [
        made("a", [100, 200], [0, 6], held=True),
        made("b", [100, 300], [0, 6], held=True),
        made("c", [100, 200, 300, 400], [0, 1, 2, 3]),
    ]
    figure = plots.learning_curves({"E": {"g": mine}}, "eval/return_mean")
    solid, dashed, marks = figure.axes[0].lines
    assert solid.get_xdata().tolist() == [100, 200, 300] and solid.get_linestyle() == "-"
    assert dashed.get_xdata().tolist() == [300, 400] and dashed.get_linestyle() == "--"
    assert marks.get_xdata().tolist() == [200, 300] and marks.get_marker() == "o"
    assert solid.get_ydata().tolist() == pytest.approx([0, (6 + 3 + 1) / 3, (6 + 6 + 2) / 3])
    assert marks.get_ydata().tolist() == solid.get_ydata()[1:].tolist()
    assert "○: a run reached its target and stopped; its last value is carried on" in figure.get_suptitle()
    over_time = plots.learning_curves({"E": {"g": mine}}, "loss", "time")
    assert "○: a run finished; its last value" in over_time.get_suptitle()
    assert (over_time.get_supxlabel(), over_time.get_supylabel()) == ("seconds of training", "loss")


def test_a_curve_that_ends_early_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    mine = [made("long", [100, 2000], [0, 1]), made("short", [100, 1500], [0, 1])]
    (panel,) = plots.learning_curves({"E": {"g": mine}}, "loss").axes
    assert panel.lines[0].get_xdata()[-1] == 1500
    assert "the curve of 'g' ends at 1,500 environment frames, where run 'short' ends" in capsys.readouterr().err


def test_each_environment_has_a_panel_and_a_group_one_colour() -> None:
    a, b = made("a", [1, 2], [0, 1]), made("b", [1, 2], [5, 6])
    figure = plots.learning_curves({"E": {"x": [a], "y": [b]}, "F": {"y": [a, a, b]}}, "loss")
    first, second = figure.axes
    assert (first.get_title(), second.get_title()) == ("E", "F")
    assert lines_of(second)["y"].get_color() == lines_of(first)["y"].get_color() == plots.COLOURS[1]
    assert legend_of(figure) == ["x\n(1 run, no interval)", "y\n(1 to 3 runs)"]


def test_more_than_six_groups_have_a_panel_each_before_the_others() -> None:
    groups = {f"g{i}": [made(f"r{i}", [1, 2], [i, i + 1])] for i in range(7)}
    figure = plots.learning_curves({"E": groups}, "loss")
    shown = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title() for panel in shown] == [f"g{i}\n(1 run, no interval)" for i in range(7)]
    assert figure.get_suptitle().startswith("E. Learning curves") and not figure.legends
    for i, panel in enumerate(shown):
        assert [line.get_ydata()[0] for line in panel.lines] == [*(j for j in range(7) if j != i), i]
        below = panel.xaxis.get_tick_params()["labelbottom"]
        assert below == (i > 2)  # the lowest of its column


def test_a_profile_is_steps_at_the_scores() -> None:
    tables = {"g": np.array([[1.0], [3.0], [3.0], [5.0]]), "h": np.array([[2.0]])}
    figure = plots.profiles(tables, "points")
    (panel,) = figure.axes
    line = lines_of(panel)["g"]
    assert line.get_drawstyle() == "steps-post"
    assert line.get_xdata()[1:-1].tolist() == [1, 2, 3, 5]
    assert line.get_ydata().tolist() == [1, 0.75, 0.75, 0.25, 0, 0]
    assert lines_of(panel)["h"].get_ydata().tolist() == [1, 1, 0, 0, 0, 0]
    found = performance_profile(tables["g"], line.get_xdata())
    step = band(panel, plots.COLOURS[0])
    for i, x in enumerate(line.get_xdata()[1:], 1):  # at a step the band has both heights
        assert step[x] == (min(found.low[i - 1 : i + 1]), max(found.high[i - 1 : i + 1]))
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("score τ: points", "fraction of runs with score > τ")


def bars(panel: Any) -> list[tuple[float, float]]:
    return [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in panel.patches]


def values(panel: Any) -> list[float]:
    from matplotlib.collections import LineCollection

    return [c.get_segments()[0][0, 0] for c in panel.collections if isinstance(c, LineCollection)]


def test_bars_are_the_intervals_and_lines_the_estimates() -> None:
    rng = np.random.default_rng(1)
    tables = {"g": rng.normal(size=(6, 1)), "single": np.array([[0.5]]), "h": rng.normal(size=(4, 1))}
    found = {name: aggregates(table, 2.0) for name, table in tables.items()}
    figure = plots.intervals(tables, found, "points", 2.0)
    for panel, statistic in zip(figure.axes, ("IQM", "median", "mean", "optimality gap"), strict=True):
        assert panel.get_title() == f"{statistic} {'↓' if statistic == 'optimality gap' else '↑'}"
        assert values(panel) == pytest.approx([float(found[name][statistic].value) for name in tables])
        ends = [(found[name][statistic].low, found[name][statistic].high) for name in ("g", "h")]
        assert np.array(bars(panel)) == pytest.approx(np.array(ends))
        assert all(left < low and high < right for low, high in bars(panel) for left, right in [panel.get_xlim()])
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["g (6 runs)", "single (1 run, no interval)", "h (4 runs)"]
    assert figure.axes[0].yaxis_inverted()  # the first group on top
    assert "shortfall from the best run, 2" in figure.get_suptitle()


def test_improvement_names_both_sides_of_every_row() -> None:
    rng = np.random.default_rng(2)
    tables = {name: rng.normal(i, size=(5, 1)) for i, name in enumerate("abc")}
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    compared = {(x, y): probability_of_improvement(tables[x], tables[y]) for x, y in pairs}
    figure = plots.improvement(compared, {"a": 5, "b": 5, "c": 5})
    left, right = figure.axes
    assert values(left) == pytest.approx([float(compared[pair].value) for pair in pairs])
    assert np.array(bars(left)) == pytest.approx(np.array([(e.low, e.high) for e in compared.values()]))
    sides = [[label.get_text() for label in axis.get_yticklabels()] for axis in (left, right)]
    assert [*zip(*sides, strict=True)] == [(f"{x} (5 runs)", f"{y} (5 runs)") for x, y in pairs]
    assert left.get_ylim() == right.get_ylim() and left.yaxis_inverted() and right.yaxis_inverted()
    assert left.lines[0].get_xdata()[0] == 0.5 and "P(X > Y)" in figure.get_supxlabel()


# Everything together


def test_the_same_runs_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = seeds(tmp_path, "one", [1, 5, 9]) + seeds(tmp_path, "two", [2, 4, 6])
    first = plots.plot(runs, tmp_path / "first")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")  # another date, for what writes one
    second = plots.plot(runs, tmp_path / "second")
    kinds = ["curves", "profiles", "intervals", "improvement"]
    assert [Path(file).name for file in first["files"]] == [f"{kind}.{end}" for kind in kinds for end in ("png", "svg")]
    for one, other in zip(first["files"], second["files"], strict=True):
        assert Path(one).read_bytes() == Path(other).read_bytes()
    assert {k: v for k, v in first.items() if k != "files"} == {k: v for k, v in second.items() if k != "files"}
    svg = (tmp_path / "first" / "curves.svg").read_text()
    assert "dc:date" not in svg and not re.search(r"20\d\d-\d\d-\d\d", svg)
    texts = set(re.findall(r"<text[^>]*>([^<]*)</text>", svg)) | set(re.findall(r"<tspan[^>]*>([^<]*)</tspan>", svg))
    assert {"environment frames", "mean return of evaluation", "one", "(3 runs)"} <= texts


def test_what_plot_tells_is_what_it_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = seeds(tmp_path, "one", [1, 5, 9]) + seeds(tmp_path, "two", [2])
    told = plots.plot(runs, tmp_path / "img")
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["groups"]["one"]["scores"] == [2, 6, 10]
    low, high = stratified_bootstrap_ci([[2], [6], [10]])
    assert told["groups"]["one"]["IQM"] == {"value": 6.0, "low": low, "high": high}
    assert told["groups"]["two"]["mean"] == {"value": 3.0, "low": None, "high": None}
    assert told["groups"]["two"]["optimality gap"]["value"] == 7.0  # 10 is the best
    assert told["improvement"] == [{"x": "one", "y": "two", "value": 2 / 3, "low": None, "high": None}]
    assert "improvement" not in capsys.readouterr().err
    told = plots.plot(runs[:3], tmp_path / "alone")
    assert "improvement" not in told and not (tmp_path / "alone" / "improvement.png").exists()
    assert "note: improvement is left out: it compares groups, and there is one\n" in capsys.readouterr().err


def test_of_a_metric_that_is_no_return_nothing_says_which_is_better(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "one", [1, 5, 9]) + seeds(tmp_path, "two", [2])
    for run in runs:
        log = run / "progress.csv"
        log.write_text(log.read_text().replace("eval/return_mean", "train/loss"))
    told = plots.plot(runs, tmp_path / "img", metric="train/loss")
    assert "IQM" in told["groups"]["one"] and "optimality gap" not in told["groups"]["one"]
    drawn = "".join((tmp_path / "img" / f"{name}.svg").read_text() for name in ("profiles", "intervals"))
    assert "Performance profiles" in drawn and "median" in drawn
    assert not any(word in drawn for word in ("better", "gap", "↑", "↓"))


def test_groups_of_other_environments_have_curves_and_no_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = seeds(tmp_path, "one", [1, 5]) + seeds(tmp_path, "two", [-9, -4], env__id="Acrobot-v1")
    told = plots.plot(runs, tmp_path / "img")
    assert [Path(file).name for file in told["files"]] == ["curves.png", "curves.svg"]
    assert "left out: group 'one' has runs 2 of CartPole-v1, 0 of Acrobot-v1" in capsys.readouterr().err
    both = seeds(tmp_path, "one_", [7, 9], env__id="Acrobot-v1") + seeds(tmp_path, "two_", [3, 8])
    told = plots.plot([*runs, *both], tmp_path / "img", by="optim.lr")  # one group, on both
    (group,) = told["groups"].values()
    assert 0 < group["mean"]["value"] < 1 and (tmp_path / "img" / "profiles.svg").exists()
    assert "scaled: 0 the lowest run" in (tmp_path / "img" / "profiles.svg").read_text()


def test_of_more_than_six_groups_each_is_compared_with_the_best() -> None:
    found = {f"g{i}": aggregates(np.array([[i % 5]]), 9) for i in range(7)}
    assert plots._pairs(found) == [("g4", f"g{i}") for i in (0, 1, 2, 3, 5, 6)]
    six = plots._pairs({name: found[name] for name in list(found)[:6]})
    assert len(six) == 15 and ("g0", "g1") in six and ("g1", "g0") not in six


def test_a_hundred_runs_are_drawn_in_seconds_and_too_many_groups_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = [evaluated(*((100.0 * t, 5.0) for t in range(1, 51))) for _ in range(100)]
    for mine in rows:
        for row in mine:
            row |= {f"train/column_{i}": float(rng.random()) for i in range(12)}
    runs = [write(tmp_path / f"r{i}", mine, recipe=f"g{i // 20}", seed=i) for i, mine in enumerate(rows)]
    start = time.process_time()
    plots.plot(runs, tmp_path / "img", metric="train/column_3", x="time")
    assert time.process_time() - start < 10  # 2.5 s
    with pytest.raises(UserError, match=r"--group-by seed: makes 100 groups, expected at most 24"):
        plots.plot(runs, tmp_path / "img", by="seed")


def test_the_command_draws_a_real_run(command: Command, finished: Path, tmp_path: Path) -> None:
    called = command("runs", "plot", finished, "--x", "time", "--out", tmp_path / "img")
    assert called.code == 0, called.err
    assert called.out.split() == [
        str(tmp_path / "img" / f"{kind}.{end}")
        for kind in ("curves", "profiles", "intervals")
        for end in ("png", "svg")
    ]
    assert "improvement is left out" in called.err
    told = json.loads(command("runs", "plot", finished, "--group-by", "optim.lr", "--json").out)
    result = json.loads((finished / "result.json").read_text())
    (group,) = told["groups"].values()
    assert group["scores"] == [result["evaluation"]["mean"]] and (tmp_path / "plots" / "curves.png").exists()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--metric", "eval/return_men"], "metric 'eval/return_men' is in no run's progress.csv; did you mean"),
        (
            ["--group-by", "optim.lrr"],
            "--group-by optim.lrr: is no settings field of these runs; did you mean 'optim.lr'",
        ),
        (["--x", "frame"], "argument --x: invalid choice: 'frame'"),
        (["--out", "file"], "cannot write 'file/curves.png'"),
    ],
)
def test_what_the_command_cannot_do_is_one_sentence(
    command: Command, finished: Path, tmp_path: Path, argv: list[str], says: str
) -> None:
    (tmp_path / "file").write_text("")
    called = command("runs", "plot", finished, *argv)
    assert called.code == 2 and says in called.err.splitlines()[-1] and called.err.count("error") == 1


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"figures need matplotlib: pip install 'rlcore\[plot\]'"):
        plots.plot(seeds(tmp_path, "one", [1, 2]), tmp_path / "img")
