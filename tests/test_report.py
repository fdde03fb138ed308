"""Reports: pages as a real browser shows them, their numbers against the runs' files, and whatever cannot be had."""

from __future__ import annotations

import csv
import html
import itertools
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
import torch
from browser import opened
from conftest import SMALL, Command
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import rlcore
from envs import figures, mistakes
from rlcore import api, curves
from rlcore.errors import UserError
from rlcore.plain_yaml import dump, parse
from rlcore.report import _film, _groups, drawing, episode, known, logged, report, seen
from rlcore.report.page import Page
from rlcore.report.page import html as written
from rlcore.report.sections import Section, section
from rlcore.run import load

needs_browser = pytest.mark.skipif(browser.CHROMIUM is None, reason="there is no chromium; apt-get install chromium")
LANGUAGE: dict[str, Any] = {
    "env.kwargs.context": 32,
    "agent.network.kwargs": {"layers": 1, "heads": 2, "width": 16},
    "budget.frames": 480,
    "eval.every": 240,
    "log.every": 120,
}
EVIL = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that has hardly learnt, on a text that shows what must not be run."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(f"{EVIL} | a & b 'c' " * 60)
    rlcore.train("shakespeare", out=folder / "run", **{**LANGUAGE, "env.kwargs.data": str(folder / "text.txt")})
    return folder / "run"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    rlcore.train("digits_cnn", out=out, **{"budget.frames": 1280, "eval.every": 640, "log.every": 320})
    return out


@pytest.fixture(scope="session")
def pages(
    finished: Path, digits: Path, language: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path]]:
    """Runs and their reports."""
    folder = tmp_path_factory.mktemp("pages")
    runs = {"dqn": finished, "classification": digits, "language_model": language}
    return {name: (run, report([run], folder / f"{name}.html")) for name, run in runs.items()}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser.browser() as started:
        yield started


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def visible(page: Path) -> str:
    """Return a page's text, without a browser."""
    body = re.sub(r"<(style|script|svg).*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def in_words(value: float) -> str:
    """Return a number as the page has it, found in another way."""
    return np.format_float_positional(value, 4, fractional=False, trim="-") if abs(value) >= 1e-4 else f"{value:.4g}"


# In a browser


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["dqn", "classification", "language_model"])
def test_a_page_opens_from_disk_asks_for_nothing_and_fits(
    pages: dict[str, tuple[Path, Path]], chromium: Any, kind: str, width: int
) -> None:
    run, path = pages[kind]
    with opened(chromium, path.as_uri(), width, scheme="dark" if width == 390 else "light") as page:
        assert page.complaints == [] and page.asked == []
        assert page.too_wide() == [] and page.broken_pictures() == []
        text = page.text()  # which unfolds all
        assert page.too_wide() == []
        evaluation = result(run)["evaluation"]
        shown = evaluation if kind == "dqn" else known.metrics(evaluation)
        for name in ("mean", "iqm", "ci_low", "ci_high", "min", "max") if kind == "dqn" else shown:
            assert in_words(shown[name]) in text.replace(",", ""), name
        assert page.page.evaluate("document.documentElement.lang") == "en"
        assert page.page.locator("h1").count() == 1
        levels = page.page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map((h) => +h.tagName[1])")
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
        assert page.page.evaluate("[...document.querySelectorAll('table')].every((t) => t.querySelector('th[scope]'))")
        ids = page.page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
        assert len(ids) == len(set(ids))


@needs_browser
def test_the_browser_test_sees_what_it_looks_for(chromium: Any, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><body><div style='width: 3000px'>wide</div><img src='gone.png' alt=''>"
        "<svg></svg><script>nothing()</script>"
    )
    with opened(chromium, path.as_uri()) as page:
        assert any("nothing" in text for text in page.complaints)
        assert page.asked == [(tmp_path / "gone.png").as_uri()]
        assert len(page.broken_pictures()) == 2
        assert page.too_wide()[-1] == "the page scrolls sideways"


