"""benchmark.py speed, what is measured of ours alone: when compiling repays itself, worker processes, stages."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlcore import compiling
from rlcore import config as configs
from rlcore.speed import command, harness, parts, ranks, repays, seeds, stages, studies, worker_steps
from rlcore.speed.settings import Comparison, Contender, Size

TINY = {
    "env": {"id": "CartPole-v1", "num_envs": 2},
    "agent": {"name": "dqn", "network": {"name": "mlp", "kwargs": {"hidden": [8]}}},
    "source": {"name": "replay", "learning_starts": 64, "batch_size": 8, "frames_per_iteration": 32},
}
PQN = {
    "env": {"id": "CartPole-v1", "num_envs": 4},
    "agent": {"name": "pqn", "network": {"name": "mlp", "kwargs": {"hidden": [8]}}},
    "source": {"name": "rollout", "horizon": 16, "epochs": 1, "minibatches": 2},
}


class _Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def passing(self, seconds: float, result: Any = None) -> Any:
        def function(*_: Any) -> Any:
            self.now += seconds
            return result

        return function


def _trained(seconds: float, updates: int, compiling: float = 0.0) -> dict[str, Any]:
    return {"seconds": seconds, "updates": updates, "compile_seconds": compiling}


def test_compiling_is_repaid_by_what_every_update_saves() -> None:
    """Turns of 1,000 updates: 3 ms and 5 ms uncompiled, 1 ms compiled; 12 s to compile, 2 s where that is kept."""
    turns = [
        (_trained(3.0, 1000), _trained(9.0, 1000, 12.0), _trained(1.0, 1000, 2.0)),
        (_trained(5.0, 1000), _trained(9.0, 1000, 12.0), _trained(2.0, 2000, 2.0)),
    ]
    row = repays.row("x", turns)
    assert row["uncompiled, us an update"] == "4,000 (3,000 to 5,000)"
    assert row["compiled, us an update"] == "1,000 (1,000 to 1,000)"
    assert (row["compiling, nothing kept, s"], row["compiling, kept, s"]) == ("12 (12 to 12)", "2 (2 to 2)")
    assert row["repaid after updates, nothing kept"] == "4,500 (3,000 to 6,000)"  # 12 s / 2 ms and 12 s / 4 ms
    assert row["repaid after updates, kept"] == "750 (500 to 1,000)"
    slower = repays.row("x", [*turns, (_trained(1.0, 1000), turns[0][1], _trained(2.0, 1000, 2.0))])
    assert slower["repaid after updates, kept"] == "not in every turn"


@pytest.mark.slow
@pytest.mark.skipif(compiling.why_no_cpp() is not None, reason="needs a C++ compiler")
def test_what_was_compiled_is_kept_for_the_second_training_alone() -> None:
    (row,) = repays.measure(name="tiny", config=TINY, frames=400, repeats=1)
    numbers = {name: float(text.replace(",", "")) for name, text in row.items() if name.startswith("compiling")}
    assert numbers["compiling, kept, s"] < 0.7 * numbers["compiling, nothing kept, s"]
    assert row["training"] == "tiny"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(stages, "time", clock)
    return clock


def test_a_stage_within_another_counts_for_itself_alone(clock: _Clock) -> None:
    seen = stages.Stages()
    inner = seen.timed(clock.passing(2.0, "result"), "inner")

    def outer() -> str:
        clock.now += 1.0
        result = inner()
        clock.now += 4.0
        return result

    clock.now += 8.0
    assert seen.timed(outer, "outer")() == "result"
    clock.now += 16.0
    seen.look()
    assert seen.seconds == {"other": 24.0, "inner": 2.0, "outer": 5.0}
    with pytest.raises(ZeroDivisionError):
        seen.timed(lambda: 1 / 0, "broken")()
    clock.now += 1.0
    seen.look()
    assert seen.seconds["other"] == 25.0  # the stage that failed is over


def test_stages_of_a_trainer_add_up_to_its_time(clock: _Clock) -> None:
    """Two batches: acting 1 s, steps of 2 s in it, storing 4 s, each draw 0.5 s, each update 8 s, 0.25 s outside."""

    class Source:
        env = SimpleNamespace(step=clock.passing(2.0))

        def act(self) -> None:
            clock.now += 1.0
            self.env.step()

        def collect(self) -> Iterator[int]:
            self.act()
            self._store()
            for batch in range(2):
                clock.now += 0.5
                yield batch

        _store = clock.passing(4.0)

    trainer: Any = SimpleNamespace(source=Source(), agent=object(), update=clock.passing(8.0))
    seen = stages.Stages()
    seen.watch(trainer)
    batches = []
    for batch in trainer.source.collect():
        batches.append(batch)
        trainer.update(batch)
        clock.now += 0.25
    seen.look()
    assert batches == [0, 1]
    expected = {"other": 0.5, "acting": 1.0, "stepping": 2.0, "storing": 4.0, "drawing batches": 1.0, "updating": 16.0}
    assert seen.seconds == expected


def test_shares_are_of_all_rounds_and_products_of_their_own_round() -> None:
    rounds = [{"updating": 3.0, "other": 1.0}, {"updating": 3.0, "other": 1.0}, {"updating": 2.0, "storing": 10.0}]
    row = stages.row("x", rounds, [2.0, 3.0, 6.0])
    assert (row["training"], row["us a frame"], row["of it products"]) == ("x", 4.0, "50%")  # 2/4, 3/4, 6/12
    assert (row["updating"], row["storing"], row["other"], row["acting"]) == ("40.0%", "50.0%", "10.0%", "")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TINY, {"acting", "stepping", "storing", stages.COUNTING, "drawing batches", "updating"}),
        (PQN, {"acting", "stepping", stages.COUNTING, "making targets", "drawing batches", "updating"}),
        ("line", {"drawing batches", "updating"}),
    ],
)
def test_the_stages_of_real_training(config: Any, expected: set[str]) -> None:
    (row,) = stages.measure(name="x", config=config, overrides={"compile": "off"}, frames=500)
    shares = {stage: float(row[stage].rstrip("%")) for stage in (*stages.ORDER, "of it products") if row[stage]}
    assert shares.keys() == expected | {"other", "of it products"}
    assert 0 < shares.pop("of it products") < 100
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)  # rounded to a tenth each
    assert shares["updating"] > 1
    assert row["us a frame"] > 0


@pytest.mark.slow
@pytest.mark.skipif(compiling.why_no_cpp() is not None, reason="needs a C++ compiler")
def test_acting_with_its_step_is_one_stage_where_it_is_one_graph() -> None:
    (row,) = stages.measure(name="x", config=TINY, overrides={"compile": "on"}, frames=320)
    assert row[stages.TOGETHER]
    assert (row["acting"], row["stepping"]) == ("", "")


def test_steps_by_worker_processes_beside_one_process_and_gymnasium() -> None:
    rows = worker_steps.measure(env_id="FrozenLake-v1", num_envs=3, workers=(2,), repeats=3, turn=0.001)
    names = ["one process", "2 workers", "gymnasium's SyncVectorEnv", "gymnasium's AsyncVectorEnv"]
    assert [row["by"] for row in rows] == names
    assert rows[0]["ratio"] == 1
    for row in rows:
        assert (row["env"], row["environments"]) == ("FrozenLake-v1", 3)
        assert 0 < row["from"] <= row["us"] <= row["to"]
        assert row["steps_per_second"] == pytest.approx(3e6 / row["us"])


def test_two_ranks_beside_one_process() -> None:
    (row,) = ranks.measure(recipe="cartpole_pqn", frames=4_096)
    assert (row["recipe"], row["frames"]) == ("cartpole_pqn", 4_096)
    for name in ("one process", "2 ranks"):
        assert row[f"{name}: frames/s"] > 0
        assert 8 <= row[f"{name}: score"] <= 500


def test_what_fails_in_a_rank_is_told() -> None:
    with pytest.raises(SystemExit, match=r"one process: .*no_such_recipe"):
        ranks.measure(recipe="no_such_recipe", frames=4_096)


@pytest.mark.skipif(compiling.why_no_cpp() is not None, reason="needs a C++ compiler")
@pytest.mark.slow
def test_seeds_together_uncompiled_and_compiled() -> None:
    settings = {"agent": {"network": {"kwargs": {"hidden": [8]}}}}
    given = {"recipe": "cartpole_dqn", "settings": settings, "seeds": 2, "frames": 1_200, "updates": 5, "pairs": 3}
    rows = seeds.measure(name="tiny", **given)
    assert [(row["training"], row["compiled"]) for row in rows] == [("tiny", "no"), ("tiny", "yes")]
    for row in rows:
        assert row["study / in turn"] == pytest.approx(row["a study of 2 seeds, s"] / row["2 runs in turn, s"])
        assert min(value for value in row.values() if isinstance(value, float)) > 0


@pytest.mark.skipif(compiling.why_no_cpp() is not None, reason="needs a C++ compiler")
@pytest.mark.slow
def test_a_study_beside_its_runs() -> None:
    brief = {"budget.frames": 1_200, "eval.every": 600, "agent.network.kwargs.hidden": "[8]"}
    rows = studies.measure(recipe="cartpole_dqn", seeds=2, settings=brief)
    first = rows[0]["s"]
    assert [row["2 seeds"].partition(",")[0] for row in rows] == ["a command for each seed", *["together"] * 3]
    assert [row["ratio"] for row in rows] == pytest.approx([row["s"] / first for row in rows])
    assert rows[2]["s"] > rows[3]["s"] > 0  # compiling, and not


@pytest.mark.parametrize("size", ["quick", "standard", "full"])
def test_tables_are_asked_for_as_their_modules_take_it(size: Size) -> None:
    jobs = [c.job for comparison in parts.comparisons(size) for c in comparison.contenders if "given" in c.job]
    names = "envs", "replay", "repays", "seeds", "studies", "worker_steps", "ranks", "stages"
    assert {job["module"].rpartition(".")[2] for job in jobs} == set(names)
    for job in jobs:
        given = job["given"]
        if recipe := given.get("recipe"):
            configs.validate(configs.override(configs.read(recipe), given.get("settings", {})))
        inspect.signature(importlib.import_module(job["module"]).measure).bind(**given)
        if "config" in given:
            configs.validate(configs.override(configs.read(given["config"]), given.get("overrides", {})))


def test_without_a_gpu_nothing_is_started_for_it_nor_estimated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    started = list[Any]()
    monkeypatch.setattr(harness.subprocess, "run", lambda *words, **_: started.append(words))
    every = [c for c in parts.comparisons("standard") if c.part == "gpu"]
    bench = harness.Bench(tmp_path, {"nanogpt": tmp_path})
    harness.run(bench, every)
    said = capsys.readouterr().err
    assert "about 0 s" in said.splitlines()[0]
    assert not started
    assert {bench.absent(c, contender) for c in every for contender in c.contenders} == {"there is no GPU with CUDA"}


def test_tables_repeat_by_themselves() -> None:
    contender = Contender("A", "costs", {}, 1.0)
    table, race = (Comparison("x", "x", "X", kind, [contender], 1) for kind in ("rows", "race"))
    assert command._repeated(table, 5) == table
    assert command._repeated(race, 5).repeats == 5
