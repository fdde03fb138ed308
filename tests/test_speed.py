"""benchmark.py speed: its arithmetic by hand, its rule, and every part that needs no other library, end to end."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlcore import benchmark
from rlcore.errors import UserError
from rlcore.speed import command, harness, page, parts, peer
from rlcore.speed.settings import Comparison, Contender

DQN = {
    "env": {"id": "CartPole-v1", "num_envs": 1},
    "agent": {"name": "dqn", "network": {"name": "mlp", "kwargs": {"hidden": [8]}}},
    "source": {"name": "replay", "learning_starts": 64, "batch_size": 8, "frames_per_iteration": 32},
}


def _race(name: str, frames: int = 200, **more: Any) -> Contender:
    job = {"config": DQN, "overrides": {"compile": "off"}, "frames": frames, **more}
    return Contender(name, "ours", job, 1.0)


def _result(frames: int, seconds: float, solved: bool = True, whole: float = 9.0) -> dict[str, Any]:
    versions = {"python": "3", "torch": "2"}
    found = {"frames": frames, "seconds": seconds, "solved": solved, "updates": 4, "process_seconds": whole}
    return {**found, "library": "rlcore 1", "versions": versions}


def _keep(bench: harness.Bench, comparison: Comparison, contender: Contender, results: list[dict[str, Any]]) -> None:
    place = bench.place(comparison, contender)
    place.mkdir(parents=True)
    for i, result in enumerate(results):
        (place / f"{i}.json").write_text(json.dumps({"job": bench.job(contender, i), "result": result}))


def test_ratios_are_of_pairs_and_not_of_medians() -> None:
    ours, theirs = {0: 8.0, 1: 30.0, 2: 10.0}, {0: 4.0, 1: 10.0, 2: 10.0, 3: 1.0}
    assert page.ratios(ours, theirs) == [2.0, 3.0, 1.0]  # repetition 3 has no partner
    assert page.spread(page.ratios(ours, theirs)) == (2.0, 1.0, 3.0)  # the ratio of the medians would be 1.43
    assert page.written([2.0, 3.0, 1.0]) == "2 (1 to 3)"
    assert page.written([1234.5]) == "1,234"


def test_a_race_shows_rates_and_ours_over_theirs(tmp_path: Path) -> None:
    mine, other = _race("ours, eager"), _race("Another")
    comparison = Comparison("dqn", "x", "Tiny", "race", [mine, other], 2, ours=[mine.name])
    bench = harness.Bench(tmp_path)
    _keep(bench, comparison, mine, [_result(200, 0.5), _result(200, 1.0)])  # 400 and 200 frames/s
    _keep(bench, comparison, other, [_result(200, 2.0), _result(200, 4.0)])  # 100 and 50 frames/s
    text = page.render(bench, [comparison], "the command")
    assert "| ours, eager | 300 (200 to 400) |  | 0.75 (0.5 to 1) | 4 | 9 (9 to 9) |" in text
    assert "| Another | 75 (50 to 100) | 4 (4 to 4) | 3 (2 to 4) | 4 | 9 (9 to 9) |" in text


def test_a_seed_that_fails_counts_with_its_whole_budget(tmp_path: Path) -> None:
    contender = _race("ours", frames=1000)
    assert page.budgeted(_result(400, 2.0), contender) == 2.0
    assert page.budgeted(_result(400, 2.0, solved=False), contender) == 5.0  # stopped at 400 of 1,000 frames
    assert page.budgeted(_result(1024, 2.0, solved=False), contender) == 2.0  # the last iteration goes beyond
    comparison = Comparison("solve", "x", "Solve", "solve", [contender], 3)
    bench = harness.Bench(tmp_path)
    _keep(bench, comparison, contender, [_result(100, 1.0), _result(200, 2.0), _result(1000, 8.0, solved=False)])
    assert "| ours | 2/3 | 2 | 8 | 200 | 9 |" in page.render(bench, [comparison], "")


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_solved_is_reached_and_confirmed_and_evaluations_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = _Clock(), list[int]()
    scores = iter([100.0, 480.0, 470.0, 475.0, 475.0])  # reached but not confirmed; then both

    def score(_: Any, seed: int, episodes: int = 100) -> float:
        clock.now += 50.0
        asked.append(seed)
        return next(scores)

    monkeypatch.setattr(peer, "time", clock)
    monkeypatch.setattr(peer, "score", score)
    watch = peer.Watch(every=100)
    watch.start()
    seen = []
    for frames in (64, 128, 192, 256, 320):  # multiples of 100 are crossed at 128, 256 and 320
        clock.now += 1.0
        seen.append(watch.look(frames, lambda obs: obs))
    assert seen == [False, False, False, False, True]
    looks = peer.LOOKS
    assert asked == [looks, looks, peer.CONFIRMATIONS + 256, looks, peer.CONFIRMATIONS + 320]
    assert watch.result(320, 7, "rlcore")["seconds"] == 5.0


def test_what_compiling_takes_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = _Clock()
    monkeypatch.setattr(peer, "time", clock)
    watch = peer.Watch()
    watch.start()
    clock.now += 12.0
    watch.compiling += 10.0
    result = watch.result(200, 7, "not a distribution")
    assert (result["seconds"], result["frames"], result["compile_seconds"]) == (2.0, 200, 10.0)
    assert result["library"] == "not a distribution"


def test_scores_are_those_of_gymnasiums_single_environment() -> None:
    """A push to the right ends every episode in 8 to 11 steps; the lean of the pole decides for much longer."""
    import gymnasium as gym

    def lean(obs: np.ndarray[Any, Any]) -> Any:
        return obs[:, 2] + 0.3 * obs[:, 3] > 0

    right = peer.score(lambda obs: np.ones(len(obs)), 0)
    assert 8 < right < 11
    returns = []
    env = gym.make("CartPole-v1")
    for seed in range(100):
        obs, _ = env.reset(seed=seed)
        length, ended = 0, False
        while not ended:
            obs, _, terminated, truncated, _ = env.step(int(lean(obs[None])[0]))
            length, ended = length + 1, terminated or truncated
        returns.append(length)
    deviation = np.std(returns) / 10 * 2**0.5
    assert abs(peer.score(lean, 0) - np.mean(returns)) < 4 * deviation + 1e-9
    assert peer.score(lean, 0) == peer.score(lean, 0)


def test_a_measurement_is_a_process_whose_result_is_kept(tmp_path: Path) -> None:
    comparison = Comparison("dqn", "x", "Tiny", "race", [_race("A", every=100)], 1)
    bench = harness.Bench(tmp_path, first_seed=1000)
    harness.run(bench, [comparison])
    held = json.loads((bench.place(comparison, comparison.contenders[0]) / "0.json").read_text())
    assert held["job"]["seed"] == 1000
    assert held["result"]["frames"] == 224  # whole iterations of 32
    assert held["result"]["updates"] > 0
    assert held["result"]["process_seconds"] > held["result"]["seconds"] > 0


def test_contenders_take_turns_and_what_is_kept_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    comparison = Comparison("dqn", "x", "Tiny", "race", [_race("A"), _race("B")], 2)
    bench = harness.Bench(tmp_path, first_seed=1000)
    measured = list[tuple[str, int]]()

    def measure(_: harness.Bench, contender: Contender, job: peer.Job) -> dict[str, Any]:
        measured.append((contender.name, job["seed"]))
        return _result(200, 1.0)

    monkeypatch.setattr(harness, "_measure", measure)
    harness.run(bench, [comparison])
    assert measured == [("A", 1000), ("B", 1000), ("A", 1001), ("B", 1001)]
    (bench.place(comparison, comparison.contenders[1]) / "0.json").unlink()
    measured.clear()
    capsys.readouterr()
    harness.run(bench, [comparison])
    assert measured == [("B", 1000)]
    assert "estimate: 1 measurements, about 9 s" in capsys.readouterr().err  # as long as the one that is kept
    longer = Comparison("dqn", "x", "Tiny", "race", [_race("A", frames=300)], 2)
    assert bench.results(longer, longer.contenders[0]) == {}  # measured with other settings: not these


def test_what_is_missing_says_so_in_its_row(tmp_path: Path) -> None:
    absent = Path(sys.prefix) / "bin" / "no-python"
    clean = Contender("CleanRL dqn.py", "cleanrl", {"script": "dqn.py", "frames": 10}, 1.0, needs="cleanrl")
    tianshou = Contender("Tianshou", "tianshou", {"frames": 10}, 1.0)
    broken = _race("Broken", overrides={"agent.gama": 1})
    comparison = Comparison("dqn", "x", "Tiny", "race", [clean, tianshou, broken], 3)
    bench = harness.Bench(tmp_path, interpreters={"tianshou": absent})
    harness.run(bench, [comparison])
    text = page.render(bench, [comparison], "")
    assert "| CleanRL dqn.py | no checkout given (--cleanrl DIR) |" in text
    assert f"| Tianshou | {absent}: No such file or directory |" in text
    assert "agent.gama" in text


def test_a_library_that_is_not_installed_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(job: peer.Job) -> dict[str, Any]:
        import no_such_library  # pyright: ignore[reportMissingImports]

        return no_such_library.measure(job)

    monkeypatch.setattr(sys, "argv", ["x", "{}"])
    monkeypatch.setattr(peer, "one_thread", lambda cores: None)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        peer.main(measure)
    assert json.loads(out.getvalue().strip().removeprefix("RESULT "))["missing"] == "no_such_library"


def test_the_page_keeps_what_stands_around_its_marks(tmp_path: Path) -> None:
    document = tmp_path / "SPEED.md"
    document.write_text("# Speed\n\nNotes.\n")
    command.insert(document, "one\n")
    command.insert(document, "two\n")
    text = document.read_text()
    assert text.startswith("# Speed\n\n<!-- measured -->\ntwo\n")
    assert text.endswith("\nNotes.\n")
    assert "one" not in text
    document.write_text("<!-- measured -->\n")
    with pytest.raises(UserError, match="expected '<!-- measured -->' once and"):
        command.insert(document, "three\n")


def _speed(tmp_path: Path, *more: str) -> tuple[int, str]:
    err = io.StringIO()
    with contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        benchmark.main(["speed", "--quick", f"--folder={tmp_path}", "--first-seed=1000", "--repeats=1", *more])
    return int(left.value.code or 0), err.getvalue()


def test_parts_of_ours_alone_end_to_end(tmp_path: Path) -> None:
    code, said = _speed(tmp_path, "--only=replay,memory")
    assert code == 0, said
    text = (tmp_path / "SPEED.md").read_text()
    assert "## Replay at 10^6 transitions" in text
    assert "20,000 CartPole transitions: growth of the process, MB" in text
    (tmp_path / "SPEED.md").unlink()
    assert _speed(tmp_path, "--report-only")[0] == 0
    assert (tmp_path / "SPEED.md").read_text() == text
    code, said = _speed(tmp_path, "--only=dqn,soolve")
    assert (code, "did you mean 'solve'" in said) == (2, True)
    code, said = _speed(tmp_path, f"--cleanrl={tmp_path / 'none'}")
    assert (code, "does not exist" in said) == (2, True)


@pytest.mark.parametrize("size", ["quick", "standard", "full"])
def test_every_part_is_there_and_our_settings_are_valid(size: parts.Size) -> None:
    from rlcore import config as configs

    every = parts.comparisons(size)
    assert {c.part for c in every} == set(parts.PARTS)
    bench = harness.Bench(Path("x"))
    places = [bench.place(c, contender) for c in every for contender in c.contenders]
    assert len(places) == len(set(places))
    for comparison in every:
        assert set(comparison.ours) <= {c.name for c in comparison.contenders}
        for contender in comparison.contenders:
            if contender.module == "ours":
                job = contender.job
                frames = {"budget.frames": job["frames"]} if "frames" in job else {}
                configs.validate(configs.override(configs.read(job["config"]), {**job["overrides"], **frames}))