@needs_browser
def test_pointer_and_keys_read_the_logged_values(pages: dict[str, tuple[Path, Path]], chromium: Any) -> None:
    run, path = pages["dqn"]
    with (run / "progress.csv").open() as file:
        logged = [
            (int(row["frames"]), float(row["train/q_value"])) for row in csv.DictReader(file) if row["train/q_value"]
        ]
    with opened(chromium, path.as_uri()) as page:
        plot = page.page.locator("figure", has_text="train/q_value").locator(".plot")
        (panel,) = json.loads(plot.get_attribute("data-plots"))
        points = panel["lines"][0]["points"]
        assert [point[2:] for point in points] == [pytest.approx(row, rel=1e-5) for row in logged]
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        x, y, frames, value = points[2]
        page.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        said = f"{frames:,.0f} environment frames", f"train/q_value: {float(f'{value:.5g}'):,}"
        assert plot.locator(".values").inner_text().splitlines() == [*said]
        dot = plot.locator(".dot").bounding_box()
        assert abs(dot["x"] + dot["width"] / 2 - box["x"] - x * box["width"]) < 1
        page.page.mouse.move(5, 5)
        assert not plot.locator(".values").is_visible()
        plot.focus()
        for _ in range(3):
            page.page.keyboard.press("ArrowRight")
        assert plot.locator(".values").inner_text().splitlines() == [*said]


@needs_browser
def test_where_nothing_may_move_stills_are_shown(pages: dict[str, tuple[Path, Path]], chromium: Any) -> None:
    with opened(chromium, pages["dqn"][1].as_uri()) as page:
        film = "document.querySelector('.film img').currentSrc.slice(0, 15)"
        assert page.page.evaluate(film) == "data:image/gif;"
        page.page.emulate_media(reduced_motion="reduce")
        page.page.wait_for_timeout(200)
        assert page.page.evaluate(film) == "data:image/png;"


@needs_browser
def test_nothing_in_a_run_becomes_code(language: Path, chromium: Any, tmp_path: Path) -> None:
    run = tmp_path / "evil"
    shutil.copytree(language, run)
    config = parse((run / "config.yaml").read_text(), "")
    (run / "config.yaml").write_text(dump(config | {"recipe": EVIL}))
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"recipe": EVIL, "command": EVIL}))
    (run / "progress.csv").write_text((run / "progress.csv").read_text().replace("train/grad_norm", f"train/{EVIL}"))
    with opened(chromium, report([run], tmp_path / "page.html").as_uri()) as page:
        assert page.page.title().startswith("<script>") and page.page.inner_text("h1").startswith("<script>")
        assert page.page.evaluate("document.querySelectorAll('script').length") == 1
        assert page.page.evaluate("[...document.images].filter((i) => !i.src.startsWith('data:')).length") == 0
        assert "onerror" in page.page.inner_text(".samples")
        page.page.evaluate("() => document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"nothing()\">')")
        page.page.wait_for_timeout(50)
        assert not any("is not defined" in text for text in page.complaints)  # the policy would not let it run


# What it says


def test_what_was_changed_comes_before_all_settings(pages: dict[str, tuple[Path, Path]], finished: Path) -> None:
    changed, every = known.settings(finished)
    rows = {name: (ours, theirs) for name, ours, theirs in changed.rows}
    assert rows["budget.frames"] == ("600", "200000") and rows["agent.network.kwargs.hidden"] == ("[16]", "[64, 64]")
    assert "agent.double" not in rows and ("agent.double", "true") in every.rows
    text = visible(pages["dqn"][1])
    assert text.index("budget.frames 600 200000") < text.index("All ")


def test_the_worst_episodes_can_be_played_again(pages: dict[str, tuple[Path, Path]]) -> None:
    run, path = pages["dqn"]
    returns = result(run)["evaluation"]["returns"]
    text = visible(path)
    seed, lowest = re.search(r"The worst episodes seed return (\d+) ([\d.]+)", text).groups()  # pyright: ignore
    assert float(lowest) == min(returns) == rlcore.evaluate(run, episodes=1, seed=int(seed))["mean"]
    assert f"evaluate.py {run} --episodes 1 --seed {seed} --render" in text


def test_the_episode_is_the_first_of_the_evaluation(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setattr(episode, "MOST", 4)
    shown = episode.episode(load(finished), 10_000)
    assert shown.total == result(finished)["evaluation"]["returns"][0] == shown.steps
    source = drawing.base64.b64decode(shown.picture.source.partition(",")[2])
    assert 2 < Image.open(episode.io.BytesIO(source)).n_frames <= 4 + 1  # the end's pictures are one


def test_several_runs_are_compared_as_evaluate_does(finished: Path, tmp_path: Path) -> None:
    rlcore.train("cartpole_dqn", out=tmp_path / "other", **{**SMALL, "eval.every": 200, "eval.episodes": 2, "seed": 1})
    shutil.copytree(finished, tmp_path / "one")
    runs = [tmp_path / "one", tmp_path / "other"]
    text = visible(report(runs))
    assert (tmp_path / "report.html").is_file()
    both = api.evaluate(runs)
    ends = " to ".join(in_words(both[end]) for end in ("ci_low", "ci_high"))
    numbers = f"mean return 2 {in_words(both['mean'])} {in_words(both['iqm'])} {ends}"
    assert f"cartpole_dqn CartPole-v1 {numbers}" in text
    for run in runs:
        found = result(run)["evaluation"]
        ends = f"{in_words(found['iqm'])} ({in_words(found['ci_low'])} to {in_words(found['ci_high'])})"
        assert f"{in_words(found['mean'])} {ends}" in text
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r'<a href="#(.*?)">', page) == re.findall(r'<details class="run" id="(.*?)"', page)
    assert page.count('class="film"') == 1
    played = {found["mean"]: found["returns"][0] for found in (result(run)["evaluation"] for run in runs)}
    assert len(set(played.values())) == 2, "either run's film would do"
    assert f"seed 10000: return {played[max(played)]:.6g} in" in page  # the middle of two is the upper


def test_every_environment_has_a_film_though_runs_of_own_files_have_no_recipe(finished: Path) -> None:
    one = replace(section(finished, "run-1", None, None), recipe="")
    sections = [one, replace(one, id="run-2"), replace(one, id="run-3", environment="Other-v0")]
    _film(sections)
    assert sorted(bool(made.episode) for made in sections[:2]) == [False, True] and sections[2].episode


def test_checkpoint_and_episodes_are_played_anew(finished: Path, tmp_path: Path, command: Command) -> None:
    called = command("runs", "report", finished, "--checkpoint", "400", "--episodes", "3", "--out", "page.html")
    assert called.code == 0 and called.out == "page.html\n"
    text = visible(Path("page.html"))
    wanted = rlcore.evaluate(finished, episodes=3, which="400")
    assert f"mean return {in_words(wanted['mean'])} 3 greedy episodes" in text
    assert "3 greedy episodes on seeds 10000 to 10002, played by the checkpoint '400'" in text
    assert "--checkpoint 400 --episodes 1" in text
    first = f"{wanted['returns'][0]:.6g}"
    assert first != f"{result(finished)['evaluation']['returns'][0]:.6g}", "the film of either checkpoint would do"
    assert f"seed 10000: return {first} in {first} steps" in Path("page.html").read_text()


def test_a_log_by_hand_has_intervals_the_right_way_up_and_nothing_that_is_not_finite(tmp_path: Path) -> None:
    head = "frames,eval/return_iqm,eval/return_ci_low,eval/return_ci_high,train/loss"
    (tmp_path / "progress.csv").write_text(f"{head}\n100,5,4,7,nan\n200,6,5,9,2\n300,inf,nan,nan,1\n")
    made = logged.logged(tmp_path, "a", False, [])
    returns, loss = (picture.alt for picture in made.curves)
    assert returns.endswith("evaluation: IQM, 95 % interval from 5 to 6, between 5 and 6.")
    assert loss.endswith("training from 2 to 1, between 1 and 2.")
    assert made.evaluations is not None
    assert made.evaluations.rows == [["100", "5", "4", "7"], ["200", "6", "5", "9"]]
    (_, lines), _ = logged._of_play({name: (x[:2], y[:2]) for name, (x, y) in curves.read(tmp_path).items()})
    line = lines["eval/return_iqm"]
    assert line.low is not None and line.high is not None
    assert (line.low.tolist(), line.y.tolist(), line.high.tolist()) == ([4, 5], [5, 6], [7, 9])


def test_a_task_is_judged_by_its_metric_and_unfinished_runs_are_in_no_mean(finished: Path) -> None:
    one = section(finished, "run-1", None, None)
    task = replace(one, task=True, evaluation={**one.evaluation, "accuracy": 0.25})
    assert task.headline == ("accuracy", 0.25)
    assert one.headline == ("mean return", result(finished)["evaluation"]["mean"])
    assert [row[3] for row in _groups([one, one, replace(one, status="unfinished")]).rows] == ["2"]


def test_why_a_run_stopped_is_told_and_other_episodes_are_played(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "result.json").write_text(json.dumps({**result(finished), "stopped": "loss reached 1"}))
    assert dict(known.facts(tmp_path / "run"))["Stopped early"] == "loss reached 1"
    assert seen.see(finished, "a", None, 3).evaluation == rlcore.evaluate(finished, episodes=3)


# What cannot be had


def test_unfinished_failed_and_broken_runs_have_reports(finished: Path, tmp_path: Path) -> None:
    for name in ("unfinished", "failed", "bare", "broken"):
        shutil.copytree(finished, tmp_path / name)
        (tmp_path / name / "result.json").unlink()
    (tmp_path / "failed" / "result.json").write_text(json.dumps({"status": "failed", "error": "'loss' became NaN"}))
    log = (tmp_path / "failed" / "progress.csv").read_text().splitlines()
    (tmp_path / "failed" / "progress.csv").write_text("\n".join([log[0], *log[1:], re.sub(r"[\d.]+", "nan", log[-1])]))
    shutil.rmtree(tmp_path / "bare" / "checkpoints")
    (tmp_path / "bare" / "progress.csv").unlink()
    (tmp_path / "broken" / "config.yaml").write_text("seed: [")
    said = {name: visible(report([tmp_path / name])) for name in ("unfinished", "failed", "bare", "broken")}
    assert "Status unfinished" in said["unfinished"] and "mean return" in said["unfinished"]  # its checkpoint is played
    assert "Failed. 'loss' became NaN" in said["failed"]
    assert "The agent was not played:" in said["bare"] and "has no checkpoint 'last'" in said["bare"]
    assert "Broken." in said["broken"] and "expected YAML" in said["broken"]
    together = visible(report(sorted(path for path in tmp_path.iterdir() if path.is_dir())))
    assert together.count("unfinished") >= 2 and "Failed. 'loss' became NaN" in together


def test_a_run_whose_returns_are_not_finite_has_a_report(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    found = result(finished)
    found["evaluation"]["returns"][1] = float("nan")
    found["evaluation"] |= dict.fromkeys(("mean", "std", "iqm", "ci_low", "ci_high", "min", "max"), float("inf"))
    (tmp_path / "run" / "result.json").write_text(json.dumps(found))
    text = visible(report([tmp_path / "run"]))
    assert f"Not finite: the returns of 1 of {found['evaluation']['episodes']} episodes." in text
    assert "mean return not finite" in text
    text = visible(report([tmp_path / "run", finished], tmp_path / "both.html"))
    assert f"mean return {in_words(result(finished)['evaluation']['mean'])}" in text


def test_bad_input_is_one_sentence(finished: Path, tmp_path: Path, command: Command) -> None:
    for argv, sentence in {
        ("--out", "page.txt"): "--out page.txt: expected a file that ends in .html",
        ("--out", str(tmp_path / "file" / "page.html")): f"cannot write to '{tmp_path / 'file'}'",
        ("--episodes", "0"): "got 0, expected a positive integer",
    }.items():
        (tmp_path / "file").write_text("")
        called = command("runs", "report", finished, *argv)
        assert called.code == 2 and sentence in called.err and called.err.count("\n") == 1


def test_without_jinja2_one_sentence_names_the_extra(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match=r"reports need jinja2: pip install 'rlcore\[report\]'"):
        written(Page("", "", [], "", ""))


# Its parts


def test_points_lie_where_the_line_is_drawn() -> None:
    with drawing.inked():
        figure = Figure(figsize=(4, 3), layout="constrained")
        axes = figure.subplots()
        axes.plot([0.0, 2.0, 5.0], [1.0, -3.0, 4.0], label="line")
    picture = drawing.inline(figure, "a", "words")
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture.svg).groups())  # pyright: ignore
    path = re.search(r'id="a-line2d_\d+">\s*<path d="([^"]*)" clip-path="[^"]*" style="fill: none', picture.svg)
    drawn = [tuple(map(float, pair)) for pair in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.group(1))]  # pyright: ignore
    points = picture.plots[0]["lines"][0]["points"]
    assert [(x * width, y * height) for x, y, *_ in points] == [pytest.approx(at, abs=0.05) for at in drawn]
    assert [point[2:] for point in points] == [[0, 1], [2, -3], [5, 4]]


def test_figures_follow_the_page_but_for_letters_on_a_coloured_ground() -> None:
    with drawing.inked():
        matrix = figures.classification(torch.eye(2), torch.tensor([0, 1]), ["ant", "bee"])["confusion"]
    svg = drawing.inline(matrix, "m", "words", black_is_ink=False).svg
    texts = re.findall(r'<text style="([^"]*)"[^>]*>([^<]*)<', svg)
    fills = {text: (re.findall("fill: ([^;]*)", style) or ["black"])[0] for style, text in texts}
    assert fills["true"] == fills["ant"] == "currentColor"
    assert (fills["1"], fills["0"]) == ("black", "#ffffff")
    assert "currentColor" not in svg[: svg.index(">")]


CELL = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20).map(lambda t: " ".join(t.split()))


@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=4))
def test_lists_of_mistakes_are_read_back(rows: list[tuple[str, str]]) -> None:
    found = seen.table(mistakes.table(("a", "c"), rows, 5, 9))
    assert found is not None and found.caption == f"The worst {len(rows)} of 5 mistakes among 9:"
    assert (list(found.head), [tuple(row) for row in found.rows]) == (["a", "c"], rows)


def test_intervals_of_metrics_are_those_of_a_fraction() -> None:
    class Half:
        def metrics(self, outcomes: dict[str, torch.Tensor]) -> dict[str, float]:
            return {"accuracy": float(outcomes["right"].double().mean()), "one": 1.0}

    right = torch.arange(400) < 200
    found = seen._intervals(Half(), {"right": right})  # pyright: ignore[reportArgumentType]
    reach = 1.96 * 0.5 / 400**0.5  # of the normal approximation
    assert found["accuracy"] == pytest.approx((0.5 - reach, 0.5 + reach), abs=0.01)
    assert found["one"] == (1.0, 1.0)
    assert seen._intervals(Half(), {"right": right}) == found  # pyright: ignore[reportArgumentType]


def test_a_page_without_a_section_for_anything_is_still_a_page(tmp_path: Path) -> None:
    page = written(Page("t", "", [Section(tmp_path, "run-1", "t", "broken", "why")], "now", "0"))
    assert "why" in page and "<table" not in page and "<figure" not in page


@needs_browser
def test_what_is_folded_is_printed(pages: dict[str, tuple[Path, Path]], chromium: Any) -> None:
    with opened(chromium, pages["dqn"][1].as_uri()) as page:
        count = "document.querySelectorAll('details[open]').length"
        before = page.page.evaluate(count)
        page.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.page.evaluate(count) == page.page.evaluate("document.querySelectorAll('details').length") > before
        page.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.page.evaluate(count) == before
